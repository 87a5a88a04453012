"""Bootstrap confidence intervals of the mIoU, by resampling images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from segdist.evaluation.scores import class_iou

_CHUNK_BYTES = 32 << 20  # resampling weights held at a time


@dataclass(frozen=True)
class Interval:
    """A percentile interval: the share `level` of all resamples lies between `low` and `high`."""

    low: float
    high: float
    level: float
    num_resamples: int


def bootstrap_miou(counts: np.ndarray, num_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the percentile bootstrap interval of the mIoU over images, resampled N of N with replacement.

    `counts`: int64 (N, 3, K), `class_counts` of every image. A class without pixels in a resample leaves that resample's
    mean. The interval covers the choice of images, not the choice of training seed. Images are resampled independently. If
    they come in clusters (frames of a video), pass the summed counts of each cluster; otherwise the interval is too narrow.
    It also tends to be too narrow with fewer than about 30 images. Source: Efron and Tibshirani, An Introduction to the
    Bootstrap, chapter 13.
    """
    weights = _resamples(len(counts), num_resamples, seed)
    return _percentiles(np.concatenate([_mious(w, counts) for w in weights]), level)


def bootstrap_difference(
    a: np.ndarray, b: np.ndarray, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the interval of mIoU(b) - mIoU(a) for two models on the same images in the same order, int64 (N, 3, K) each.

    Both models are scored on the same resamples. Differences in image difficulty cancel, so the interval is narrower than a
    comparison of two separate intervals.
    """
    assert a.shape == b.shape
    weights = _resamples(len(a), num_resamples, seed)
    return _percentiles(np.concatenate([_mious(w, b) - _mious(w, a) for w in weights]), level)


def _resamples(num_images: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield float64 (chunk, N): how often each image is in each resample. Rows sum to N. Chunks bound the memory."""
    assert num_images >= 1 and num_resamples >= 1
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_BYTES // (8 * num_images))
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        drawn = rng.integers(num_images, size=(rows, num_images)) + num_images * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_images).reshape(rows, num_images).astype(np.float64)


def _mious(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return float64 (resamples,): the mIoU of each resample, NaN if it has no class at all."""
    num_images, _, num_classes = counts.shape
    sums = weights @ counts.reshape(num_images, -1).astype(np.float64)  # integers below 2^53: exact in any order
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
