"""Parsing of `--names` and `--palette`: a label contract from a preset, a list, a file or the Hub."""

from __future__ import annotations

import re
import reprlib  # repr() of a YAML value with aliases may be endless
from collections.abc import Sequence
from typing import Any

import yaml

from segdist import console, storage
from segdist.config.reading import parse_yaml
from segdist.data.labels import Color, Labels, color_of, generated_colors, plain
from segdist.data.presets import CONTRACTS, PALETTES
from segdist.errors import LabelError, MissingError, StorageError

DEFAULT_VOID: tuple[int, ...] = (255,)
VOID_NAMES = {"unlabeled", "unlabelled", "void", "ignore", "ignored"}  # class names that mean void in an id2label file
_FILES = (".txt", ".json", ".yaml", ".yml")


def parse_names(text: str, void: Sequence[int | Color] | None = None, first: int = 0) -> Labels:
    """Return the contract that `--names` describes. `first` is the mask value of the first class; lower values are void.

    `text` is one of:

    - a preset, such as `cityscapes`
    - a comma-separated list of name, name=value or name=#rrggbb
    - a file: a path, `s3://`, `https://` or `hf://datasets/OWNER/NAME/FILE`. It holds one name per line (.txt), an id2label
      mapping `{"0": "sky", ...}` (id2label.json or config.json), or a full contract (.yaml, .json)
    - the Hub ID OWNER/NAME of a dataset with an id2label.json

    A full contract is `classes: [{name: sky, raw: [0, 3], color: "#4682b4"}, ...]` and `void: [255]`. For masks that hold
    colours, use `rgb:` instead of `raw:`, and colours in `void`. Raises LabelError.
    """
    if text in CONTRACTS:
        if void is not None or first:
            raise LabelError(f"--names {text} already defines values and void. Leave out --void and --first")
        return CONTRACTS[text]
    if storage.redacted(text).endswith(_FILES):
        return _from_file(text, void, first)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _from_file(f"hf://datasets/{text}/id2label.json", void, first)
    names: list[str] = []
    values: list[int | Color] = []
    for i, part in enumerate(p.strip() for p in text.split(",")):
        name, equals, value = (p.strip() for p in part.partition("="))
        if not name or (equals and not re.fullmatch(r"\d+|#[0-9a-fA-F]{6}", value)):
            raise LabelError(
                f"--names: cannot read {part!r}. Write sky,road,car or sky=0,road=7,car=26 or sky=#4682b4,road=#804080, or "
                f"give a file or one of {', '.join(CONTRACTS)}"
            )
        names.append(name)
        values.append(color_of(value) if value.startswith("#") else int(value) if equals else i + first)
    return _contract(names, values, void, first)


def named_palette(name: str, num_classes: int) -> list[Color]:
    """Return the first `num_classes` colours of a palette. Raises LabelError if it is unknown or too short."""
    if name not in PALETTES:
        raise LabelError(f"unknown --palette {name!r}. Choose from {', '.join(PALETTES)}")
    if len(PALETTES[name]) < num_classes:
        raise LabelError(
            f"--palette {name} has {len(PALETTES[name])} colours, but there are {num_classes} classes. Use `generated`"
        )
    return PALETTES[name][:num_classes]


def _contract(
    names: list[str], values: list[int | Color], void: Sequence[int | Color] | None, first: int = 0
) -> Labels:
    """Return a contract from values that are all integers or all colours."""
    if all(isinstance(v, int) for v in values):
        numbers = [v for v in values if isinstance(v, int)]
        below = [v for v in range(first) if v not in numbers]
        given = DEFAULT_VOID if void is None else void
        if not all(isinstance(v, int) for v in given):
            raise LabelError("--void is a colour, but the classes have values. Give both as colours, or both as values")
        return plain(names, dict.fromkeys([*below, *(v for v in given if isinstance(v, int))]), numbers)
    classes = [{"name": n, "rgb": [v]} for n, v in zip(names, values)]
    return contract_by_colors(classes, void or ())


def contract_by_colors(classes: list[dict[str, Any]], void: Sequence[Any]) -> Labels:
    """Return a contract for masks that hold colours. Raw value i is the i-th declared colour."""
    rgb: list[Color] = []
    tree = []
    for c in classes:
        colors = [color_of(v) for v in _color_list(c.get("rgb"), c)]
        raw = list(range(len(rgb), len(rgb) + len(colors)))
        tree.append({"name": c.get("name"), "raw": raw, "color": c.get("color", colors[0])})
        rgb += colors
    blank = [color_of(v) for v in void]
    if len({*rgb, *blank}) < len(rgb) + len(blank):
        twice = next(c for i, c in enumerate([*rgb, *blank]) if c in [*rgb, *blank][:i])
        raise LabelError(f"colour {list(twice)} is declared twice. Give every colour one meaning")
    return Labels.from_json(
        {"classes": tree, "void": list(range(len(rgb), len(rgb) + len(blank))), "rgb": [*rgb, *blank]}
    )


