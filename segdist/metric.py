"""Scores from an exact table of (mask, pred) pairs.

The 256 x 256 table holds everything any score needs, adds over images and ranks as integers, and costs one bincount a
image. IoU, accuracies and their means follow the `mean_iou` metric of Hugging Face evaluate, NaN for NaN: void pixels
leave everything, the predictions there included; intersections and areas are summed over all images before any division;
0/0 is NaN and leaves the mean; a class predicted but never true has IoU 0.

By hand, 3x3 pixels, 3 classes, V is void (`tests/test_metric.py` computes the same):

    mask   0 0 1      pred   0 0 1      confusion   2 1 0    I = 2 2 1, intersections: mask and pred agree on the class
           0 1 1             1 1 2      (rows true) 0 2 1    T = 3 3 1, true pixels: row sums
           2 V V             2 0 1                  0 0 1    P = 2 3 2, predicted pixels, void apart: column sums

    IoU        I / (T + P - I)   2/3 1/2 1/2   mean 5/9       the prediction under V is right or wrong for nobody
    accuracy   I / T             2/3 2/3  1    mean 7/9       also called recall
    precision  I / P              1  2/3 1/2   mean 13/18
    Dice, F1   2 I / (T + P)     4/5 2/3 2/3   mean 32/45
    overall accuracy  sum I / sum T = 5/7          frequency-weighted IoU  sum T IoU / sum T = (2 + 3/2 + 1/2) / 7 = 4/7
    Cohen's kappa  (o - e) / (1 - e) = 4/7, where o = 5/7 agree and e = sum T P / 7^2 = 17/49 would by chance: 18/32 = 9/16
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segdist.ops import IGNORE

if TYPE_CHECKING:
    from segdist.mean_iou import MeanIoU as MeanIoU
else:

    def __getattr__(name: str) -> Any:
        """`MeanIoU`, which costs the seconds of CPU time that importing `evaluate` costs, on its first use only."""
        if name != "MeanIoU":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from segdist.mean_iou import MeanIoU

        return MeanIoU


_SIDE = 256
_BLOCK_PX = 1 << 18  # counted at a time on a CPU, so that what lies between stays in its cache
_PROBE_PX = 1 << 12
_DEVICE_BLOCK_PX = 1 << 24  # and on a GPU, where it takes some twenty bytes a pixel
_CHUNK_BYTES = 32 << 20  # of resampling weights held at once


def pair_table(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """int64 (256, 256), on their device: pixels with [mask, pred]. Both uint8, of one shape; the memory has a bound."""
    assert pred.dtype == mask.dtype == torch.uint8 and pred.shape == mask.shape
    if pred.device.type != "cpu":
        return _device_table(pred, mask)
    table = torch.zeros(_SIDE, _SIDE, dtype=torch.int64)
    add_pairs(table.numpy(), pred.numpy(), mask.numpy())
    return table


def _device_table(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(_SIDE * _SIDE, dtype=torch.int64, device=pred.device)
    for one, true in zip(pred.flatten().split(_DEVICE_BLOCK_PX), mask.flatten().split(_DEVICE_BLOCK_PX)):
        table += torch.bincount(true.int() << 8 | one, minlength=len(table))
    return table.view(_SIDE, _SIDE)


def add_pairs(table: np.ndarray, pred: np.ndarray, mask: np.ndarray) -> None:
    """Counts the pairs of two uint8 arrays of one shape into an int64 (256, 256) table of [mask, pred]."""
    assert table.flags.c_contiguous and pred.dtype == mask.dtype == np.uint8 and pred.shape == mask.shape
    flat, pred, mask = table.reshape(-1), pred.ravel(), mask.ravel()
    for start in range(0, len(pred), _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        _add_block(flat, pred[block], mask[block])


def _add_block(table: np.ndarray, pred: np.ndarray, mask: np.ndarray) -> None:
    """Maps of classes are made of runs, and counting the same pair again and again makes the processor wait for its own
    last store: so runs are counted by their lengths, unless they are hardly longer than a pixel, as a look at some tells."""
    some = slice(len(pred) // 2, len(pred) // 2 + _PROBE_PX)
    turns = _turns(pred[some], mask[some])
    if np.count_nonzero(turns) * 8 < len(turns):
        turns = _turns(pred, mask)
    if np.count_nonzero(turns) * 8 >= len(turns):
        table += np.bincount(mask.astype(np.uint16) << 8 | pred, minlength=len(table))
        return
    ends = np.append(np.flatnonzero(turns), len(pred) - 1)
    np.add.at(table, mask[ends].astype(np.uint16) << 8 | pred[ends], np.diff(ends, prepend=-1))


def _turns(pred: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """bool (n - 1,): where the next pixel is another pair."""
    turns = pred[1:] != pred[:-1]
    turns |= mask[1:] != mask[:-1]
    return turns


@dataclass(frozen=True)
class Scores:
    """What a pair table says. Per-class values are NaN where a class has no pixels to say anything about.

    With I, T and P the intersection, true and predicted pixels of a class; void pixels are in none of them.
    """

    miou: float  # mean IoU over the present classes: those with T or P above 0
    mean_accuracy: float  # mean over the classes with T above 0
    overall_accuracy: float  # sum I / sum T: the share of pixels that are right
    iou: list[float]  # I / (T + P - I)
    accuracy: list[float]  # I / T
    confusion: list[list[int]]  # [true class][predicted class] pixels
    miou_all: float  # sum of IoU / num_classes: an absent class counts as 0, so one missing from a split costs a share
    dice: list[float]  # 2 I / (T + P), also called F1
    mean_dice: float  # over the present classes
    precision: list[float]  # I / P
    mean_precision: float  # over the classes with P above 0
    freq_weighted_iou: float  # sum T IoU / sum T
    kappa: float  # Cohen's: (o - e) / (1 - e), o the overall accuracy, e = sum T P / (sum T)^2

    @property
    def recall(self) -> list[float]:
        """I / T: the same as `accuracy`, by its other name."""
        return self.accuracy


def scores(table: torch.Tensor | np.ndarray, num_classes: int) -> Scores:
    """The scores of a pair table over classes 0..num_classes-1."""
    counts = class_counts(table, num_classes)
    iou = class_iou(counts)
    hit, true, predicted = counts.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy, precision = hit / true, hit / predicted
        dice = 2 * hit / (true + predicted)
        valid = true.sum()
        overall = hit.sum() / valid
        weighted = np.nansum(true * iou) / valid
        chance = (true * predicted).sum() / valid**2
        kappa = (overall - chance) / (1 - chance)
    return Scores(
        miou=_nanmean(iou),
        mean_accuracy=_nanmean(accuracy),
        overall_accuracy=float(overall),
        iou=iou.tolist(),
        accuracy=accuracy.tolist(),
        confusion=np.asarray(table, dtype=np.int64)[:num_classes, :num_classes].tolist(),
        miou_all=float(np.nansum(iou) / num_classes),
        dice=dice.tolist(),
        mean_dice=_nanmean(dice),
        precision=precision.tolist(),
        mean_precision=_nanmean(precision),
        freq_weighted_iou=float(weighted),
        kappa=float(kappa),
    )


def class_counts(table: torch.Tensor | np.ndarray, num_classes: int) -> np.ndarray:
    """int64 (3, K): intersection, true and predicted pixels of every class in a pair table, of one image or of many."""
    counts = np.asarray(table.cpu() if torch.is_tensor(table) else table, dtype=np.int64)
    assert counts.shape == (_SIDE, _SIDE) and 2 <= num_classes <= IGNORE
    counts = counts[:IGNORE]  # void leaves everything
    hit = np.diag(counts)[:num_classes]
    return np.stack([hit, counts[:num_classes].sum(1), counts[:, :num_classes].sum(0)])


def class_iou(counts: np.ndarray) -> np.ndarray:
    """float64 (..., K) IoU of int64 counts (..., 3, K) as `class_counts` and `boundary_counts` give; NaN for 0/0."""
    hit, true, predicted = np.moveaxis(counts, -2, 0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return hit / (true + predicted - hit)


def _nanmean(values: np.ndarray) -> float:
    """numpy's own nanmean, so that sums run in the order of the reference; NaN when nothing is present."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


