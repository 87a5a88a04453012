"""The label contract: the meaning of the raw integers in a dataset's masks, declared once and applied by one lookup table.

Stored masks hold the source's integers, or the position of each colour in the contract if the source's masks hold
colours. Everything after `Labels.table` sees 0..K-1 and IGNORE.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segdist.errors import LabelError
from segdist.ops import IGNORE

MAX_CLASSES = 255
_CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories: control, surrogate, line and paragraph separators
_BLOCK_PIXELS = 1 << 20  # pixels counted at a time

Color = tuple[int, int, int]  # R, G, B in 0..255


@dataclass(frozen=True)
class Class:
    """One class: its name, the raw mask values that mean it, and its display colour."""

    name: str
    raw: tuple[int, ...]
    color: Color


@dataclass(frozen=True)
class Labels:
    """The label contract of a dataset: its classes in order, and the raw values that are void.

    With `rgb`, the source's masks hold colours, and raw value i means the colour rgb[i].
    """

    classes: tuple[Class, ...]
    void: tuple[int, ...]
    rgb: tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise LabelError(
                f"a dataset has 2 to {MAX_CLASSES} classes, but the contract declares {len(self.classes)}. "
                "For one kind of object declare two classes, for example background=0,object=1"
            )
        names = [c.name for c in self.classes]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise LabelError(f"class name {twice[0]!r} is declared twice. Give every class its own name")
        if invalid := [n for n in names if any(unicodedata.category(c) in _CONTROL for c in n)]:
            raise LabelError(f"class name {invalid[0]!a} contains a control character. Remove it")
        values = [(v, c.name) for c in self.classes for v in c.raw] + [(v, "void") for v in self.void]
        owners: dict[int, str] = {}
        for value, name in values:
            if not 0 <= value <= 65535:
                raise LabelError(f"raw value {value} of {name!r} is outside 0..65535")
            if value in owners:
                what = hex_of(self.rgb[value]) if value < len(self.rgb) else f"raw value {value}"
                raise LabelError(f"{what} is declared twice: {owners[value]!r} and {name!r}")
            owners[value] = name
        if self.rgb and set(owners) != set(range(len(self.rgb))):
            raise LabelError("in a contract by colours, every class needs a colour, and every colour a class or void")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def known_values(self) -> set[int]:
        """Return all raw values that the contract names, void included."""
        return {v for c in self.classes for v in c.raw} | set(self.void)

    def table(self, dtype: np.dtype | type) -> np.ndarray:
        """Return the uint8 lookup table for masks of this dtype (uint8 or uint16): raw value -> 0..K-1, or 255 for void.

        Values that the contract does not name also map to 255. `unknown_values.check` rejects them during preparation.
        """
        table = np.full(np.iinfo(dtype).max + 1, IGNORE, np.uint8)
        for k, c in enumerate(self.classes):
            for value in c.raw:
                if value < len(table):
                    table[value] = k
        return table

    def palette(self) -> np.ndarray:
        """Return the display colours by class, uint8 (256, 3). Void is black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = [c.color for c in self.classes]
        return palette

    def colored(self, colors: Sequence[Color]) -> Labels:
        """Return the same contract with these display colours, one per class."""
        return replace(self, classes=tuple(replace(c, color=color) for c, color in zip(self.classes, colors)))

    def meaning(self) -> str:
        """Return the sha256 of the meaning of raw values: each class's values in order, void and rgb, but not names."""
        tree = [[c.raw for c in self.classes], self.void, self.rgb]
        return hashlib.sha256(json.dumps(tree).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "classes": [{"name": c.name, "raw": list(c.raw), "color": list(c.color)} for c in self.classes],
            "void": list(self.void),
        }
        return tree | ({"rgb": [list(c) for c in self.rgb]} if self.rgb else {})

    @classmethod
    def from_json(cls, tree: Any) -> Labels:
        """Read a contract from parsed JSON. Raises LabelError if the tree is not a contract."""
        try:
            classes = [Class(_name(c["name"]), _raw_values(c["raw"]), color_of(c["color"])) for c in tree["classes"]]
            rgb = tuple(color_of(c) for c in tree.get("rgb", ()))
            if empty := [c.name for c in classes if not c.raw]:
                raise LabelError(f"class {empty[0]!r} has no raw value. Give it one, or leave the class out")
            return cls(tuple(classes), _raw_values(tree["void"]), rgb)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, LabelError):
                raise
            raise LabelError(f"not a label contract (classes with name, raw and color, and void): {error!r}") from None


def plain(names: Sequence[str], void: Iterable[int] = (IGNORE,), raw: Sequence[int] | None = None) -> Labels:
    """Return a contract with one raw value per class (default 0..K-1) and generated colours.

    255 in `void` is ignored if 255 is a class. No other value may be both void and a class.
    """
    values = list(range(len(names))) if raw is None else list(raw)
    colors = generated_colors(len(names))
    classes = tuple(Class(n, (v,), c) for n, v, c in zip(names, values, colors, strict=True))
    return Labels(classes, tuple(v for v in void if v != IGNORE or v not in values))


def histogram(mask: np.ndarray) -> np.ndarray:
    """Return the int64 pixel count of every raw value of a uint8 or uint16 mask."""
    flat, num_values = mask.ravel(), np.iinfo(mask.dtype).max + 1
    counts = np.zeros(num_values, np.int64)
    for start in range(0, flat.size, _BLOCK_PIXELS):  # in blocks, since bincount first converts each value to 8 bytes
        counts += np.bincount(flat[start : start + _BLOCK_PIXELS], minlength=num_values)
    return counts


def generated_colors(n: int) -> list[Color]:
    """Return n distinct display colours: hues spaced by the golden ratio, at three levels of lightness."""
    colors = []
    for i in range(n):
        r, g, b = colorsys.hls_to_rgb((0.58 + i * 0.61803398875) % 1.0, (0.45, 0.62, 0.34)[i % 3], 0.72)
        colors.append((round(r * 255), round(g * 255), round(b * 255)))
    return colors


def _name(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise ValueError(f"{reprlib.repr(value)} is not a class name")
    return str(value)


def _raw_values(values: Any) -> tuple[int, ...]:
    """Check that `values` is a list of integers. Floats, booleans and strings are errors."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{reprlib.repr(values)} is not a list of integers")
    return tuple(values)


def color_of(value: Any) -> Color:
    """Parse a colour written as [R, G, B] or #RRGGBB. Raises LabelError for anything else."""
    try:
        r, g, b = bytes.fromhex(value[1:]) if isinstance(value, str) and value[:1] == "#" else _raw_values(value)
    except (TypeError, ValueError):
        raise LabelError(f"invalid colour {reprlib.repr(value)}. Write '#8040a0' or [128, 64, 160]") from None
    if not all(0 <= c <= 255 for c in (r, g, b)):
        raise LabelError(f"colour {list(value)} is outside 0..255")
    return r, g, b


def hex_of(color: Sequence[int]) -> str:
    """Return the colour as #rrggbb."""
    return "#" + bytes(int(c) for c in color[:3]).hex()
