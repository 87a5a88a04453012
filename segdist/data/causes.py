"""Mask values that the contract does not name: refused with file, value, pixel count and the likely cause."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from segdist.data.labels import Labels, hex_of
from segdist.errors import LabelError

_SHOWN = 8


def check(counts: np.ndarray, labels: Labels, name: str) -> None:
    """Raises LabelError when a mask with these value counts holds a value that the contract does not name."""
    values = np.flatnonzero(counts)
    known = labels.known
    unknown = [int(v) for v in values if int(v) not in known]
    if unknown:
        shown = _few([f"{v} ({counts[v]} pixels)" for v in unknown])
        raise LabelError(f"{name}: unknown mask value {shown}. {_likely_cause(values, unknown, labels)}")


def _likely_cause(values: np.ndarray, unknown: list[int], labels: Labels) -> str:
    k, known = labels.num_classes, labels.known
    declared = f"The contract declares {k} classes with values {ranges(known)}."
    void = "--void " + ",".join(map(str, sorted({*labels.void, *unknown[:_SHOWN]})))  # it replaces the default
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
    if len(values) > 2 * k and len(unknown) > _SHOWN:
        return f"{declared} So many values suggest JPEG-compressed, resized or anti-aliased masks, or a grey picture."
    return f"{declared} Name it with --names name=value,... or make it void with {void}"


def strange_colors(pixels: np.ndarray, strange: np.ndarray, labels: Labels, name: str) -> LabelError:
    """The error for an RGB mask (H, W, 3) whose pixels `strange` (H, W) show no colour of the contract."""
    found, counts = np.unique(pixels[strange], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    declared = np.array(labels.rgb, np.int64)
    away = np.abs(found[:, None].astype(np.int64) - declared).max(2).min(1)  # to the nearest declared colour
    shown = _few([f"{hex_of(found[i].tolist())} ({counts[i]} pixels)" for i in order])
    text = f"{name}: colours without a class: {shown}; {strange.mean():.2%} of its pixels."
    if len(found) <= 3:
        return LabelError(f"{text} Name them with --names name=#rrggbb,... or make them void with --void '#rrggbb'")
    if int(np.median(away)) <= 16:
        return LabelError(
            f"{text} They lie near the declared ones, as JPEG or colour management makes them; export lossless masks, or take "
            f"the nearest colour with --color-tolerance {int(away.max())}"
        )
    return LabelError(
        f"{text} Mixtures at the borders of classes come from anti-aliasing or resizing: export masks without either "
        "(nearest neighbour)"
    )


def ranges(values: Iterable[int]) -> str:
    """1,2,3,7 -> '1-3, 7'."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _few(parts: Sequence[str]) -> str:
    return ", ".join(parts[:_SHOWN]) + (", ..." if len(parts) > _SHOWN else "")
