"""The loss of a global batch is one quotient: a sum over its valid pixels by a denominator that is known before any backward.

The denominator comes from the masks alone, is summed over micro-batches and ranks in integers, and divides once; so the
gradient does not depend on how void, or a rare class, is spread over them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segdist.config import Loss
from segdist.errors import ConfigError
from segdist.ops import IGNORE


def class_weights(cfg: Loss, class_pixels: Sequence[int]) -> torch.Tensor | None:
    """float32 (K,) weights, or None for none. Raises ConfigError when a list does not fit the classes.

    `enet` is 1 / ln(1.02 + share of pixels), between 1.4 and 50 (Paszke et al. 2016, arXiv:1606.02147, section 5.2).
    """
    if cfg.class_weights is None:
        return None
    if cfg.class_weights == "enet":
        pixels = torch.tensor(class_pixels, dtype=torch.float64)
        return (1 / torch.log(1.02 + pixels / pixels.sum().clamp(min=1))).float()
    if len(cfg.class_weights) != len(class_pixels):
        raise ConfigError(f"loss.class_weights has {len(cfg.class_weights)} numbers for {len(class_pixels)} classes")
    return torch.tensor(cfg.class_weights, dtype=torch.float32)


def tally(masks: Sequence[torch.Tensor], weights: torch.Tensor | None) -> torch.Tensor:
    """int64: the valid pixels of some uint8 masks, (1,), or with weights the pixels of each class, (K,)."""
    if weights is None:
        return torch.tensor([sum(int((mask != IGNORE).sum()) for mask in masks)])
    counts = sum((torch.bincount(mask.flatten(), minlength=256) for mask in masks), torch.zeros(256, dtype=torch.int64))
    return counts[: len(weights)]


def denominator(tallied: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """float64 scalar that divides the loss sum of the global batch, from the sum of all ranks' tallies; never 0."""
    total = tallied.double() if weights is None else tallied.double() * weights.to(tallied.device).double()
    total = total.sum()
    return torch.where(total > 0, total, 1.0)


class Criterion:
    def __init__(self, cfg: Loss, class_pixels: Sequence[int]) -> None:
        self._weights = class_weights(cfg, class_pixels)

    def tally(self, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        return tally(masks, self._weights)

    def divisors(self, tallied: torch.Tensor) -> torch.Tensor:
        return denominator(tallied, self._weights)

    def __call__(
        self, outputs: torch.Tensor, masks: torch.Tensor, divisors: torch.Tensor, align_corners: bool
    ) -> torch.Tensor:
        from segdist.ops.resize import cross_entropy_sum

        return cross_entropy_sum(outputs, masks, align_corners, self._weights) / divisors
