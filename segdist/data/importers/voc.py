"""PASCAL VOC 2007 and 2012: palette PNGs whose indices are classes, with 255 between objects; lists of names define the splits.

Of the test sets, only the masks of 2007 are public. CVAT exports "Segmentation mask" and "PASCAL VOC" in this layout. Its masks
are colours named by labelmap.txt (lines of `name:r,g,b:parts:actions`), and its list is default.txt.
"""

from __future__ import annotations

import re

from segdist import console, storage
from segdist.data import names
from segdist.data.importers.files import File
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, Pair, split_off
from segdist.data.importers.published import SUFFIXES, check_disjoint, pairs_of, read_list, root_of
from segdist.data.labels import Labels
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError, LabelError

_LISTS = "ImageSets/Segmentation"
_LABELMAP = "labelmap.txt"


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs listed in ImageSets/Segmentation of the one VOC20xx folder that SOURCE is or holds."""
    listing = Listing(source, SUFFIXES)
    root = root_of(listing, ("JPEGImages", "SegmentationClass", _LISTS), "PASCAL VOC's layout")
    images, masks = (_by_name(listing, f"{root}{folder}") for folder in ("JPEGImages", "SegmentationClass"))
    present = {s for s in ("train", "val", "trainval", "default", "test") if listing.get(f"{root}{_LISTS}/{s}.txt")}

    def listed_pairs(split: str) -> list[Pair]:
        path = f"{root}{_LISTS}/{split}.txt"
        return pairs_of(listing, read_list(listing, path), path, images, masks)

    if present >= {"train", "val"}:
        splits = {s: listed_pairs(s) for s in ("train", "val")}
    elif whole := present & {"trainval", "default"}:
        splits = split_off(listed_pairs(max(whole)), options)
    else:
        raise DataError(
            f"{storage.join(source, root + _LISTS)}: found neither both lists train.txt and val.txt, nor trainval.txt, nor "
            "CVAT's default.txt. Unpack the archive again"
        )
    if "test" in present:
        if any(name in masks for name in read_list(listing, f"{root}{_LISTS}/test.txt")):
            splits["test"] = listed_pairs("test")
        else:
            console.say("leaving out test: its masks are not public (those of 2007 are)")
    check_disjoint(splits, source)
    labelmap = listing.get(root + _LABELMAP)
    return ImportPlan(splits, _contract(labelmap) if labelmap else CONTRACTS["voc"])


def _contract(labelmap: File) -> Labels:
    """Read names and colours from labelmap.txt. Raises LabelError, naming the line, if one cannot be parsed."""
    try:
        lines = labelmap.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(f"{labelmap.uri}: not UTF-8 text ({error}). Save it as UTF-8") from None
    classes, void = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"\s*(.*?\S)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line)
        if not found:
            raise LabelError(f"{labelmap.uri}: line {number} is {line!r:.80}. Write name:r,g,b:: as CVAT does")
        color = [int(found[i]) for i in (2, 3, 4)]
        if found[1].lower() in names.VOID_NAMES:
            console.say(f"{found[1]!r} is void because of its name; --names can make it a class")
            void.append(color)
        else:
            classes.append({"name": found[1], "rgb": [color]})
    try:
        return names.contract_by_colors(classes, void)
    except LabelError as error:
        raise LabelError(f"{labelmap.uri}: {error}") from None


def _by_name(listing: Listing, folder: str) -> dict[str, File]:
    """Return the files of a folder by name. Raises DataError if there are none."""
    found = listing.by_stem(folder)
    if not found:
        raise DataError(
            f"{storage.join(listing.source, folder)}: this folder does not exist, or holds no images. VOC has JPEGImages/, "
            f"SegmentationClass/ and {_LISTS}/ side by side (in CVAT, choose to export images)"
        )
    return found


VOC = Layout(
    find,
    "PASCAL VOC 2007 or 2012: classes from labelmap.txt (CVAT) or --names, else 20 kinds of objects and background, 255 = void",
    "JPEGImages/, SegmentationClass/, ImageSets/Segmentation/{train,val}.txt (or trainval.txt or default.txt; test.txt if its "
    "masks exist), optionally labelmap.txt; or a folder above",
    "images: Flickr's terms of use (PASCAL VOC, Everingham et al.)",
)
