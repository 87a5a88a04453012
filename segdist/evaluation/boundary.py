"""Pixels near a class contour, counted for the Boundary IoU."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from segdist.evaluation.confusion import NUM_VALUES
from segdist.ops import IGNORE


def boundary_counts(pred: torch.Tensor, mask: torch.Tensor, num_classes: int, ratio: float = 0.02) -> np.ndarray:
    """int64 (3, K) of one image: intersection, true and predicted pixels of every class within d px of its contour.

    uint8 (H, W) each. Counts add over images, and `class_iou` of the sum is the Boundary IoU of each class (Cheng et al.
    2021, Boundary IoU: Improving Object-Centric Image Segmentation Evaluation): d is `ratio` of the image's diagonal,
    rounded, at least 1 px; a pixel is on its class's boundary when the (2d+1)^2 px window around it holds another class or
    leaves the image, just as in the paper's code, which erodes the mask d times by 3x3 px, padded with 0.

    Void is as if it were not there: such pixels count nowhere, prediction included, and are no other class either, so the
    rim of an unlabelled area is nobody's contour. (The paper has no void.) Across a void seam narrower than d, the class
    on its other side still makes a contour.
    """
    assert pred.dtype == mask.dtype == torch.uint8 and pred.shape == mask.shape and pred.ndim == 2
    reach = boundary_width_px(mask.shape[0], mask.shape[1], ratio)
    void = mask == IGNORE
    pred = pred.masked_fill(void, IGNORE)
    on_true, on_pred = _on_boundary(mask, reach), _on_boundary(pred, reach)
    both = mask.masked_fill(~(on_true & on_pred & (mask == pred)), IGNORE)
    parts = (both, mask.masked_fill(~on_true, IGNORE), pred.masked_fill(~on_pred, IGNORE))
    return np.stack([torch.bincount(x.flatten(), minlength=NUM_VALUES)[:num_classes].cpu().numpy() for x in parts])


def boundary_width_px(height: int, width: int, ratio: float = 0.02) -> int:
    """How many px from its contour a pixel still counts as boundary."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def _on_boundary(classes: torch.Tensor, reach: int) -> torch.Tensor:
    """bool (H, W): the window of `reach` px around the pixel holds another class than its own, or leaves the image.

    Of void pixels it says nothing. Void is 255, so it is never the least value of a window that holds a class, and once it
    is written as 0 it is never the greatest.
    """
    least = _window(classes, reach, torch.minimum, IGNORE)
    greatest = _window(classes.masked_fill(classes == IGNORE, 0), reach, torch.maximum, 0)
    edge = torch.ones_like(classes, dtype=torch.bool)
    edge[reach:-reach, reach:-reach] = False
    return (least != greatest) | edge


def _window(x: torch.Tensor, reach: int, extreme: Callable[..., torch.Tensor], neutral: int) -> torch.Tensor:
    """The minimum (or maximum) over the (2 reach + 1)^2 px around each pixel; beyond the image all is `neutral`.

    Windows are doubled until they are wide enough, so a pixel costs log2(reach) operations a side.
    """
    x = torch.nn.functional.pad(x, (reach, reach, reach, reach), value=neutral)
    for axis in (0, 1):
        size, wanted = 1, 2 * reach + 1
        while size < wanted:
            step = min(size, wanted - size)
            length = x.shape[axis] - step
            x = extreme(x.narrow(axis, 0, length), x.narrow(axis, step, length))
            size += step
    return x