@dataclass(frozen=True)
class Interval:
    """A percentile interval: of all resamples, the share `level` lies between `low` and `high`."""

    low: float
    high: float
    level: float
    num_resamples: int


def bootstrap_miou(counts: np.ndarray, num_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """The interval of the mIoU when images are drawn again, with replacement, as many as there are.

    `counts` int64 (N, 3, K): `class_counts` of every image. A class that a resample does not hold leaves its mean. It
    covers the choice of images, not that of training seeds. Images are drawn one by one: where they come in groups
    (frames of a video), give the summed counts of each group, or the interval is too narrow. Percentile bootstrap: Efron
    and Tibshirani, An Introduction to the Bootstrap, chapter 13; with fewer than some 30 images it tends to be too narrow.
    """
    weights = _resamples(len(counts), num_resamples, seed)
    return _percentiles(np.concatenate([_mious(w, counts) for w in weights]), level)


def bootstrap_difference(
    a: np.ndarray, b: np.ndarray, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of mIoU(b) - mIoU(a), two models on the same images in the same order: int64 (N, 3, K) each.

    Both are scored on the same resamples, so what makes an image hard for both cancels: narrower than two intervals.
    """
    assert a.shape == b.shape
    weights = _resamples(len(a), num_resamples, seed)
    return _percentiles(np.concatenate([_mious(w, b) - _mious(w, a) for w in weights]), level)


def _resamples(num_images: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """float64 (chunk, N) how often each image is in each resample; each row sums to N. Chunks bound the memory."""
    assert num_images >= 1 and num_resamples >= 1
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_BYTES // (8 * num_images))
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        drawn = rng.integers(num_images, size=(rows, num_images)) + num_images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images).astype(np.float64)


def _mious(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 (resamples,) mIoU of each resample; NaN where it holds no class at all."""
    num_images, _, num_classes = counts.shape
    sums = weights @ counts.reshape(num_images, -1).astype(np.float64)  # whole numbers below 2^53: exact in any order
    iou = class_iou(sums.reshape(-1, 3, num_classes))
    present = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        return np.nansum(iou, axis=1) / present.sum(1)


def _percentiles(values: np.ndarray, level: float) -> Interval:
    assert 0 < level < 1
    tail = (1 - level) / 2
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, [tail, 1 - tail]).tolist() if len(values) else (math.nan, math.nan)
    return Interval(low, high, level, len(values))


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
    return np.stack([torch.bincount(x.flatten(), minlength=_SIDE)[:num_classes].cpu().numpy() for x in parts])


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
