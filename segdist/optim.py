"""AdamW, its parameter groups and its learning rate, which is a pure function of the step."""

from __future__ import annotations

import torch
from torch import nn

from segdist.config import Optim


def build(cfg: Optim, model: nn.Module, encoder_prefix: str) -> torch.optim.AdamW:
    """AdamW over encoder and head; norms and biases (all one-dimensional parameters) do not decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(encoder_prefix), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr_factor": 1.0 if encoder else cfg.head_lr_factor,
                "weight_decay": cfg.weight_decay if decays else 0.0,
            }
            for (encoder, decays), parameters in groups.items()
        ],
        lr=cfg.lr,
        betas=cfg.betas,
        fused=True,
    )


def lr_at(cfg: Optim, step: int, num_steps: int) -> float:
    """The encoder's learning rate of step 0..num_steps-1: linear warm-up, then poly down to nearly zero."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / (cfg.warmup_steps + 1)
    return cfg.lr * (1 - (step - cfg.warmup_steps) / (num_steps - cfg.warmup_steps)) ** cfg.poly_power


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its share of the encoder's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
