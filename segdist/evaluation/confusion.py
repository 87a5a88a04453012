"""The exact 256 x 256 confusion matrix of masks and predictions: integers that add over images and ranks."""

from __future__ import annotations

import numpy as np
import torch

from segdist.ops import IGNORE

NUM_VALUES = 256
_BLOCK_PX = 1 << 18  # counted at a time on a CPU, so that what lies between stays in its cache
_PROBE_PX = 1 << 12
_DEVICE_BLOCK_PX = 1 << 24  # and on a GPU, where it takes some twenty bytes a pixel


def confusion_matrix(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """int64 (256, 256), on their device: pixels with [mask, pred]. Both uint8, of one shape; the memory has a bound."""
    assert pred.dtype == mask.dtype == torch.uint8 and pred.shape == mask.shape
    if pred.device.type != "cpu":
        return _device_table(pred, mask)
    table = torch.zeros(NUM_VALUES, NUM_VALUES, dtype=torch.int64)
    add_pairs(table.numpy(), pred.numpy(), mask.numpy())
    return table


def _device_table(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(NUM_VALUES * NUM_VALUES, dtype=torch.int64, device=pred.device)
    for one, true in zip(pred.flatten().split(_DEVICE_BLOCK_PX), mask.flatten().split(_DEVICE_BLOCK_PX)):
        table += torch.bincount(true.int() << 8 | one, minlength=len(table))
    return table.view(NUM_VALUES, NUM_VALUES)


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


def class_counts(table: torch.Tensor | np.ndarray, num_classes: int) -> np.ndarray:
    """int64 (3, K): intersection, true and predicted pixels of every class in a pair table, of one image or of many."""
    counts = np.asarray(table.cpu() if torch.is_tensor(table) else table, dtype=np.int64)
    assert counts.shape == (NUM_VALUES, NUM_VALUES) and 2 <= num_classes <= IGNORE
    counts = counts[:IGNORE]  # void leaves everything
    hit = np.diag(counts)[:num_classes]
    return np.stack([hit, counts[:num_classes].sum(1), counts[:, :num_classes].sum(0)])
