"""labelme: one JSON per image, with polygons and other shapes whose labels are class names.

A label identifies a class by name, never by number. Later shapes are drawn over earlier ones, uncovered pixels are background,
and `__ignore__` is void. labelme's own export (labelme2voc) draws the same masks.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from segdist import console, storage
from segdist.data.importers import outlines
from segdist.data.importers.files import IMAGE_SUFFIXES, Content, File, Rules, Text, open_image
from segdist.data.importers.layout import (
    SPLIT_NAMES,
    ImportOptions,
    ImportPlan,
    Layout,
    Listing,
    Pair,
    Splits,
    split_off,
    splits_of,
)
from segdist.data.labels import Labels, plain
from segdist.errors import DataError, LabelError, first_few
from segdist.threads import map_ahead

_BACKGROUND = ("background", "_background_")  # names of the class of uncovered pixels
_IGNORE = "__ignore__"
_UNCOVERED = -1
_LABELS = "labels.txt"


@dataclass(frozen=True)
class Embedded:
    """The image inside a labelme file (`imageData`). It is decoded on demand, since all images may not fit in memory."""

    file: File

    @property
    def name(self) -> str:
        return f"{self.file.uri} (imageData)"

    @property
    def num_bytes(self) -> int:
        return self.file.num_bytes * 3 // 4  # base64

    def read(self) -> bytes:
        return _base64(outlines.parse_json(self.file.read(), self.file.uri)["imageData"], self.name)

    def digest(self) -> str:
        return self.file.digest()


@dataclass(frozen=True)
class _Annotated:
    """One labelme file without its image. `key` is its path below the source."""

    key: str
    image: Content
    shapes: Text
    labels: Counter[str]
    kinds: Counter[str]


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the images of all labelme files of SOURCE, split by its train/ and val/ folders or by a hash of their names."""
    listing = Listing(source, {".json", ".txt", *IMAGE_SUFFIXES})
    annotated = _read_all(listing)
    _report(listing, annotated)
    names = listing.get(_LABELS)
    labels = _declared(names) if names else _discovered(annotated)
    return ImportPlan(_splits(listing.source, annotated, options), labels)


def _read_all(listing: Listing) -> list[_Annotated]:
    """Read every labelme file. Raises DataError if a JSON file is not one, or if there are none."""
    files = [(n, f) for n, f in sorted(listing.below("").items()) if n.lower().endswith(".json")]
    progress, advance = console.bar("reading shapes", len(files))
    found: list[_Annotated] = []
    with progress, ThreadPoolExecutor(os.cpu_count() if storage.is_local(listing.source) else 16) as pool:
        for one in map_ahead(pool, lambda item: _read(listing, *item), files, 32):
            found += [one] if one else []
            advance(1)
    if not found:
        raise DataError(f"{listing.source}: found no labelme files (*.json). labelme saves one beside each image")
    users: dict[str, str] = {}
    for one in found:
        first = users.setdefault(one.image.name, one.shapes.name)
        if first != one.shapes.name:
            raise DataError(f"{one.shapes.name}: {first} refers to the same image. Merge the two files, or remove one")
    return found


def _read(listing: Listing, key: str, file: File) -> _Annotated | None:
    """Read one labelme file. Return None for the index.json of a dataset prepared into the source's own folder."""
    tree = outlines.parse_json(file.read(), file.uri)
    if isinstance(tree, dict) and str(tree.get("format")).startswith("segdist-"):
        return None
    if not isinstance(tree, dict) or not isinstance(tree.get("shapes"), list):
        hint = ". For COCO's files use --format coco" if isinstance(tree, dict) and "annotations" in tree else ""
        raise DataError(f"{file.uri}: not a labelme file, because it has no list of `shapes`. Move it elsewhere{hint}")
    shapes = [_shape(s, i, file.uri) for i, s in enumerate(tree["shapes"], 1)]
    kept = {"size": [tree.get("imageHeight"), tree.get("imageWidth")], "shapes": shapes}
    return _Annotated(
        key,
        Embedded(file) if tree.get("imageData") else _image(listing, key, file, tree),
        Text(file.uri, json.dumps(kept, separators=(",", ":")).encode()),
        Counter(s["label"] for s in shapes),
        Counter(s["kind"] for s in shapes),
    )


