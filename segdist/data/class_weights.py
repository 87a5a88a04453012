"""Class weights of the loss, from the pixel count of each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segdist.config import Loss
from segdist.errors import ConfigError


def class_weights(cfg: Loss, class_pixels: Sequence[int]) -> torch.Tensor | None:
    """Return float32 (K,) weights, or None without weights.

    `enet` is 1 / ln(1.02 + share of pixels), between 1.4 and 50 (Paszke et al. 2016, arXiv:1606.02147, section 5.2).
    Raises ConfigError if a list has another length than the classes.
    """
    if cfg.class_weights is None:
        return None
    if cfg.class_weights == "enet":
        pixels = torch.tensor(class_pixels, dtype=torch.float64)
        return (1 / torch.log(1.02 + pixels / pixels.sum().clamp(min=1))).float()
    if len(cfg.class_weights) != len(class_pixels):
        raise ConfigError(
            f"loss.class_weights has {len(cfg.class_weights)} numbers, but the dataset has {len(class_pixels)} classes. "
            "Give one number per class, in the order that `segdist stats DATA` shows"
        )
    return torch.tensor(cfg.class_weights, dtype=torch.float32)
