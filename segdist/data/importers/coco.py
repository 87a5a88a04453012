"""COCO, and the exports of labelling tools in its format: finds the annotations and the images they belong to.

A folder may hold several kinds of annotation for the same images, as COCO's own downloads do. `--subset` selects one kind.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import PurePosixPath

from segdist import console
from segdist.data.importers import cocostuff
from segdist.data.importers.coco_json import Annotations, Category, ImageRecord, read
from segdist.data.importers.coco_masks import Segments, Values, decode_objects, decode_segments
from segdist.data.importers.files import IMAGE_SUFFIXES, Content, Decode, File, Text
from segdist.data.importers.layout import (
    SPLIT_NAMES,
    ImportOptions,
    ImportPlan,
    Layout,
    Listing,
    Pair,
    Splits,
    split_off,
)
from segdist.data.labels import Class, Labels, generated_colors
from segdist.errors import DataError

KINDS = ("panoptic", "instances", "stuff", "stuffthingmaps", "pixelmaps")
_MAPS = ("stuffthingmaps", "pixelmaps")  # kinds with one mask file per image
_OTHER_TASKS = ("captions", "person_keypoints", "image_info")

Sets = dict[str, str]  # name of a set (such as train2017, or "") -> its JSON file or its folder of masks


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs of a COCO folder, or of one annotation file, whose images are then split by a hash of their names."""
    is_file = source.lower().endswith(".json")
    root, file = _root_of(source) if is_file else (source, None)
    listing = Listing(root, {".json", *IMAGE_SUFFIXES})
    kind, sets = _choose(_kinds(listing, file), options.subset, source)
    if kind in _MAPS:
        splits = {name: _paired(listing, name, folder) for name, folder in sets.items()}
        labels = cocostuff.class_maps() if kind == "stuffthingmaps" else cocostuff.pixel_maps()
        return ImportPlan(_named(splits, sets, options), labels, source=f"coco {kind}: {source}")
    parsed = {name: read(_file(listing, path), kind == "panoptic") for name, path in sets.items()}
    categories = _agreed(list(parsed.values()))
    covered = kind == "instances"  # uncovered pixels are background there; in the other kinds they are unlabelled
    labels, values = _contract(categories, covered)
    splits = {name: _pairs(listing, name, sets[name], parsed[name], values) for name in sets}
    licence = next((a.licence for a in parsed.values()), "")
    found = split_off(splits.popitem()[1], options) if is_file else _named(splits, sets, options)
    return ImportPlan(found, labels, licence, f"coco {kind}: {source}")


# -- annotation files -------------------------------------------------------------------------------------------------


def _root_of(source: str) -> tuple[str, str]:
    """Return (the dataset's folder, path in it) of an annotation file. The folder is above annotations/, or the file's own."""
    folder, slash, name = source.rpartition("/")
    above, _, last = folder.rpartition("/")
    if last == "annotations":
        return (above if slash and above else "."), f"annotations/{name}"
    return folder or ".", name


def _file(listing: Listing, path: str) -> File:
    file = listing.get(path)
    if file is None:
        raise DataError(f"{listing.source}/{path}: this file does not exist. Give an existing JSON file as SOURCE")
    return file


def _kinds(listing: Listing, only: str | None) -> dict[str, Sets]:
    """Return the kinds of annotation with their sets. Raises DataError if two files belong to the same set."""
    found: dict[str, Sets] = {}
    names = [only] if only else sorted(listing.below(""))
    folders: set[str] = set()
    for name in names:
        path = PurePosixPath(name)
        is_annotation = path.suffix.lower() == ".json" and len(path.parts) <= 2
        if is_annotation and path.name != "index.json":  # our own index, if the source was prepared in place
            if (kind_and_set := _kind_of(path)) is not None:
                _add(found, *kind_and_set, name, listing)
        elif path.suffix.lower() == ".png":
            folders.add(str(path.parent))
    for folder in sorted(folders):
        challenge = re.fullmatch(r"(?:annotations/)?stuff_([^/]+)_pixelmaps", folder)
        maps = re.fullmatch(r"(?:annotations/|(?:annotations/)?stuffthingmaps[^/]*/)([^/_]+)", folder)
        if challenge:
            _add(found, "pixelmaps", challenge[1], folder, listing)
        elif maps and _split_of(maps[1]):
            _add(found, "stuffthingmaps", maps[1], folder, listing)
    return found


