"""Reader of one COCO annotation file. It keeps only what masks need, grouped by image.

instances_train2017.json has 450 MB and would parse into several gigabytes of objects. So the parser turns each outline back
into JSON text as soon as it has read it, and keeps only that text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from segdist.data.importers import outlines
from segdist.data.importers.files import File
from segdist.data.labels import Color, color_of
from segdist.errors import DataError

_HEAVY = ("segmentation", "segments_info")  # kept as JSON text
_NEEDED = ("id", "image_id", "category_id", "iscrowd", "file_name")


@dataclass
class ImageRecord:
    """What the file says about one image."""

    id: Any
    path: str  # of the image: normalised, relative to a folder that the file does not name
    size: tuple[Any, Any]  # height, width, as written
    objects: list[bytes] = field(default_factory=list)  # JSON [annotation ID, category, crowd, outline]
    segments: tuple[str, bytes] | None = None  # panoptic: path of the mask, JSON [[segment, category, crowd], ...]


@dataclass(frozen=True)
class Category:
    name: str
    color: Color | None
    heading: bool  # ID 0 and the supercategory of others: Roboflow writes such an entry, which is not a class


@dataclass(frozen=True)
class Annotations:
    """An annotation file; images keep their order."""

    uri: str
    panoptic: bool
    images: list[ImageRecord]
    categories: dict[int, Category]
    used: set[int]  # categories that annotations refer to
    licence: str  # as stated in the file; "" for COCO's own files


def read(file: File, panoptic: bool) -> Annotations:
    """Parse an annotation file. Raises DataError, naming file and entry, if it is no COCO file or contradicts itself."""
    tree = _parse(file)
    categories = _categories(tree, file.uri)
    images = _images(tree, file.uri)
    used: set[int] = set()
    without_outline: list[Any] = []
    for number, note in enumerate(_rows(tree, "annotations", file.uri), 1):
        who = f"{file.uri}: annotation {note.get('id', number)}"
        owner = note.get("image_id")
        noted = images.get(owner) if isinstance(owner, (int, str)) else None
        if noted is None:
            raise DataError(f"{who} belongs to image {owner!r}, which is not listed in `images`. Remove the annotation")
        if panoptic:
            used |= _add_segments(noted, note, categories, who)
            continue
        if "segments_info" in note:
            raise DataError(f"{who} is panoptic. Rename the file to panoptic_SET.json, as COCO does")
        used.add(_known(note.get("category_id"), categories, who))
        if note.get("segmentation") in (None, b"[]", b"null"):
            without_outline.append(note.get("id", number))
            continue
        head = json.dumps([note.get("id", number), note["category_id"], bool(note.get("iscrowd"))])
        noted.objects.append(b"%s,%s]" % (head[:-1].encode(), note["segmentation"]))
    if without_outline:
        raise DataError(
            f"{file.uri}: {len(without_outline)} annotations have a box but no segmentation (first: {without_outline[0]}). "
            "Masks cannot be made from boxes. Export the file with segmentation, or remove these annotations"
        )
    return Annotations(file.uri, panoptic, list(images.values()), categories, used, _licence(tree))


def _parse(file: File) -> dict[str, Any]:
    """Parse the file, keeping outlines as JSON text."""
    try:
        tree = json.loads(file.read().decode("utf-8-sig"), object_hook=_packed)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.uri}: broken JSON ({error}). Download or export it again") from None
    if not isinstance(tree, dict) or not {"images", "annotations", "categories"} <= set(tree):
        hint = ". For labelme's files use --format labelme" if isinstance(tree, dict) and "shapes" in tree else ""
        raise DataError(f"{file.uri}: not a COCO file, because it lacks images, annotations or categories{hint}")
    return tree


def _packed(node: dict[str, Any]) -> dict[str, Any]:
    """Reduce an annotation to what masks need; leave every other object unchanged."""
    for heavy in _HEAVY:
        if heavy in node:
            text = json.dumps(node[heavy], separators=(",", ":")).encode()
            return {key: node[key] for key in _NEEDED if key in node} | {heavy: text}
    return node


def _rows(tree: dict[str, Any], key: str, uri: str) -> list[dict[str, Any]]:
    rows = tree[key]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{uri}: `{key}` is not a list of objects. Export the file again")
    return rows


def _categories(tree: dict[str, Any], uri: str) -> dict[int, Category]:
    found: dict[int, Category] = {}
    above = {str(row.get("supercategory")) for row in _rows(tree, "categories", uri) if row.get("id") != 0}
    for row in tree["categories"]:
        number, name = row.get("id"), row.get("name")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            raise DataError(
                f"{uri}: the category {row!r:.80} needs an integer `id` and a string `name`. Export the file again"
            )
        if not 0 <= number <= 65535:
            raise DataError(
                f"{uri}: category {name!r} has ID {number}, but masks hold 0..65535. Renumber the categories"
            )
        if number in found:
            raise DataError(
                f"{uri}: categories {found[number].name!r} and {name!r} share ID {number}. Renumber one of them"
            )
        found[number] = Category(
            name, color_of(row["color"]) if row.get("color") else None, number == 0 and name in above
        )
    return found


def _images(tree: dict[str, Any], uri: str) -> dict[Any, ImageRecord]:
    found: dict[Any, ImageRecord] = {}
    paths: dict[str, Any] = {}
    for row in _rows(tree, "images", uri):
        number, written = row.get("id"), row.get("file_name")
        if not isinstance(number, (int, str)) or not isinstance(written, str) or not written:
            raise DataError(f"{uri}: the image {row!r:.80} needs an `id` and a `file_name`. Export the file again")
        path = outlines.inside("", written)
        if path is None:
            raise DataError(
                f"{uri}: file_name {written!r} of image {number} leads out of the dataset. Correct the file_name"
            )
        if number in found:
            raise DataError(f"{uri}: {found[number].path} and {path} both have image ID {number}. Renumber one of them")
        if path in paths:
            raise DataError(
                f"{uri}: images {paths[path]} and {number} have the same file_name {path}. Remove one of them"
            )
        paths[path] = number
        found[number] = ImageRecord(number, path, (row.get("height"), row.get("width")))
    return found


def _known(number: Any, categories: dict[int, Category], who: str) -> int:
    if not isinstance(number, int) or number not in categories:
        raise DataError(
            f"{who} has the category {number!r}, which is not listed in `categories`. Add it there, or correct the annotation"
        )
    return number


def _add_segments(noted: ImageRecord, note: dict[str, Any], categories: dict[int, Category], who: str) -> set[int]:
    """Store the segments of a panoptic annotation on its image. Return the categories they refer to."""
    path = outlines.inside("", str(note.get("file_name") or ""))
    segments = json.loads(note.get("segments_info", b"null"))
    if path is None or not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        raise DataError(
            f"{who}: file_name {note.get('file_name')!r} and segments_info do not form a panoptic annotation. Export it again"
        )
    if noted.segments is not None:
        raise DataError(f"{who} is the second one of image {noted.id}. An image can have only one panoptic annotation")
    kept = []
    for s in segments:
        if not isinstance(s.get("id"), int):
            raise DataError(f"{who}: the segment {s!r:.80} has no integer `id`. Export the file again")
        kept.append([s["id"], _known(s.get("category_id"), categories, who), bool(s.get("iscrowd"))])
    noted.segments = path, json.dumps(kept, separators=(",", ":")).encode()
    return {category for _, category, _ in kept}


def _licence(tree: dict[str, Any]) -> str:
    """Return the licences that the file states; "" for COCO's own files, whose licence is known."""
    if "cocodataset.org" in json.dumps(tree.get("info"), default=str):
        return ""
    rows = tree.get("licenses") if isinstance(tree.get("licenses"), list) else []
    names = [str(row.get("name") or "") for row in rows or [] if isinstance(row, dict)]
    return ", ".join(dict.fromkeys(n for n in names if n)) or "not stated"
