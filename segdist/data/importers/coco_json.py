"""One of COCO's annotation files, taken apart by image: nothing of it is kept but what the masks need.

instances_train2017.json has 450 MB and would become a tree of several gigabytes. So each outline is turned back into its JSON
text the moment that the parser has read it, and only that text stays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from segdist.data.importers import outlines
from segdist.data.importers.files import File
from segdist.data.labels import Color, color_of
from segdist.errors import DataError

_HEAVY = ("segmentation", "segments_info")
_NEEDED = ("id", "image_id", "category_id", "iscrowd", "file_name")


@dataclass
class ImageNotes:
    """What the file says of one image."""

    id: Any
    path: str  # of the image, normal, relative to a folder that the file does not name
    size: tuple[Any, Any]  # height, width, as written
    objects: list[bytes] = field(default_factory=list)  # JSON [annotation id, category, crowd, outline]
    segments: tuple[str, bytes] | None = None  # panoptic: path of the mask, JSON [[segment, category, crowd], ...]


@dataclass(frozen=True)
class Category:
    name: str
    color: Color | None
    heading: bool  # id 0, and named by the others as what they belong to: Roboflow writes such a one, which is no class


@dataclass(frozen=True)
class Annotations:
    """A file of annotations; images in their order."""

    uri: str
    panoptic: bool
    images: list[ImageNotes]
    categories: dict[int, Category]
    used: set[int]  # categories that annotations name
    licence: str  # as the file states it; "" for COCO's own


def read(file: File, panoptic: bool) -> Annotations:
    """Raises DataError, naming file and entry, for what is no COCO file or contradicts itself."""
    tree = _parse(file)
    categories = _categories(tree, file.uri)
    images = _images(tree, file.uri)
    used: set[int] = set()
    without: list[Any] = []
    for number, note in enumerate(_rows(tree, "annotations", file.uri), 1):
        who = f"{file.uri}: annotation {note.get('id', number)}"
        owner = note.get("image_id")
        noted = images.get(owner) if isinstance(owner, (int, str)) else None
        if noted is None:
            raise DataError(f"{who} belongs to image {owner!r}, which `images` does not list; remove it")
        if panoptic:
            used |= _add_segments(noted, note, categories, who)
            continue
        if "segments_info" in note:
            raise DataError(f"{who} is a panoptic one; call the file panoptic_SET.json, as COCO does")
        used.add(_known(note.get("category_id"), categories, who))
        if note.get("segmentation") in (None, b"[]", b"null"):
            without.append(note.get("id", number))
            continue
        head = json.dumps([note.get("id", number), note["category_id"], bool(note.get("iscrowd"))])
        noted.objects.append(b"%s,%s]" % (head[:-1].encode(), note["segmentation"]))
    if without:
        raise DataError(
            f"{file.uri}: {len(without)} annotations have no outline, only a box (the first is {without[0]}): class masks "
            "cannot be made of boxes; export with segmentation, or remove them"
        )
    return Annotations(file.uri, panoptic, list(images.values()), categories, used, _licence(tree))


def _parse(file: File) -> dict[str, Any]:
    """The file as a tree whose outlines are JSON text."""
    try:
        tree = json.loads(file.read().decode("utf-8-sig"), object_hook=_packed)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.uri}: broken JSON ({error}); download or export it again") from None
    if not isinstance(tree, dict) or not {"images", "annotations", "categories"} <= set(tree):
        hint = "; for labelme's files say --format labelme" if isinstance(tree, dict) and "shapes" in tree else ""
        raise DataError(f"{file.uri}: not a COCO file: images, annotations and categories are not all there{hint}")
    return tree


def _packed(node: dict[str, Any]) -> dict[str, Any]:
    """An annotation without what masks do not need; every other object as it is."""
    for heavy in _HEAVY:
        if heavy in node:
            text = json.dumps(node[heavy], separators=(",", ":")).encode()
            return {key: node[key] for key in _NEEDED if key in node} | {heavy: text}
    return node


def _rows(tree: dict[str, Any], key: str, uri: str) -> list[dict[str, Any]]:
    rows = tree[key]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{uri}: `{key}` is not a list of objects; export the file again")
    return rows


def _categories(tree: dict[str, Any], uri: str) -> dict[int, Category]:
    found: dict[int, Category] = {}
    above = {str(row.get("supercategory")) for row in _rows(tree, "categories", uri) if row.get("id") != 0}
    for row in tree["categories"]:
        number, name = row.get("id"), row.get("name")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
            raise DataError(
                f"{uri}: the category {row!r:.80} needs a whole number `id` and a `name`; export the file again"
            )
        if not 0 <= number <= 65535:
            raise DataError(
                f"{uri}: category {name!r} has the id {number}; masks hold 0..65535: renumber the categories"
            )
        if number in found:
            raise DataError(
                f"{uri}: categories {found[number].name!r} and {name!r} share the id {number}; renumber one"
            )
        found[number] = Category(
            name, color_of(row["color"]) if row.get("color") else None, number == 0 and name in above
        )
    return found


def _images(tree: dict[str, Any], uri: str) -> dict[Any, ImageNotes]:
    found: dict[Any, ImageNotes] = {}
    paths: dict[str, Any] = {}
    for row in _rows(tree, "images", uri):
        number, written = row.get("id"), row.get("file_name")
        if not isinstance(number, (int, str)) or not isinstance(written, str) or not written:
            raise DataError(f"{uri}: the image {row!r:.80} needs an `id` and a `file_name`; export the file again")
        path = outlines.inside("", written)
        if path is None:
            raise DataError(f"{uri}: file_name {written!r} of image {number} leads out of the data set; mend it")
        if number in found:
            raise DataError(f"{uri}: two images have the id {number}: {found[number].path} and {path}; renumber one")
        if path in paths:
            raise DataError(f"{uri}: images {paths[path]} and {number} have one file_name, {path}; remove one of them")
        paths[path] = number
        found[number] = ImageNotes(number, path, (row.get("height"), row.get("width")))
    return found


def _known(number: Any, categories: dict[int, Category], who: str) -> int:
    if not isinstance(number, int) or number not in categories:
        raise DataError(
            f"{who} has the category {number!r}, which `categories` does not list; add it there, or mend it"
        )
    return number


def _add_segments(noted: ImageNotes, note: dict[str, Any], categories: dict[int, Category], who: str) -> set[int]:
    """Notes the segments of a panoptic annotation; returns the categories it names."""
    path = outlines.inside("", str(note.get("file_name") or ""))
    segments = json.loads(note.get("segments_info", b"null"))
    if path is None or not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
        raise DataError(
            f"{who}: file_name {note.get('file_name')!r} and segments_info are not those of a panoptic annotation"
        )
    if noted.segments is not None:
        raise DataError(f"{who} is the second one of image {noted.id}; an image has one panoptic annotation")
    kept = []
    for s in segments:
        if not isinstance(s.get("id"), int):
            raise DataError(f"{who}: the segment {s!r:.80} has no whole number `id`; export the file again")
        kept.append([s["id"], _known(s.get("category_id"), categories, who), bool(s.get("iscrowd"))])
    noted.segments = path, json.dumps(kept, separators=(",", ":")).encode()
    return {category for _, category, _ in kept}


def _licence(tree: dict[str, Any]) -> str:
    """What the file says of licences; "" for COCO's own files, of which more is known."""
    if "cocodataset.org" in json.dumps(tree.get("info"), default=str):
        return ""
    rows = tree.get("licenses") if isinstance(tree.get("licenses"), list) else []
    names = [str(row.get("name") or "") for row in rows or [] if isinstance(row, dict)]
    return ", ".join(dict.fromkeys(n for n in names if n)) or "not stated"
