"""Masks of colours: the position in the contract of each pixel's colour, and what is said of colours that it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segdist.data.causes import MOST_COLORS, strange_colors
from segdist.data.labels import Labels
from segdist.errors import LabelError

_BLOCK_PIXELS = 1 << 18  # of colours looked up at a time
_DISTANCES = 1 << 20  # between colours, held at a time


def positions(pixels: np.ndarray, labels: Labels, tolerance: int, name: str) -> np.ndarray:
    """uint8 or uint16 (H, W): position in the contract of the colour of each pixel of uint8 (H, W, 3)."""
    if pixels.ndim != 3:
        raise LabelError(
            f"{name}: the contract declares colours, but this mask has one channel; declare values instead"
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
            far, counts = _added(far, counts, found[nearest < 0], num[nearest < 0])
        raw[rows] = at
        if len(far) > MOST_COLORS:
            break
    if len(far):
        raise strange_colors(far, counts, pixels.shape[0] * pixels.shape[1], labels, name)
    return raw


def listed(pixels: np.ndarray) -> str:
    """The colours of a mask that holds few of them, for a message."""
    found: set[int] = set()
    for rows in _blocks(pixels):
        found |= set(np.unique(_codes(pixels[rows])).tolist())
        if len(found) > 12:
            return " (more than 12 of them)"
    return f" ({', '.join(f'#{code:06x}' for code in sorted(found))})"


def _blocks(pixels: np.ndarray) -> Iterator[slice]:
    """Rows of an image (H, W, ...), a bounded number of pixels at a time."""
    num_rows = max(1, _BLOCK_PIXELS // max(pixels.shape[1], 1))
    for top in range(0, pixels.shape[0], num_rows):
        yield slice(top, top + num_rows)


def _codes(colors: np.ndarray) -> np.ndarray:
    """uint32 (...): 0xRRGGBB of uint8 colours (..., 3 or more)."""
    r, g, b = (colors[..., i].astype(np.uint32) for i in range(3))
    return r << 16 | g << 8 | b


def _nearest(codes: np.ndarray, labels: Labels, tolerance: int) -> np.ndarray:
    """int64 (n,): position of the nearest declared colour of each code, or -1 where none is within the tolerance."""
    found = np.full(len(codes), -1, np.int64)
    if not tolerance:
        return found
    declared, step = np.array(labels.rgb, np.int16), max(1, _DISTANCES // len(labels.rgb))
    for start in range(0, len(codes), step):
        some = codes[start : start + step]
        colors = np.stack([some >> 16, some >> 8 & 255, some & 255], 1).astype(np.int16)
        away = np.abs(colors[:, None] - declared).max(2)  # (some, declared)
        found[start : start + step] = np.where(away.min(1) <= tolerance, away.argmin(1), -1)
        if (found[: start + step] < 0).sum() > MOST_COLORS:  # refused whatever the others are
            break
    return found


def _added(codes: np.ndarray, counts: np.ndarray, more: np.ndarray, num: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The counts of both, code by code."""
    both, inverse = np.unique(np.concatenate([codes, more]), return_inverse=True)
    total = np.zeros(len(both), np.int64)
    np.add.at(total, inverse.reshape(-1), np.concatenate([counts, num]))
    return both, total
