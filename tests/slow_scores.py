"""The definitions of the scores, pixel by pixel, in plain Python: what the tests hold the fast code against.

`mean_iou` is written from the description of Hugging Face evaluate's metric of that name in the issue's notes, not from
its code, and is itself checked against numbers that the original computed (tests/data/mean_iou_reference.json).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np


def areas(
    preds: Iterable[Any],
    masks: Iterable[Any],
    ignore_index: int | None,
    label_map: dict[int, int] | None = None,
    reduce_labels: bool = False,
) -> tuple[Counter[int], Counter[int], Counter[int]]:
    """(intersection, true, predicted) pixels by value, over all pictures."""
    hit, true, predicted = Counter[int](), Counter[int](), Counter[int]()
    for pred, mask in zip(preds, masks, strict=True):
        for p, m in zip(np.asarray(pred).ravel().tolist(), np.asarray(mask).ravel().tolist(), strict=True):
            p, m = int(p), int(m)
            if label_map is not None:
                m = label_map.get(m, m)
            if reduce_labels:
                m = 255 if m in (0, 255) else m - 1
            if m == ignore_index:
                continue
            true[m] += 1
            predicted[p] += 1
            hit[p] += p == m
    return hit, true, predicted


def mean_iou(
    preds: Iterable[Any],
    masks: Iterable[Any],
    num_labels: int,
    ignore_index: int | None,
    nan_to_num: float | None = None,
    label_map: dict[int, int] | None = None,
    reduce_labels: bool = False,
) -> dict[str, Any]:
    """What evaluate's mean_iou returns."""
    hit, true, predicted = areas(preds, masks, ignore_index, label_map, reduce_labels)
    classes = range(num_labels)
    iou = np.array([ratio(hit[k], true[k] + predicted[k] - hit[k]) for k in classes])
    accuracy = np.array([ratio(hit[k], true[k]) for k in classes])
    result = {
        "mean_iou": mean(iou),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": ratio(sum(hit[k] for k in classes), sum(true[k] for k in classes)),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }
    if nan_to_num is None:
        return result
    return {name: np.where(np.isnan(value), nan_to_num, value)[()] for name, value in result.items()}


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def mean(values: np.ndarray) -> float:
    """Over what is not NaN; summed as numpy's nanmean does, with 0 in place of NaN, so that the last bit agrees."""
    present = ~np.isnan(values)
    return float(np.where(present, values, 0.0).sum() / present.sum()) if present.any() else float("nan")


def boundary(mask: np.ndarray, reach: int) -> np.ndarray:
    """bool (H, W) of a bool mask, as the paper's code makes it: a frame of one px of 0, `reach` erosions by 3x3 px (beyond
    the frame nothing erodes, as in OpenCV), and what they took away."""
    eroded = np.pad(mask, 1, constant_values=False)
    h, w = eroded.shape
    for _ in range(reach):
        padded = np.pad(eroded, 1, constant_values=True)
        eroded = np.logical_and.reduce([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)])
    return mask & ~eroded[1:-1, 1:-1]