def _kind_of(path: PurePosixPath) -> tuple[str, str] | None:
    """Return (kind, name of its set) of a JSON file, from its name; None for files of other tasks."""
    if path.stem.startswith(_OTHER_TASKS):
        return None
    for kind in ("panoptic", "instances", "stuff"):
        if path.stem.startswith(f"{kind}_"):
            return kind, path.stem.removeprefix(f"{kind}_")
    # an export of a labelling tool: train/_annotations.coco.json
    folder = path.parent.name if path.parent.name != "annotations" else ""
    return "instances", folder if _split_of(folder) else path.stem


def _add(found: dict[str, Sets], kind: str, name: str, path: str, listing: Listing) -> None:
    sets = found.setdefault(kind, {})
    if name in sets:
        raise DataError(
            f"{listing.source}: {sets[name]} and {path} both hold {kind} annotations of {name!r}. Move one elsewhere, or "
            "give one file as SOURCE"
        )
    sets[name] = path


def _choose(found: dict[str, Sets], subset: str | None, source: str) -> tuple[str, Sets]:
    """Return the requested kind, or the only one, with its sets. Raises DataError, listing the kinds, if that is not unique."""
    kinds = "; ".join(f"{kind} ({', '.join(sets.values())})" for kind, sets in found.items())
    if subset is not None and subset not in found:
        raise DataError(
            f"{source}: --subset {subset!r} is not available. Available kinds: {kinds or 'none, there are no COCO annotations'}"
        )
    if not found:
        raise DataError(
            f"{source}: found no COCO annotations (annotations/instances_*.json, panoptic_*.json, stuff_*.json, "
            "stuffthingmaps/, or a JSON beside the images). Unpack them, or give the JSON file itself as SOURCE"
        )
    if subset is None and len(found) > 1:
        raise DataError(
            f"{source}: found several kinds of annotation: {kinds}. Choose one with --subset {'|'.join(found)}"
        )
    kind = subset or next(iter(found))
    return kind, found[kind]


