"""The optimizer, its parameter groups and its learning rate, which is a pure function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import nn

from segdist.config import Optim

Tensors = dict[str, torch.Tensor]
Layers = Sequence[tuple[str, ...]]

_POSITIONS = re.compile(r"(^|[._])(pos(ition)?_?embed|relative_position|cls_token|mask_token)")


def build(cfg: Optim, model: nn.Module, encoder_prefix: str, layers: Layers) -> torch.optim.Optimizer:
    """The optimizer over encoder and head, in groups that share a learning rate and a decay.

    `layers` are name prefixes of each encoder layer's parameters, from the input up. One-dimensional parameters (norms,
    biases) and position embeddings do not decay. Encoder layer l of n learns layer_decay ** (n - 1 - l) times as fast as
    the deepest, which learns at the full rate (Clark et al. 2020, arXiv:2003.10555, section 3; Howard & Ruder 2018,
    arXiv:1801.06146, section 3.2).
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not _POSITIONS.search(name)
            inside = name.startswith(
                encoder_prefix
            )  # its own groups: fused kernels cannot have a part of a group frozen
            key = lr_factor(cfg, name, encoder_prefix, layers), cfg.weight_decay if decays else 0.0, inside
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "lr_factor": factor, "weight_decay": decay} for (factor, decay, _), p in groups.items()]
    if cfg.name == "sgd":
        return torch.optim.SGD(listed, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True)
    kind = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
    return kind(listed, lr=cfg.lr, betas=cfg.betas, fused=True)


def lr_factor(cfg: Optim, name: str, encoder_prefix: str, layers: Layers) -> float:
    """How fast a parameter learns, against the encoder's deepest layer."""
    if not name.startswith(encoder_prefix):
        return cfg.head_lr_factor
    depth = next((i for i, prefixes in enumerate(layers) if name.startswith(prefixes)), 0)
    return cfg.layer_decay ** max(len(layers) - 1 - depth, 0)


def lr_at(cfg: Optim, step: int, num_steps: int) -> float:
    """The learning rate of the encoder's deepest layer at step 0..num_steps-1: linear warm-up, then the schedule."""
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
    return cfg.lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """ "exp_avg/<parameter>" -> tensor, for every parameter that was ever moved; independent of parameter groups."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        f"{k}/{names[p]}": v
        for group in optimizer.param_groups
        for p in group["params"]
        for k, v in optimizer.state.get(p, {}).items()
        if v is not None
    }


def load_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, stored: Tensors) -> None:
    """Puts back what `tensors` gave, for any grouping of the same parameters."""
    names = dict(model.named_parameters())
    for key, value in stored.items():
        kind, name = key.split("/", 1)
        parameter = names[name]
        like = torch.empty_like(parameter) if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][kind] = like.copy_(value)  # in the parameter's own memory format
