"""The label contract: what the raw integers in a data set's masks mean, declared once and applied by one lookup table.

Masks at rest hold the source's integers. Everything behind `Labels.table` sees 0..K-1 and IGNORE.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from segdist import storage
from segdist.errors import LabelError, StorageError
from segdist.ops import IGNORE

MAX_CLASSES = 255


@dataclass(frozen=True)
class Class:
    """One class: its name, the raw mask values that mean it, and its display colour (R, G, B)."""

    name: str
    raw: tuple[int, ...]
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Labels:
    """The contract of a data set: its classes in order, and the raw values that are void."""

    classes: tuple[Class, ...]
    void: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise LabelError(
                f"a data set has 2 to {MAX_CLASSES} classes, this one declares {len(self.classes)}; "
                "for one kind of object declare two classes, for example background=0,object=1"
            )
        names = [c.name for c in self.classes]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise LabelError(f"class name {twice[0]!r} is declared twice; give every class its own name")
        values = [(v, c.name) for c in self.classes for v in c.raw] + [(v, "void") for v in self.void]
        owners: dict[int, str] = {}
        for value, name in values:
            if not 0 <= value <= 65535:
                raise LabelError(f"raw value {value} of {name!r} is outside 0..65535")
            if value in owners:
                raise LabelError(f"raw value {value} is declared twice: {owners[value]!r} and {name!r}")
            owners[value] = name

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def known(self) -> set[int]:
        """All raw values that the contract names."""
        return {v for c in self.classes for v in c.raw} | set(self.void)

    def table(self, dtype: np.dtype | type) -> np.ndarray:
        """uint8 lookup table for masks of this dtype (uint8 or uint16): raw value -> 0..K-1, or 255 for void.

        Values the contract does not name map to 255 as well; `check` has refused them before.
        """
        table = np.full(np.iinfo(dtype).max + 1, IGNORE, np.uint8)
        for k, c in enumerate(self.classes):
            for value in c.raw:
                if value < len(table):
                    table[value] = k
        return table

    def palette(self) -> np.ndarray:
        """uint8 (256, 3) display colours by class; void is black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = [c.color for c in self.classes]
        return palette

    def to_json(self) -> dict[str, Any]:
        return {
            "classes": [{"name": c.name, "raw": list(c.raw), "color": list(c.color)} for c in self.classes],
            "void": list(self.void),
        }

    @classmethod
    def from_json(cls, tree: Any) -> Labels:
        """Raises LabelError when the tree is not a contract."""
        try:
            classes = [Class(str(c["name"]), tuple(map(int, c["raw"])), _rgb(c["color"])) for c in tree["classes"]]
            return cls(tuple(classes), tuple(map(int, tree["void"])))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, LabelError):
                raise
            raise LabelError(f"not a label contract (classes with name, raw, color; and void): {error!r}") from None


def histogram(mask: np.ndarray) -> np.ndarray:
    """int64 pixel count of every raw value of a uint8 or uint16 mask."""
    return np.bincount(mask.ravel(), minlength=np.iinfo(mask.dtype).max + 1)