def _color_list(colors: Any, c: dict[str, Any]) -> list[Any]:
    """Return one colour or a list of colours as a list."""
    if isinstance(colors, str):
        return [colors]
    if not isinstance(colors, list) or not colors:
        raise LabelError(
            f"class {reprlib.repr(c.get('name'))} has no colours. Give them as rgb: ['#8040a0'], as for the other classes"
        )
    return [colors] if all(isinstance(v, int) for v in colors) else colors


def _from_file(uri: str, void: Sequence[int | Color] | None, first: int) -> Labels:
    try:
        text = storage.read(uri).decode("utf-8-sig")  # editors on Windows write a byte order mark
        uri = storage.redacted(uri)
        tree = _read_lines(text) if uri.endswith(".txt") else parse_yaml(text)  # JSON is YAML
        return _from_tree(tree, void, first)
    except MissingError as error:
        raise LabelError(f"--names: there is no such file: {error}") from None
    except (LabelError, StorageError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabelError(f"--names: cannot read {storage.redacted(uri)}: {error}") from None
    except (RecursionError, ValueError) as error:  # PyYAML, for deeply nested brackets and invalid dates
        raise LabelError(f"--names: cannot read {storage.redacted(uri)} as YAML: {error}") from None


def _read_lines(text: str) -> list[str]:
    """Return one name per line. Raises LabelError for an empty line, which would shift the values of later names."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise LabelError(f"line {lines.index('') + 1} is empty. Remove it, or give this mask value a name")
    return lines


def _from_tree(tree: Any, void: Sequence[int | Color] | None, first: int) -> Labels:
    """Return a contract from a list of names, an id2label mapping or a full contract."""
    if isinstance(tree, dict) and isinstance(tree.get("id2label"), dict):
        tree = tree["id2label"]
    if isinstance(tree, list):
        names = [_class_name(n) for n in tree]
        return _contract(names, list(range(first, first + len(names))), void, first)
    if isinstance(tree, dict) and isinstance(tree.get("classes"), list):
        return _full_contract(tree, void)
    if not isinstance(tree, dict) or not all(re.fullmatch(r"[0-9]{1,9}", str(k)) for k in tree):
        raise LabelError(
            "the content is neither a list of names, nor an id2label mapping ({0: sky, 1: road}), nor a contract"
        )
    pairs = sorted((int(k) + first, _class_name(v)) for k, v in tree.items())
    blank = [v for v, n in pairs if n.lower() in VOID_NAMES]
    if blank:
        listed = ", ".join(f"{v} ({n!r})" for v, n in pairs if v in blank)
        console.say(
            f"treating mask value {listed} as void because of its name. To make it a class, use a contract file"
        )
        pairs = [(v, n) for v, n in pairs if v not in blank]
    return _contract(
        [n for _, n in pairs], [v for v, _ in pairs], [*(DEFAULT_VOID if void is None else void), *blank], first
    )


def _class_name(value: Any) -> str:
    """Return a class name as text. Booleans are errors: YAML reads yes, no, on and off as such."""
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise LabelError(f"{reprlib.repr(value)} is not a class name. Write it in quotes")
    return str(value).strip()


def _full_contract(tree: dict[str, Any], void: Sequence[int | Color] | None) -> Labels:
    classes = tree["classes"]
    if not all(isinstance(c, dict) and set(c) <= {"name", "raw", "rgb", "color"} for c in classes):
        raise LabelError(
            "each class must be a mapping with name, raw (or rgb) and, optionally, color. Remove other keys"
        )
    blank = void if void is not None else tree.get("void")
    if any("rgb" in c for c in classes):
        if not isinstance(blank, Sequence | None) or isinstance(blank, str):
            raise LabelError("`void` is not a list. Write void colours as void: ['#000000']")
        return contract_by_colors(classes, blank or ())
    colors = generated_colors(len(classes))
    colored = [{"color": color, **c} for c, color in zip(classes, colors)]
    return Labels.from_json({"void": DEFAULT_VOID if blank is None else blank, "classes": colored})
