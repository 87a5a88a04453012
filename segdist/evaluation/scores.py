"""Scores from an exact confusion matrix.

The 256 x 256 confusion matrix holds everything that any score needs, adds over images and ranks as integers, and costs one
bincount per image. IoU, accuracies and their means equal those of Hugging Face evaluate's `mean_iou`, including NaN: void
pixels are ignored, including the predictions there; intersections and areas are summed over all images before any division;
0/0 is NaN and leaves the mean; a class that is predicted but never true has IoU 0.

A worked example: 3x3 pixels, 3 classes, V is void (`tests/test_metric.py` computes the same):

    mask   0 0 1      pred   0 0 1      confusion   2 1 0    I = 2 2 1, intersections: mask and pred agree on the class
           0 1 1             1 1 2      (rows true) 0 2 1    T = 3 3 1, true pixels: row sums
           2 V V             2 0 1                  0 0 1    P = 2 3 2, predicted pixels without void: column sums

    IoU        I / (T + P - I)   2/3 1/2 1/2   mean 5/9       the prediction under V counts nowhere
    accuracy   I / T             2/3 2/3  1    mean 7/9       also called recall
    precision  I / P              1  2/3 1/2   mean 13/18
    Dice, F1   2 I / (T + P)     4/5 2/3 2/3   mean 32/45
    overall accuracy  sum I / sum T = 5/7          frequency-weighted IoU  sum T IoU / sum T = (2 + 3/2 + 1/2) / 7 = 4/7
    Cohen's kappa  (o - e) / (1 - e) = 9/16, where o = 5/7 is observed and e = sum T P / 7^2 = 17/49 expected by chance
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from segdist.evaluation.confusion import class_counts


@dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix. Per-class values are NaN for 0/0.

    I, T and P are the intersection, true and predicted pixels of a class. Void pixels are in none of them.
    """

    miou: float  # mean IoU over the present classes: those with T or P above 0
    mean_accuracy: float  # mean over the classes with T above 0
    overall_accuracy: float  # sum I / sum T: the share of correct pixels
    iou: list[float]  # I / (T + P - I)
    accuracy: list[float]  # I / T
    confusion: list[list[int]]  # [true class][predicted class] pixels
    miou_all: float  # sum of IoU / num_classes: a class absent from the split counts as 0
    dice: list[float]  # 2 I / (T + P), also called F1
    mean_dice: float  # over the present classes
    precision: list[float]  # I / P
    mean_precision: float  # over the classes with P above 0
    freq_weighted_iou: float  # sum T IoU / sum T
    kappa: float  # Cohen's: (o - e) / (1 - e), o the overall accuracy, e = sum T P / (sum T)^2

    @property
    def recall(self) -> list[float]:
        """I / T, another name for `accuracy`."""
        return self.accuracy


def scores(table: torch.Tensor | np.ndarray, num_classes: int) -> Scores:
    """Return the scores of a (256, 256) confusion matrix over classes 0..num_classes-1."""
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


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Return float64 (..., K): the IoU of int64 counts (..., 3, K) from `class_counts` or `boundary_counts`; NaN for 0/0."""
    hit, true, predicted = np.moveaxis(counts, -2, 0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return hit / (true + predicted - hit)


def _nanmean(values: np.ndarray) -> float:
    """Return numpy's nanmean, which adds in the order of the reference implementation, or NaN if all values are NaN."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))