def check(counts: np.ndarray, labels: Labels, path: str) -> None:
    """Raises LabelError when a mask with these value counts holds a value that the contract does not name."""
    values = np.flatnonzero(counts)
    known = labels.known
    unknown = [int(v) for v in values if int(v) not in known]
    if not unknown:
        return
    shown = ", ".join(f"{v} ({counts[v]} pixels)" for v in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
    raise LabelError(f"{path}: unknown mask value {shown}. {_likely_cause(values, unknown, labels)}")


def _likely_cause(values: np.ndarray, unknown: list[int], labels: Labels) -> str:
    k = labels.num_classes
    declared = f"The contract declares {k} classes with values {_ranges(labels.known)}."
    if set(values.tolist()) <= {0, 255} and 255 in unknown:
        return f"{declared} The only foreground value is 255; did you mean class 1? Say --names background=0,object=255"
    void = "--void " + ",".join(map(str, sorted({*labels.void, *unknown[:8]})))  # it replaces the default
    if unknown == [255]:
        return f"{declared} 255 usually means void: say {void}"
    if unknown == [k]:
        return f"{declared} Is {k} void (say {void}), a class without a name, or are the masks numbered from 1?"
    if len(values) > 2 * k and len(unknown) > 8:
        return f"{declared} So many values suggest JPEG-compressed, resized or anti-aliased masks, or a grey picture."
    return f"{declared} Name it with --names name=value,... or make it void with {void}"


def _ranges(values: Iterable[int]) -> str:
    """1,2,3,7 -> '1-3, 7'."""
    runs: list[list[int]] = []
    for v in sorted(values):
        if runs and v == runs[-1][1] + 1:
            runs[-1][1] = v
        else:
            runs.append([v, v])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def generated_colors(n: int) -> list[tuple[int, int, int]]:
    """n display colours that differ clearly: hues by the golden ratio, three levels of lightness."""
    colors = []
    for i in range(n):
        r, g, b = colorsys.hls_to_rgb((0.58 + i * 0.61803398875) % 1.0, (0.45, 0.62, 0.34)[i % 3], 0.72)
        colors.append((round(r * 255), round(g * 255), round(b * 255)))
    return colors


def plain(names: Sequence[str], void: Iterable[int] = (IGNORE,), raw: Sequence[int] | None = None) -> Labels:
    """A contract with one raw value per class (0..K-1 unless given) and generated colours.

    255 is void unless it is a class; any other value of `void` must not be one.
    """
    values = list(range(len(names))) if raw is None else list(raw)
    colors = generated_colors(len(names))
    classes = tuple(Class(n, (v,), c) for n, v, c in zip(names, values, colors, strict=True))
    return Labels(classes, tuple(v for v in void if v != IGNORE or v not in values))


def parse_names(text: str, void: Sequence[int]) -> Labels:
    """The contract of `--names`: a comma list of names, of name=value pairs, or a file.

    Files: one name per line (.txt), `{"0": "sky", ...}` as the Hub's id2label.json, or a whole contract (.yaml, .json).
    """
    if text.endswith((".txt", ".json", ".yaml", ".yml")):
        return _read_names(text, void)
    names, values = [], []
    for i, part in enumerate(p.strip() for p in text.split(",")):
        name, equals, value = part.partition("=")
        if not name or (equals and not value.strip().isdigit()):
            raise LabelError(
                f"--names: cannot read {part!r}; write sky,road,car or sky=0,road=7,car=26, or give a file"
            )
        names.append(name.strip())
        values.append(int(value) if equals else i)
    return plain(names, void, values)


def _read_names(uri: str, void: Sequence[int]) -> Labels:
    try:
        text = storage.read(uri).decode()
        if uri.endswith(".txt"):
            return plain([line.strip() for line in text.splitlines() if line.strip()], void)
        tree = yaml.safe_load(text)  # JSON is YAML
    except (StorageError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabelError(f"--names: cannot read {uri}: {error}") from None
    if isinstance(tree, list):
        return plain([str(n) for n in tree], void)
    if isinstance(tree, dict) and isinstance(tree.get("classes"), list):
        colors = generated_colors(len(tree["classes"]))
        classes = [{"color": color, **c} if isinstance(c, dict) else c for c, color in zip(tree["classes"], colors)]
        return Labels.from_json({"void": list(void), **tree, "classes": classes})
    try:
        pairs = sorted((int(k), str(v)) for k, v in tree.items())
    except (AttributeError, ValueError):
        raise LabelError(f"--names: {uri} is neither a list, an id2label mapping, nor a contract") from None
    return plain([n for _, n in pairs], void, [k for k, _ in pairs])


def _rgb(color: Any) -> tuple[int, int, int]:
    r, g, b = (int(c) for c in color)
    if not all(0 <= c <= 255 for c in (r, g, b)):
        raise LabelError(f"colour {list(color)} is outside 0..255")
    return r, g, b
