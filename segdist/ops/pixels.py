"""Conversion of uint8 images to model input."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_input(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], colors: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float32 (B, 3, H, W): the uint8 (B, 3, H, W) images, normalised by `mean` and `std` (of values in 0..1).

    `colors` (B, 3, 4) is an affine map of RGB in 0..255, applied first and clamped to 0..255 (see data.augment.View). The
    order of operations is that of transformers' image processors, so an exported model sees the same bits.
    """
    x = images.to(torch.float32)
    if colors is not None:
        linear, shift = colors[:, :, :3], colors[:, :, 3:]
        x = torch.baddbmm(shift, linear, x.flatten(2)).clamp_(0, 255).view(x.shape)
    shift, scale = (torch.tensor(v, device=x.device)[:, None, None] * (1.0 / (1 / 255)) for v in (mean, std))
    return x.sub_(shift).div_(scale)
