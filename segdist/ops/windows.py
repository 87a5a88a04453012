"""Minimum and maximum over the square window around each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def window_min(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the minimum over the (2 reach + 1)^2 px window around each pixel of uint8 (..., H, W).

    Windows are clipped at the image border. Window sizes are doubled, so a pixel costs about log2(reach) operations per axis.
    """
    values = F.pad(values, (reach, reach, reach, reach), value=255)
    for axis in (-2, -1):
        size, wanted = 1, 2 * reach + 1
        while size < wanted:
            step = min(size, wanted - size)
            length = values.shape[axis] - step
            values = torch.minimum(values.narrow(axis, 0, length), values.narrow(axis, step, length))
            size += step
    return values


def window_max(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the maximum over the same windows as `window_min`."""
    return 255 - window_min(255 - values, reach)
