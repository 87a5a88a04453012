"""mIoU from an exact table of (mask, pred) pairs.

The 256 x 256 table holds everything any score needs, adds over pictures and ranks as integers, and costs one bincount a
picture. Scores follow the `mean_iou` metric of Hugging Face evaluate, NaN for NaN: void pixels leave everything, the
predictions there included; intersections and areas are summed over all pictures before any division; 0/0 is NaN and
leaves the mean; a class predicted but never true has IoU 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from segdist.ops import IGNORE

_SIDE = 256


def pair_table(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """int64 (256, 256), on their device: pixels with [mask, pred]. Both uint8, of one shape."""
    assert pred.dtype == mask.dtype == torch.uint8 and pred.shape == mask.shape
    if pred.device.type == "cpu":
        pairs = mask.numpy().astype(np.uint16) << 8 | pred.numpy()
        table = torch.from_numpy(np.bincount(pairs.ravel(), minlength=_SIDE * _SIDE))
    else:
        table = torch.bincount((mask.int() << 8 | pred).flatten(), minlength=_SIDE * _SIDE)
    return table.view(_SIDE, _SIDE)


@dataclass(frozen=True)
class Scores:
    """What a pair table says. Per-class values are NaN where a class has no pixels to say anything about."""

    miou: float
    mean_accuracy: float
    overall_accuracy: float
    iou: list[float]
    accuracy: list[float]
    confusion: list[list[int]]  # [true class][predicted class] pixels


def scores(table: torch.Tensor | np.ndarray, num_classes: int) -> Scores:
    """The scores of a pair table over classes 0..num_classes-1."""
    counts = np.asarray(table, dtype=np.int64)
    assert counts.shape == (_SIDE, _SIDE) and 2 <= num_classes <= IGNORE
    counts = counts[:IGNORE]  # void leaves everything
    hit = np.diag(counts)[:num_classes].astype(np.float64)
    true = counts[:num_classes].sum(1).astype(np.float64)
    predicted = counts[:, :num_classes].sum(0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hit / (true + predicted - hit)
        accuracy = hit / true
        overall = hit.sum() / true.sum()
    return Scores(
        _nanmean(iou),
        _nanmean(accuracy),
        float(overall),
        iou.tolist(),
        accuracy.tolist(),
        counts[:num_classes, :num_classes].tolist(),
    )


def _nanmean(values: np.ndarray) -> float:
    """numpy's own nanmean, so that sums run in the order of the reference; NaN when nothing is present."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
