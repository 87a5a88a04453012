"""Boundary IoU: counts of the pixels near class contours (Cheng et al. 2021)."""

from __future__ import annotations

import math

import numpy as np
import torch

from segdist.evaluation.confusion import NUM_VALUES
from segdist.ops import IGNORE
from segdist.ops.windows import window_max, window_min


def boundary_counts(pred: torch.Tensor, mask: torch.Tensor, num_classes: int, ratio: float = 0.02) -> np.ndarray:
    """Return int64 (3, K): intersection, true and predicted pixels of every class within d px of its contour, of one image.

    `pred` and `mask` are uint8 (H, W). Counts add over images, and `class_iou` of the sum is the Boundary IoU of each class
    (Cheng et al. 2021, Boundary IoU: Improving Object-Centric Image Segmentation Evaluation). d is `ratio` of the image's
    diagonal, rounded, at least 1 px. A pixel is on its class's boundary if the (2d+1)^2 px window around it contains another
    class or leaves the image. The paper's code, which erodes the mask d times by 3x3 px with zero padding, gives the same.

    The paper has no void. Here, void pixels count nowhere, in the prediction either, and are not another class, so the edge
    of an unlabelled area is not a contour. Across a void gap narrower than d, the class on the other side makes a contour.
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
    """Return d: the largest distance in px from a contour at which a pixel counts as boundary."""
    return max(1, round(ratio * math.sqrt(height**2 + width**2)))


def _on_boundary(classes: torch.Tensor, reach: int) -> torch.Tensor:
    """Return bool (H, W): whether the window of `reach` px around the pixel holds another class or leaves the image.

    The result is meaningless for void pixels. Void is 255, so it is never the minimum of a window that holds a class; once it
    is replaced by 0 it is never the maximum.
    """
    least = window_min(classes, reach)
    greatest = window_max(classes.masked_fill(classes == IGNORE, 0), reach)
    edge = torch.ones_like(classes, dtype=torch.bool)
    edge[reach:-reach, reach:-reach] = False
    return (least != greatest) | edge
