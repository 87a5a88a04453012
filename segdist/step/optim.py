"""The optimizer, its parameter groups, and the learning rate, which is a pure function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import nn

from segdist.config import Optim
from segdist.models.segmenter import Tensors

Layers = Sequence[tuple[str, ...]]

_POSITIONS = re.compile(r"(^|[._])(pos(ition)?_?embed|relative_position|cls_token|mask_token)")


def build(cfg: Optim, model: nn.Module, encoder_prefix: str, layers: Layers) -> torch.optim.Optimizer:
    """Return the optimizer, with one parameter group per learning rate and weight decay.

    `layers` are the name prefixes of each encoder layer's parameters, from the input up. One-dimensional parameters (norms,
    biases) and position embeddings have no weight decay. Encoder layer l of n has layer_decay ** (n - 1 - l) times the learning
    rate of the deepest layer, which has the full rate (Clark et al. 2020, arXiv:2003.10555, section 3; Howard & Ruder 2018,
    arXiv:1801.06146, section 3.2).
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not _POSITIONS.search(name)
            in_encoder = name.startswith(encoder_prefix)  # fused kernels cannot freeze a part of a parameter group
            key = lr_factor(cfg, name, encoder_prefix, layers), cfg.weight_decay if decays else 0.0, in_encoder
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "lr_factor": factor, "weight_decay": decay} for (factor, decay, _), p in groups.items()]
    if cfg.name == "sgd":
        return torch.optim.SGD(listed, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True)
    kind = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
    return kind(listed, lr=cfg.lr, betas=cfg.betas, fused=True)


def lr_factor(cfg: Optim, name: str, encoder_prefix: str, layers: Layers) -> float:
    """Return a parameter's learning rate relative to that of the encoder's deepest layer."""
    if not name.startswith(encoder_prefix):
        return cfg.head_lr_factor
    depth = next((i for i, prefixes in enumerate(layers) if name.startswith(prefixes)), 0)
    return cfg.layer_decay ** max(len(layers) - 1 - depth, 0)


def lr_at(cfg: Optim, step: int, num_steps: int) -> float:
    """Return the learning rate of the encoder's deepest layer at step 0..num_steps-1: linear warm-up, then the schedule."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / (cfg.warmup_steps + 1)
    done = (step - cfg.warmup_steps) / (num_steps - cfg.warmup_steps)
    floor = cfg.min_lr_factor
    if cfg.schedule == "poly":
        return cfg.lr * (floor + (1 - floor) * (1 - done) ** cfg.poly_power)
    if cfg.schedule == "cosine":
        return cfg.lr * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
    if cfg.schedule == "step":
        return cfg.lr * cfg.step_factor ** sum(step >= share * num_steps for share in cfg.step_at)
    assert cfg.schedule == "constant", cfg.schedule
    return cfg.lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return {"exp_avg/<parameter>": tensor, ...} for every parameter that was updated; independent of parameter groups."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        f"{k}/{names[p]}": v
        for group in optimizer.param_groups
        for p in group["params"]
        for k, v in optimizer.state.get(p, {}).items()
        if v is not None
    }


def load_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, stored: Tensors) -> None:
    """Restore what `tensors` returned, for any parameter groups over the same parameters."""
    names = dict(model.named_parameters())
    for key, value in stored.items():
        kind, name = key.split("/", 1)
        parameter = names[name]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][kind] = like.copy_(value)  # in the parameter's own memory format
