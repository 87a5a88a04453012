"""How far a pixel lies from the next class, in whole pixels: the same integers on every device."""

from __future__ import annotations

import torch

from segdist.ops import IGNORE


def class_distance(masks: torch.Tensor, reach: int) -> torch.Tensor:
    """uint8 (B, H, W): chessboard distance in px to the nearest pixel of another class; 0 where that is beyond `reach`.

    masks uint8 (B, H, W); void is no class, and is 0 px away. 0 <= reach < 255. Costs `reach` passes over two bytes a pixel.
    """
    void = masks == IGNORE
    own = torch.stack([masks, torch.where(void, IGNORE, IGNORE - masks)])  # void never is the least of either
    least, alone = own, torch.zeros_like(masks)
    for _ in range(reach):
        least = _least_of_3x3(least)
        alone += ~(least < own).any(0)  # another class within r px lowers one of the two minima
    return torch.where(void | (alone == reach), 0, alone + 1)


def _least_of_3x3(values: torch.Tensor) -> torch.Tensor:
    """The least of each pixel and its eight neighbours, in the last two dimensions."""
    for dim in (-2, -1):
        size = values.shape[dim] - 1
        least = values.clone()
        for here, there in ((0, 1), (1, 0)):
            part = least.narrow(dim, here, size)
            torch.minimum(part, values.narrow(dim, there, size), out=part)
        values = least
    return values
