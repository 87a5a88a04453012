"""What `--names`, `--void` and `--palette` say: a contract by preset, in a line, from a file, or from the Hub."""

from __future__ import annotations

import re
import reprlib  # what a file holds may be endless when written out
from collections.abc import Sequence
from typing import Any

import yaml

from segdist import console, storage
from segdist.data.labels import Color, Labels, color_of, generated_colors, plain
from segdist.data.presets import CONTRACTS, PALETTES
from segdist.errors import LabelError, MissingError, StorageError

DEFAULT_VOID: tuple[int, ...] = (255,)
VOID_NAMES = {"unlabeled", "unlabelled", "void", "ignore", "ignored"}  # in files that cannot say void in another way
_FILES = (".txt", ".json", ".yaml", ".yml")


def parse_names(text: str, void: Sequence[int | Color] | None = None, first: int = 0) -> Labels:
    """The contract of `--names`. `first` is the mask value of the first class; where it is not 0, smaller values are void.

    TEXT is a preset (`cityscapes`); a comma list of names, of name=value or name=#rrggbb; a file: one name per line (.txt),
    `{"0": "sky", ...}` (id2label.json, or a config.json that holds one), or a whole contract (.yaml, .json), each a path,
    `s3://`, `https://` or `hf://datasets/OWNER/NAME/FILE`; or the id OWNER/NAME of a Hub data set with an id2label.json.

    A whole contract: `classes: [{name: sky, raw: [0, 3], color: "#4682b4"}, ...]` and `void: [255]`; for masks of colours
    `rgb:` instead of `raw:`, and colours in `void`. Raises LabelError.
    """
    if text in CONTRACTS:
        if void is not None or first:
            raise LabelError(f"--names {text} knows its values and its void; leave --void and --first out")
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
                f"--names: cannot read {part!r}; write sky,road,car or sky=0,road=7,car=26 or sky=#4682b4,road=#804080, give "
                f"a file, or one of {', '.join(CONTRACTS)}"
            )
        names.append(name)
        values.append(color_of(value) if value.startswith("#") else int(value) if equals else i + first)
    return _contract(names, values, void, first)


def palette(name: str, num_classes: int) -> list[Color]:
    """The first colours of a named palette. Raises LabelError when there is none of that name, or it is too short."""
    if name not in PALETTES:
        raise LabelError(f"--palette {name!r} is unknown; there are {', '.join(PALETTES)}")
    if len(PALETTES[name]) < num_classes:
        raise LabelError(
            f"--palette {name} has {len(PALETTES[name])} colours for {num_classes} classes; take `generated`"
        )
    return PALETTES[name][:num_classes]


def _contract(
    names: list[str], values: list[int | Color], void: Sequence[int | Color] | None, first: int = 0
) -> Labels:
    """A contract by values, or by colours; never by both."""
    if all(isinstance(v, int) for v in values):
        numbers = [v for v in values if isinstance(v, int)]
        below = [v for v in range(first) if v not in numbers]
        given = DEFAULT_VOID if void is None else void
        if not all(isinstance(v, int) for v in given):
            raise LabelError(
                "--void names a colour, but the classes have values; give both as colours, or both as values"
            )
        return plain(names, dict.fromkeys([*below, *(v for v in given if isinstance(v, int))]), numbers)
    classes = [{"name": n, "rgb": [v]} for n, v in zip(names, values)]
    return by_colors(classes, void or ())


def by_colors(classes: list[dict[str, Any]], void: Sequence[Any]) -> Labels:
    """A contract for masks that hold colours: raw value i is the i-th colour declared."""
    rgb: list[Color] = []
    tree = []
    for c in classes:
        colors = [color_of(v) for v in _listed(c.get("rgb"), c)]
        raw = list(range(len(rgb), len(rgb) + len(colors)))
        tree.append({"name": c.get("name"), "raw": raw, "color": c.get("color", colors[0])})
        rgb += colors
    blank = [color_of(v) for v in void]
    if len({*rgb, *blank}) < len(rgb) + len(blank):
        twice = next(c for i, c in enumerate([*rgb, *blank]) if c in [*rgb, *blank][:i])
        raise LabelError(f"colour {list(twice)} is declared twice; give every colour one meaning")
    return Labels.from_json(
        {"classes": tree, "void": list(range(len(rgb), len(rgb) + len(blank))), "rgb": [*rgb, *blank]}
    )


