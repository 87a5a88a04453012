"""RGB masks: conversion of colours to raw values, which are positions in the contract's list of colours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segdist.data.labels import Labels
from segdist.data.unknown_values import MAX_COLORS, unknown_colors_error
from segdist.errors import LabelError

_BLOCK_PIXELS = 1 << 18  # pixels converted at a time
_MAX_DISTANCES = 1 << 20  # colour distances held at a time


def color_indices(pixels: np.ndarray, labels: Labels, tolerance: int, name: str) -> np.ndarray:
    """Return uint8 or uint16 (H, W): for each pixel of uint8 (H, W, 3), the position of its colour in the contract.

    Raises LabelError if colours are farther than `tolerance` from every declared one.
    """
    if pixels.ndim != 3:
        raise LabelError(
            f"{name}: the contract declares colours, but this mask has one channel. Declare values instead"
        )
    declared = _codes(np.array(labels.rgb, np.uint8))
    order = np.argsort(declared)
    raw = np.empty(pixels.shape[:2], np.uint8 if len(labels.rgb) <= 256 else np.uint16)
    far, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
    for rows in _blocks(pixels):
        codes = _codes(pixels[rows])
        at = order[np.searchsorted(declared, codes, sorter=order).clip(max=len(order) - 1)]
        strange = declared[at] != codes
        if strange.any():
            found, inverse, num = np.unique(codes[strange], return_inverse=True, return_counts=True)
            nearest = _nearest(found, labels, tolerance)
            at[strange] = nearest[inverse.reshape(-1)]
            far, counts = _merge_counts(far, counts, found[nearest < 0], num[nearest < 0])
        raw[rows] = at
        if len(far) > MAX_COLORS:
            break
    if len(far):
        raise unknown_colors_error(far, counts, pixels.shape[0] * pixels.shape[1], labels, name)
    return raw


def describe_colors(pixels: np.ndarray) -> str:
    """Return the colours of a mask that holds few of them, in parentheses, for an error message."""
    found: set[int] = set()
    for rows in _blocks(pixels):
        found |= set(np.unique(_codes(pixels[rows])).tolist())
        if len(found) > 12:
            return " (more than 12 of them)"
    return f" ({', '.join(f'#{code:06x}' for code in sorted(found))})"


def _blocks(pixels: np.ndarray) -> Iterator[slice]:
    """Yield slices of rows of an image (H, W, ...) with a bounded number of pixels each."""
    num_rows = max(1, _BLOCK_PIXELS // max(pixels.shape[1], 1))
    for top in range(0, pixels.shape[0], num_rows):
        yield slice(top, top + num_rows)


def _codes(colors: np.ndarray) -> np.ndarray:
    """Return uint32 (...): 0xRRGGBB of uint8 colours (..., 3 or more)."""
    r, g, b = (colors[..., i].astype(np.uint32) for i in range(3))
    return r << 16 | g << 8 | b


def _nearest(codes: np.ndarray, labels: Labels, tolerance: int) -> np.ndarray:
    """Return int64 (n,): the position of the nearest declared colour of each code, or -1 if none is within the tolerance."""
    found = np.full(len(codes), -1, np.int64)
    if not tolerance:
        return found
    declared, step = np.array(labels.rgb, np.int16), max(1, _MAX_DISTANCES // len(labels.rgb))
    for start in range(0, len(codes), step):
        some = codes[start : start + step]
        colors = np.stack([some >> 16, some >> 8 & 255, some & 255], 1).astype(np.int16)
        away = np.abs(colors[:, None] - declared).max(2)  # (some, declared)
        found[start : start + step] = np.where(away.min(1) <= tolerance, away.argmin(1), -1)
        if (found[: start + step] < 0).sum() > MAX_COLORS:  # already an error, whatever the other colours are
            break
    return found


def _merge_counts(
    codes: np.ndarray, counts: np.ndarray, more: np.ndarray, num: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the union of two sets of codes with their added counts."""
    both, inverse = np.unique(np.concatenate([codes, more]), return_inverse=True)
    total = np.zeros(len(both), np.int64)
    np.add.at(total, inverse.reshape(-1), np.concatenate([counts, num]))
    return both, total
