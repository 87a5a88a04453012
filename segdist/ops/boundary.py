"""Distance of each pixel to the nearest other class, in whole pixels. The result is the same integer on every device."""

from __future__ import annotations

import torch

from segdist.ops import IGNORE
from segdist.ops.windows import window_min


def class_distance(masks: torch.Tensor, reach: int) -> torch.Tensor:
    """Return uint8 (B, H, W): the chessboard distance in px to the nearest pixel of another class, or 0 beyond `reach`.

    `masks` is uint8 (B, H, W). Void pixels get 0 and do not count as another class. Requires 0 <= reach < 255. The cost is
    `reach` passes over two bytes per pixel.
    """
    void = masks == IGNORE
    # void is 255 in both, so it is never the minimum
    own = torch.stack([masks, torch.where(void, IGNORE, IGNORE - masks)])
    least, alone = own, torch.zeros_like(masks)
    for _ in range(reach):
        least = window_min(least, 1)
        alone += ~(least < own).any(0)  # another class within r px lowers one of the two minima
    return torch.where(void | (alone == reach), 0, alone + 1)