def _shape(shape: Any, number: int, uri: str) -> dict[str, Any]:
    """Return the parts of a shape that are drawn. Raises DataError if it cannot be drawn."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise DataError(f"{uri}: shape {number} has no label. Open the file in labelme and give it one")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    who = f"{uri}: shape {number} ({shape['label']!r})"
    if kind not in outlines.NUM_POINTS:
        raise DataError(
            f"{who}: its shape_type {kind!r} is unknown. Supported types are {', '.join(outlines.NUM_POINTS)}"
        )
    least, most = outlines.NUM_POINTS[kind]
    if not isinstance(points, list) or len(points) < least or len(points) > (most or len(points)):
        num = len(points) if isinstance(points, list) else 0
        raise DataError(f"{who}: a {kind} of {num} points cannot be drawn. Remove it, or draw it again")
    return {"label": shape["label"], "kind": kind, "points": points} | (
        {"mask": shape.get("mask")} if kind == "mask" else {}
    )


def _image(listing: Listing, key: str, file: File, tree: dict[str, Any]) -> File:
    """Return the image at `imagePath`. Raises DataError unless it is in the source."""
    written = tree.get("imagePath")
    if not isinstance(written, str) or not written:
        raise DataError(f"{file.uri}: names no image (imagePath) and holds none (imageData). Save it again in labelme")
    path = outlines.inside(str(PurePosixPath(key).parent), written)
    if path is None:
        raise DataError(
            f"{file.uri}: imagePath {written!r} leads out of {listing.source}, and no file outside is read. Move the image "
            "into it and correct imagePath, or save the file with imageData"
        )
    image = listing.get(path)
    if image is None:
        raise DataError(
            f"{file.uri}: the image {storage.join(listing.source, path)} does not exist (imagePath {written!r}). Add the "
            "image, or remove this file"
        )
    return image


def _report(listing: Listing, annotated: list[_Annotated]) -> None:
    """Report what users may not expect: how lines and points are drawn, images left out, images without shapes."""
    kinds: Counter[str] = sum((a.kinds for a in annotated), Counter())
    if lines := kinds["line"] + kinds["linestrip"]:
        console.say(f"drawing {lines} lines {outlines.LINE_WIDTH_PX} px wide, as labelme's own export does")
    if kinds["point"]:
        console.say(
            f"drawing {kinds['point']} points as discs with a radius of {outlines.POINT_RADIUS_PX} px, as labelme does"
        )
    used = {str(PurePosixPath(a.key).with_suffix("")) for a in annotated} | {a.image.name for a in annotated}
    images = {n: f for n, f in listing.below("").items() if PurePosixPath(n).suffix.lower() in IMAGE_SUFFIXES}
    left = [n for n, f in images.items() if f.uri not in used and str(PurePosixPath(n).with_suffix("")) not in used]
    if left:
        console.say(f"leaving out {len(left)} images without a labelme file: {first_few(left, 1)}")
    if empty := sum(not a.labels for a in annotated):
        console.say(f"{empty} images have no shapes: they are background throughout")


def _declared(file: File) -> Labels:
    """Return the contract of labels.txt: one class per line, in order, after the background; `__ignore__` is void."""
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(f"{file.uri}: not UTF-8 text ({error}). Save it as UTF-8") from None
    names = [line.strip() for line in lines if line.strip() and line.strip() not in (_IGNORE, *_BACKGROUND)]
    return plain([_BACKGROUND[0], *names])


def _discovered(annotated: list[_Annotated]) -> Labels:
    """Return the contract of all labels that occur, sorted, after the background."""
    counts: Counter[str] = sum((a.labels for a in annotated), Counter())
    names = sorted(set(counts) - {_IGNORE, *_BACKGROUND})
    if not names:
        raise LabelError(
            "the labelme files hold no labelled shapes. At least one class besides the background is needed"
        )
    counted = ", ".join(f"{n} ({counts[n]} shapes)" for n in names)
    console.say(f"labels: {counted}. Fix them with a labels.txt beside the files, or with --names")
    return plain([_BACKGROUND[0], *names])


def _splits(source: str, annotated: list[_Annotated], options: ImportOptions) -> Splits:
    """Split by the folders train/, val/ and test/ if there are any, else by name.

    Raises DataError for files outside these folders, and for two folders of one split.
    """
    tops = {a.key: a.key.split("/")[0] if "/" in a.key else "" for a in annotated}
    if not set(tops.values()) & set(SPLIT_NAMES):
        return split_off([_pair(a, a.key) for a in annotated], options)
    splits: Splits = {}
    names = splits_of(source, dict.fromkeys(top for top in tops.values() if top in SPLIT_NAMES))
    for a in annotated:
        top = tops[a.key]
        if top not in SPLIT_NAMES:
            raise DataError(f"{a.shapes.name}: this file is outside of train/ and val/. Move it into one of them")
        splits.setdefault(names[top], []).append(_pair(a, a.key.removeprefix(f"{top}/")))
    return splits


def _pair(annotated: _Annotated, key: str) -> Pair:
    return Pair(str(PurePosixPath(key).with_suffix("")), annotated.image, annotated.shapes, decode_shapes)


def decode_shapes(data: bytes, name: str, rules: Rules) -> np.ndarray:
    """Return (H, W) uint8 or uint16 raw values of one image's shapes. Raises LabelError for labels that are not classes."""
    tree = json.loads(data)
    height, width = tree["size"]
    size = outlines.check_size(height, width, name, rules.max_pixels)
    assert rules.labels is not None
    raw = {c.name: c.raw[0] for c in rules.labels.classes}
    background = next((raw[n] for n in _BACKGROUND if n in raw), _UNCOVERED)
    canvas = Image.new("I", size[::-1], background)
    for number, shape in enumerate(tree["shapes"], 1):
        value = _value(shape["label"], raw, background, rules.labels, f"{name}: shape {number}")
        who = f"{name}: shape {number} ({shape['label']!r})"
        points = outlines.check_points(shape["points"], size, who)
        if shape["kind"] == "mask":
            _stamp(canvas, points, shape["mask"], value, who, rules.max_pixels)
        else:
            outlines.draw(ImageDraw.Draw(canvas), shape["kind"], points, value)
    pixels = np.asarray(canvas)
    if num := int((pixels == _UNCOVERED).sum()):
        raise _no_background(name, num / pixels.size)
    return pixels.astype(np.uint8 if max(rules.labels.known_values) < 256 else np.uint16)


