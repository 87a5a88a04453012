"""Mask values that the contract does not name: refused with file, value, pixel count and the likely cause."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from segdist.data.labels import Labels, hex_of
from segdist.errors import LabelError

_SHOWN = 8
_STRAY, _STRAY_SHARE = 4, 0.1  # more values than this, in less of the pixels, are no classes
_VOID = 3  # more unknown values are not proposed as void
_RUNS = 12  # of consecutive values, in a message
MOST_COLORS = 4096  # without a class, before a mask is no mask


def check(counts: np.ndarray, labels: Labels, name: str) -> None:
    """Raises LabelError when a mask with these value counts holds a value that the contract does not name."""
    values = np.flatnonzero(counts)
    known = labels.known
    unknown = [int(v) for v in values if int(v) not in known]
    if unknown:
        shown = _few([f"{v} ({counts[v]} pixels)" for v in unknown])
        raise LabelError(f"{name}: unknown mask value {shown}. {_likely_cause(counts, unknown, labels)}")


def _likely_cause(counts: np.ndarray, unknown: list[int], labels: Labels) -> str:
    k, known, values = labels.num_classes, labels.known, np.flatnonzero(counts)
    declared = f"The contract declares {k} classes with values {ranges(known - set(labels.void))}"
    declared += f", and void {ranges(labels.void)}." if labels.void else "."
    void = "--void " + ",".join(map(str, sorted({*labels.void, *unknown})))  # it replaces the default
    if 255 in unknown and max(known) > 255:
        return (
            f"{declared} 255 is where 8 bits end: were masks of 16 bits clipped when saved? Export them as 16-bit PNG"
        )
    if set(values.tolist()) <= {0, 255} and 255 in unknown:
        return f"{declared} The only foreground value is 255; did you mean class 1? Say --names background=0,object=255"
    if unknown == [255]:
        return f"{declared} 255 usually means void: say {void}"
    if unknown == [k] and sorted(known - set(labels.void)) == list(range(k)):
        return f"{declared} Is {k} void (say {void}), a class without a name, or are the masks numbered from 1 (--first 1)?"
    if unknown == [0] and min(known) > 0:
        return f"{declared} 0 is often void, or the background: say {void}, or name it"
    if min(unknown) >= 1000:
        return f"{declared} Values of thousands are mostly instance ids; give masks of classes (in Cityscapes *_labelIds.png)"
    step = int(np.gcd.reduce(values)) if len(values) > 1 else 0
    if len(values) <= k + 1 and step > 1 and 255 // step + 1 >= k > 1 and len(unknown) > 1:
        return (
            f"{declared} All values are multiples of {step}, as if class numbers were stretched to be seen; divide them by "
            f"{step}, or name the values that are there with --names name=value,..."
        )
    if len(unknown) > _STRAY and (len(unknown) > _SHOWN or _share(counts, unknown) < _STRAY_SHARE):
        return (
            f"{declared} So many values suggest JPEG-compressed, resized or anti-aliased masks, or a grey image: export "
            "masks without that (nearest neighbour, PNG). If they are classes, name them with --names name=value,..."
        )
    if len(unknown) > _VOID:
        return f"{declared} Name them with --names name=value,..."
    return f"{declared} Name it with --names name=value,... or make it void with {void}"


def _share(counts: np.ndarray, unknown: list[int]) -> float:
    """The share of the pixels that hold unknown values, 255 aside: it may be an object that soft edges lead to."""
    return float(counts[[v for v in unknown if v != 255]].sum() / counts.sum())


def strange_colors(codes: np.ndarray, counts: np.ndarray, num_pixels: int, labels: Labels, name: str) -> LabelError:
    """The error for a mask of `num_pixels` with colours 0xRRGGBB (n,), in `counts` (n,) pixels, that no class has."""
    if len(codes) > MOST_COLORS:
        return LabelError(
            f"{name}: more than {MOST_COLORS} colours without a class: this is a photo, or a mask that was anti-aliased, "
            "resized or JPEG-compressed; put a mask there, exported without that (nearest neighbour, PNG)"
        )
    found = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1).astype(np.int64)
    order = np.argsort(-counts, kind="stable")
    nearest = np.full(len(found), 255, np.int64)  # how far the nearest declared colour is
    for color in labels.rgb:
        nearest = np.minimum(nearest, np.abs(found - np.array(color)).max(1))
    shown = _few([f"{hex_of(found[i].tolist())} ({counts[i]} pixels)" for i in order])
    text = f"{name}: colours without a class: {shown}; {counts.sum() / num_pixels:.2%} of its pixels."
    if len(found) <= 3:
        return LabelError(f"{text} Name them with --names name=#rrggbb,... or make them void with --void '#rrggbb'")
    if int(np.median(nearest)) <= 16:
        return LabelError(
            f"{text} They lie near the declared ones, as JPEG or colour management makes them; export lossless masks, or take "
            f"the nearest colour with --color-tolerance {int(nearest.max())}"
        )
    return LabelError(
        f"{text} Mixtures at the borders of classes come from anti-aliasing or resizing: export masks without either "
        "(nearest neighbour), or take the nearest colour, a guess at such borders, with --color-tolerance 255"
    )


def ranges(values: Iterable[int]) -> str:
    """1,2,3,7 -> '1-3, 7'; of many runs the first."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:_RUNS]]
    return ", ".join(shown + ["..."] * (len(runs) > _RUNS))


def _few(parts: Sequence[str]) -> str:
    return ", ".join(parts[:_SHOWN]) + (", ..." if len(parts) > _SHOWN else "")
