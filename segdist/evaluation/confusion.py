"""Exact 256 x 256 confusion matrices of masks and predictions: integers that add over images and ranks."""

from __future__ import annotations

import numpy as np
import torch

from segdist.ops import IGNORE

NUM_VALUES = 256
_BLOCK_PX = 1 << 18  # counted at a time on a CPU, so that temporaries stay in its cache
_PROBE_PX = 1 << 12
_DEVICE_BLOCK_PX = 1 << 24  # counted at a time on a GPU, where counting takes about twenty bytes per pixel


def confusion_matrix(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return int64 (256, 256) pixel counts of [mask, pred], on the inputs' device. Both are uint8 of the same shape.

    The inputs are counted in blocks, which bounds the memory.
    """
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
    """Count two uint8 arrays of the same shape into `table`, an int64 (256, 256) confusion matrix of [mask, pred]."""
    assert table.flags.c_contiguous and pred.dtype == mask.dtype == np.uint8 and pred.shape == mask.shape
    flat, pred, mask = table.reshape(-1), pred.ravel(), mask.ravel()
    for start in range(0, len(pred), _BLOCK_PX):
        block = slice(start, start + _BLOCK_PX)
        _add_block(flat, pred[block], mask[block])


def _add_block(table: np.ndarray, pred: np.ndarray, mask: np.ndarray) -> None:
    """Count a block by run lengths, or pixel by pixel if a probe shows that runs are short.

    Class maps consist of long runs of equal pairs. Incrementing one counter over and over stalls the processor on its own last
    store, so counting runs is faster.
    """
    probe = slice(len(pred) // 2, len(pred) // 2 + _PROBE_PX)
    changes = _changes(pred[probe], mask[probe])
    if np.count_nonzero(changes) * 8 < len(changes):
        changes = _changes(pred, mask)
    if np.count_nonzero(changes) * 8 >= len(changes):
        table += np.bincount(mask.astype(np.uint16) << 8 | pred, minlength=len(table))
        return
    ends = np.append(np.flatnonzero(changes), len(pred) - 1)
    np.add.at(table, mask[ends].astype(np.uint16) << 8 | pred[ends], np.diff(ends, prepend=-1))


def _changes(pred: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return bool (n - 1,): whether the next pixel is a different pair."""
    changes = pred[1:] != pred[:-1]
    changes |= mask[1:] != mask[:-1]
    return changes


def class_counts(table: torch.Tensor | np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 (3, K): intersection, true and predicted pixels of every class in a (256, 256) confusion matrix."""
    counts = np.asarray(table.cpu() if torch.is_tensor(table) else table, dtype=np.int64)
    assert counts.shape == (NUM_VALUES, NUM_VALUES) and 2 <= num_classes <= IGNORE
    counts = counts[:IGNORE]  # void pixels count nowhere
    hit = np.diag(counts)[:num_classes]
    return np.stack([hit, counts[:num_classes].sum(1), counts[:, :num_classes].sum(0)])