def _listed(colors: Any, c: dict[str, Any]) -> list[Any]:
    """One colour or a list of them, as a list."""
    if isinstance(colors, str):
        return [colors]
    if not isinstance(colors, list) or not colors:
        raise LabelError(
            f"class {reprlib.repr(c.get('name'))}: give its colours as rgb: ['#8040a0'], as the other classes do"
        )
    return [colors] if all(isinstance(v, int) for v in colors) else colors


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping that says something twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        tree = super().construct_mapping(node, deep)
        if len(tree) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands there twice", node.start_mark)
        return tree


def _from_file(uri: str, void: Sequence[int | Color] | None, first: int) -> Labels:
    try:
        text = storage.read(uri).decode("utf-8-sig")  # Windows' editors begin with a mark
        uri = storage.redacted(uri)
        tree = _lines(text) if uri.endswith(".txt") else yaml.load(text, Loader=_Loader)  # JSON is YAML
        return _from_tree(tree, void, first)
    except MissingError as error:
        raise LabelError(f"--names: there is no such file: {error}") from None
    except (LabelError, StorageError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabelError(f"--names: cannot read {storage.redacted(uri)}: {error}") from None
    except (RecursionError, ValueError) as error:  # of YAML: brackets without end, dates that are none
        raise LabelError(f"--names: cannot read {storage.redacted(uri)} as YAML: {error}") from None


def _lines(text: str) -> list[str]:
    """One name per line. Raises LabelError for an empty line between others: the names behind it would mean other values."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise LabelError(f"line {lines.index('') + 1} is empty; remove it, or give that mask value a name")
    return lines


def _from_tree(tree: Any, void: Sequence[int | Color] | None, first: int) -> Labels:
    """A contract from a list of names, an id2label mapping, or a contract written out."""
    if isinstance(tree, dict) and isinstance(tree.get("id2label"), dict):
        tree = tree["id2label"]
    if isinstance(tree, list):
        names = [_name(n) for n in tree]
        return _contract(names, list(range(first, first + len(names))), void, first)
    if isinstance(tree, dict) and isinstance(tree.get("classes"), list):
        return _whole(tree, void)
    if not isinstance(tree, dict) or not all(re.fullmatch(r"[0-9]{1,9}", str(k)) for k in tree):
        raise LabelError(
            "it holds neither a list of names, nor an id2label mapping ({0: sky, 1: road}), nor a contract"
        )
    pairs = sorted((int(k) + first, _name(v)) for k, v in tree.items())
    blank = [v for v, n in pairs if n.lower() in VOID_NAMES]
    if blank:
        shown = ", ".join(f"{v} ({n!r})" for v, n in pairs if v in blank)
        console.say(f"void, by its name: {shown}; a contract file can make it a class")
        pairs = [(v, n) for v, n in pairs if v not in blank]
    return _contract(
        [n for _, n in pairs], [v for v, _ in pairs], [*(DEFAULT_VOID if void is None else void), *blank], first
    )


def _name(value: Any) -> str:
    """A class name. YAML makes true and false of yes, no, on and off."""
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise LabelError(f"{reprlib.repr(value)} is no class name; write it in quotes")
    return str(value).strip()


def _whole(tree: dict[str, Any], void: Sequence[int | Color] | None) -> Labels:
    """A contract written out."""
    classes = tree["classes"]
    if not all(isinstance(c, dict) and set(c) <= {"name", "raw", "rgb", "color"} for c in classes):
        raise LabelError("every class is a mapping with name, raw (or rgb), and color if you like, and nothing else")
    blank = void if void is not None else tree.get("void")
    if any("rgb" in c for c in classes):
        if not isinstance(blank, Sequence | None) or isinstance(blank, str):
            raise LabelError("give the colours that are void as a list: void: ['#000000']")
        return by_colors(classes, blank or ())
    colors = generated_colors(len(classes))
    colored = [{"color": color, **c} for c, color in zip(classes, colors)]
    return Labels.from_json({"void": DEFAULT_VOID if blank is None else blank, "classes": colored})