def _value(label: str, raw: dict[str, int], background: int, labels: Labels, who: str) -> int:
    """Return the raw value of a label. Raises LabelError, with a similar name, if the contract has no such class."""
    if label in raw:
        return raw[label]
    if label in _BACKGROUND:
        if background == _UNCOVERED:
            raise LabelError(f"{who}: its label is {label!r}, but there is no such class. Add `background` to --names")
        return background
    if label == _IGNORE:
        if not labels.void:
            raise LabelError(f"{who}: {_IGNORE} means void, but the contract has no void value. Give one with --void")
        return labels.void[0]
    near = difflib.get_close_matches(label, raw, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise LabelError(
        f"{who} has the label {label!r}, which is no class.{hint} Classes are {', '.join(raw)}. Correct the label, or add it "
        f"to {_LABELS} or --names"
    )


def _no_background(name: str, share: float) -> LabelError:
    return LabelError(
        f"{name}: {share:.2%} of the image lies outside of all shapes, and no class is called `background`. Add it to "
        "--names"
    )


def _stamp(canvas: Image.Image, points: outlines.Points, text: Any, value: int, who: str, max_pixels: int) -> None:
    """Paint a shape of kind `mask`: an on-off PNG whose upper left and lower right pixels are `points`."""
    with open_image(_base64(text, who), who, max_pixels) as stored:
        on = Image.fromarray(np.asarray(stored.convert("L")) > 0)
    (x0, y0), (x1, y1) = [(round(x), round(y)) for x, y in points]
    if abs(x1 - x0 + 1 - on.width) > 1 or abs(y1 - y0 + 1 - on.height) > 1:
        raise DataError(
            f"{who}: its mask is {on.height}x{on.width}, but its points span {y1 - y0 + 1}x{x1 - x0 + 1} (height x width). "
            "Draw it again"
        )
    canvas.paste(value, (x0, y0), on)


def _base64(text: Any, name: str) -> bytes:
    """Decode base64. Raises DataError if the text is invalid."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DataError(f"{name}: not base64. Save the file again in labelme") from None


LABELME = Layout(
    find,
    "labelme: polygons and other shapes, one JSON per image; a label is the name of a class",
    "*.json with the images beside them or inside, in train/ and val/ or in one folder; labels.txt fixes the order of classes",
)