def _split_of(name: str) -> str | None:
    """Return train, val or test for sets named train2017, val2017, test-dev2017 and so on, and None for other names."""
    return next((SPLIT_NAMES[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_NAMES), None)


def _named(splits: Splits, sets: Sets, options: ImportOptions) -> Splits:
    """Name splits after their sets; divide a single set without such a name. Raises DataError if a name is not clear."""
    if len(splits) == 1 and _split_of(next(iter(splits))) is None:
        return split_off(splits.popitem()[1], options)
    named: Splits = {}
    for name, pairs in splits.items():
        split = _split_of(name)
        if split is None:
            raise DataError(
                f"{sets[name]}: cannot tell whether {name!r} is for training or validation. Rename it so that its name "
                "contains train or val, or remove it"
            )
        if split in named:
            raise DataError(
                f"{sets[name]}: another set is also for {split}: {', '.join(sets.values())}. Keep one of them"
            )
        named[split] = pairs
    return named


# -- images and masks -------------------------------------------------------------------------------------------------


def _places(name: str, path: str) -> list[str]:
    """Return the folders where the images of a set may be, the likeliest first."""
    beside = str(PurePosixPath(path).parent)
    split = _split_of(name) or name
    return list(
        dict.fromkeys(["" if beside == "." else beside, name, f"images/{name}", split, f"images/{split}", "images", ""])
    )


def _lookup(listing: Listing, places: list[str], path: str) -> File | None:
    return next((f for p in places if (f := listing.get(f"{p}/{path}" if p else path)) is not None), None)


def _pairs(listing: Listing, name: str, path: str, notes: Annotations, values: Values) -> list[Pair]:
    """Return the images that exist, with their masks. Missing images cause a warning; raises DataError if all are missing."""
    places = _places(name, path)
    pairs: dict[str, Pair] = {}
    missing, unlabelled, empty = [], [], 0
    for noted in notes.images:
        image = _lookup(listing, places, noted.path)
        if image is None:
            missing.append(noted.path)
            continue
        made = _mask(listing, name, path, noted, notes, values)
        if made is None:
            unlabelled.append(noted.path)
            continue
        sample_id = str(PurePosixPath(noted.path).with_suffix(""))
        if sample_id in pairs:
            raise DataError(
                f"{notes.uri}: two images are named {sample_id} apart from their extension. Rename one of them"
            )
        empty += not noted.objects and noted.segments is None
        pairs[sample_id] = Pair(sample_id, image, *made)
    if missing and not pairs and not unlabelled:
        raise DataError(
            f"{notes.uri}: none of its {len(missing)} images exists, for example {missing[0]}. Put the images into one of "
            f"{', '.join(f'{listing.source}/{p}'.rstrip('/') for p in places)}"
        )
    if missing:
        console.say(
            f"warning: {len(missing)} of {len(notes.images)} images of {notes.uri} do not exist and are left out ({missing[0]})"
        )
    if unlabelled:
        console.say(f"warning: {len(unlabelled)} images have no mask in {notes.uri} and are left out ({unlabelled[0]})")
    if empty:
        what = "background" if values.outside != values.void else "void"
        console.say(f"{empty} of {len(pairs)} images of {notes.uri} have no annotations: they are {what} throughout")
    return list(pairs.values())


def _mask(
    listing: Listing, name: str, path: str, noted: ImageRecord, notes: Annotations, values: Values
) -> tuple[Content, Decode] | None:
    """Return (what holds the mask, its decoder), or None if a panoptic annotation is missing.

    Raises DataError if the PNG of a panoptic annotation is missing.
    """
    if not notes.panoptic:
        head = b'{"size":%s,"objects":[' % json.dumps(noted.size).encode()
        text = Text(f"{notes.uri}: {noted.path}", head + b",".join(noted.objects) + b"]}")
        return text, partial(decode_objects, values=values)
    if noted.segments is None:
        return None
    png, info = noted.segments
    beside = str(PurePosixPath(path).parent)
    stem = PurePosixPath(path).stem
    places = [f"{beside}/{stem}", stem, beside, f"{beside}/{name}"]
    file = _lookup(listing, places, png)
    if file is None:
        raise DataError(
            f"{notes.uri}: the panoptic mask {png} does not exist in any of {', '.join(places)}. Unpack {stem}.zip beside "
            "the JSON"
        )
    return Segments(file, info), partial(decode_segments, info=info, values=values)


def _paired(listing: Listing, name: str, folder: str) -> list[Pair]:
    """Pair images with a folder of masks by name. Raises DataError if an image has no mask or there are no images."""
    masks = listing.by_stem(folder)
    places = [p for p in (name, f"images/{name}") if listing.below(p)]
    if not places:
        raise DataError(
            f"{listing.source}: the images of {folder} are neither in {name}/ nor in images/{name}/. Put them there"
        )
    images = listing.by_stem(places[0])
    for stem, image in images.items():
        if stem not in masks:
            raise DataError(
                f"{image.uri}: this image has no mask {folder}/{stem}.png. Add the mask, or remove the image"
            )
    if spare := len(masks) - len(images):
        console.say(f"warning: {spare} of {len(masks)} masks in {folder} have no image and are left out")
    return [Pair(stem, image, masks[stem]) for stem, image in images.items()]


# -- categories -------------------------------------------------------------------------------------------------------


def _agreed(all_notes: list[Annotations]) -> dict[int, Category]:
    """Return the categories of all files by ID. Raises DataError if one ID has different names in two files."""
    found: dict[int, tuple[Category, str]] = {}
    used = {number for notes in all_notes for number in notes.used}
    for notes in all_notes:
        for number, category in notes.categories.items():
            if category.heading and number not in used:
                continue
            other, uri = found.setdefault(number, (category, notes.uri))
            if other.name != category.name:
                raise DataError(
                    f"{notes.uri}: category {number} is {category.name!r}, but it is {other.name!r} in {uri}. Give both files "
                    "the same categories"
                )
    return {number: found[number][0] for number in sorted(found)}


def _contract(categories: dict[int, Category], background: bool) -> tuple[Labels, Values]:
    """Return a contract whose raw values are category IDs, with a background class in front if uncovered pixels are background.

    A category named background is used as that class. Void is 255 if no category has that ID, else the largest free value.
    """
    void = next(v for v in (255, 65535, 65534) if v not in categories)
    own = [number for number, c in categories.items() if c.name.lower() in ("background", "_background_")]
    outside = void
    names = {number: c.name for number, c in categories.items()}
    if background:
        outside = own[0] if own else next(v for v in range(65536) if v not in categories and v != void)
        names = {outside: "background"} | names
    generated = generated_colors(len(names))
    colors = [c.color if (c := categories.get(number)) and c.color else g for number, g in zip(names, generated)]
    classes = tuple(Class(n, (number,), color) for (number, n), color in zip(names.items(), colors))
    return Labels(classes, (void,)), Values(outside, void, max(*names, void) > 255)


COCO = Layout(
    find,
    "COCO (panoptic, instances, stuff, COCO-Stuff's maps), and exports in its format by CVAT, Roboflow or Label Studio",
    "annotations/ with instances_SET.json, stuff_SET.json or panoptic_SET.json (and its PNGs), stuffthingmaps/SET/, or SET/ "
    "with _annotations.coco.json; images in SET/, images/SET/ or images/. SET is train2017, val, ... Or one JSON file, whose "
    "images are split by a hash of their names",
    "COCO's annotations: CC BY 4.0; its images: Flickr's terms of use",
    options=("subset",),
)
