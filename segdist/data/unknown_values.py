"""Errors for mask values and colours that the label contract does not name, with pixel counts and the likely cause."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from segdist.data.labels import Labels, hex_of
from segdist.errors import LabelError, first_few

_MAX_LISTED = 8  # values in a message
_STRAY, _STRAY_SHARE = 4, 0.1  # more unknown values than this, in less than this share of the pixels, are artefacts
_MAX_VOID = 3  # suggest --void for at most this many unknown values
_MAX_RANGES = 12  # ranges of values in a message
MAX_COLORS = 4096  # a mask with more unknown colours is a photo or badly compressed


def check(counts: np.ndarray, labels: Labels, name: str) -> None:
    """Raise LabelError if a mask with these value counts holds a value that the contract does not name."""
    values = np.flatnonzero(counts)
    known = labels.known_values
    unknown = [int(v) for v in values if int(v) not in known]
    if unknown:
        listed = first_few([f"{v} ({counts[v]} pixels)" for v in unknown], _MAX_LISTED)
        raise LabelError(f"{name}: unknown mask value {listed}. {_likely_cause(counts, unknown, labels)}")


def _likely_cause(counts: np.ndarray, unknown: list[int], labels: Labels) -> str:
    k, known, values = labels.num_classes, labels.known_values, np.flatnonzero(counts)
    declared = f"The contract declares {k} classes with values {format_ranges(known - set(labels.void))}"
    declared += f", and void {format_ranges(labels.void)}." if labels.void else "."
    void = "--void " + ",".join(map(str, sorted({*labels.void, *unknown})))  # --void replaces the default
    if 255 in unknown and max(known) > 255:
        return f"{declared} Were 16-bit masks clipped to 8 bits (255) when saved? Export them as 16-bit PNG"
    if set(values.tolist()) <= {0, 255} and 255 in unknown:
        return f"{declared} The only foreground value is 255. Did you mean class 1? Use --names background=0,object=255"
    if unknown == [255]:
        return f"{declared} 255 usually means void. If so, use {void}"
    if unknown == [k] and sorted(known - set(labels.void)) == list(range(k)):
        return f"{declared} Use {void} if {k} is void, or --first 1 if the classes are numbered from 1. Else name class {k}"
    if unknown == [0] and min(known) > 0:
        return f"{declared} 0 is often void or background. Use {void}, or name it as a class"
    if min(unknown) >= 1000:
        return f"{declared} Values above 1000 are usually instance IDs. Use class masks (in Cityscapes *_labelIds.png)"
    step = int(np.gcd.reduce(values)) if len(values) > 1 else 0
    if len(values) <= k + 1 and step > 1 and 255 // step + 1 >= k > 1 and len(unknown) > 1:
        return (
            f"{declared} All values are multiples of {step}, as if the classes were scaled for viewing. Divide the values "
            f"by {step}, or name them with --names name=value,..."
        )
    if len(unknown) > _STRAY and (len(unknown) > _MAX_LISTED or _unknown_share(counts, unknown) < _STRAY_SHARE):
        return (
            f"{declared} So many values suggest JPEG-compressed, resized or anti-aliased masks, or a greyscale image. "
            "Export the masks as PNG, resized by nearest neighbour only. If the values are classes, name them with "
            "--names name=value,..."
        )
    if len(unknown) > _MAX_VOID:
        return f"{declared} Name them with --names name=value,..."
    return f"{declared} Name it with --names name=value,..., or make it void with {void}"


def _unknown_share(counts: np.ndarray, unknown: list[int]) -> float:
    """Return the share of pixels with unknown values other than 255, which may be an object with anti-aliased edges."""
    return float(counts[[v for v in unknown if v != 255]].sum() / counts.sum())


def unknown_colors_error(
    codes: np.ndarray, counts: np.ndarray, num_pixels: int, labels: Labels, name: str
) -> LabelError:
    """Return the error for a mask with colours that no class declares.

    `codes` (n,) are the unknown colours as 0xRRGGBB, `counts` (n,) their pixels, and `num_pixels` the size of the mask.
    """
    if len(codes) > MAX_COLORS:
        return LabelError(
            f"{name}: more than {MAX_COLORS} colours without a class. The file is a photo, or a mask that was anti-aliased, "
            "resized or JPEG-compressed. Export the mask as PNG, resized by nearest neighbour only"
        )
    found = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1).astype(np.int64)
    order = np.argsort(-counts, kind="stable")
    nearest = np.full(len(found), 255, np.int64)  # distance to the nearest declared colour
    for color in labels.rgb:
        nearest = np.minimum(nearest, np.abs(found - np.array(color)).max(1))
    listed = first_few([f"{hex_of(found[i].tolist())} ({counts[i]} pixels)" for i in order], _MAX_LISTED)
    text = f"{name}: colours without a class: {listed}, in {counts.sum() / num_pixels:.2%} of the pixels."
    if len(found) <= 3:
        return LabelError(f"{text} Name them with --names name=#rrggbb,..., or make them void with --void '#rrggbb'")
    if int(np.median(nearest)) <= 16:
        return LabelError(
            f"{text} They are close to declared colours, as after JPEG compression or colour management. Export lossless "
            f"masks, or map each pixel to the nearest colour with --color-tolerance {int(nearest.max())}"
        )
    return LabelError(
        f"{text} Mixed colours at class borders come from anti-aliasing or resizing. Export masks without either, or map "
        "each pixel to the nearest colour with --color-tolerance 255, which may be wrong at borders"
    )


def format_ranges(values: Iterable[int]) -> str:
    """Return the values as ranges: [1, 2, 3, 7] -> '1-3, 7'. Cuts long lists short."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return first_few([str(a) if a == b else f"{a}-{b}" for a, b in runs], _MAX_RANGES)
