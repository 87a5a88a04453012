"""PASCAL VOC 2007 and 2012: palette PNGs whose indices are the classes, 255 between them; lists of names say the splits.

Of the test sets, the organisers published the masks of 2007 only. CVAT exports "Segmentation mask" and "PASCAL VOC" in this
layout, with masks of colours, which a labelmap.txt names (`name:r,g,b:parts:actions`, a line each), and a list default.txt.
"""

from __future__ import annotations

import re

from segdist import console, storage
from segdist.data import names
from segdist.data.importers.files import File
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, Pair, split_off
from segdist.data.importers.release import SUFFIXES, check_disjoint, listed, pairs_of, root_of
from segdist.data.labels import Labels
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError, LabelError

_LISTS = "ImageSets/Segmentation"
_LABELMAP = "labelmap.txt"


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The pairs that ImageSets/Segmentation names, in the one VOC20xx that SOURCE is or holds."""
    listing = Listing(source, SUFFIXES)
    root = root_of(listing, ("JPEGImages", "SegmentationClass", _LISTS), "PASCAL VOC's layout")
    images, masks = (_by_name(listing, f"{root}{folder}") for folder in ("JPEGImages", "SegmentationClass"))
    present = {s for s in ("train", "val", "trainval", "default", "test") if listing.get(f"{root}{_LISTS}/{s}.txt")}

    def taken(split: str) -> list[Pair]:
        path = f"{root}{_LISTS}/{split}.txt"
        return pairs_of(listing, listed(listing, path), path, images, masks)

    if present >= {"train", "val"}:
        splits = {s: taken(s) for s in ("train", "val")}
    elif whole := present & {"trainval", "default"}:
        splits = split_off(taken(max(whole)), ask)
    else:
        raise DataError(
            f"{storage.join(source, root + _LISTS)}: the lists train.txt and val.txt (or trainval.txt, or CVAT's "
            "default.txt) are not both there; take them from the archive again"
        )
    if "test" in present:
        if any(name in masks for name in listed(listing, f"{root}{_LISTS}/test.txt")):
            splits["test"] = taken("test")
        else:
            console.say("test is left out: its masks are not public (those of 2007 are)")
    check_disjoint(splits, source)
    labelmap = listing.get(root + _LABELMAP)
    return ImportPlan(splits, _contract(labelmap) if labelmap else CONTRACTS["voc"])


def _contract(labelmap: File) -> Labels:
    """The names and colours of a labelmap.txt. Raises LabelError, naming the line that is not understood."""
    try:
        lines = labelmap.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(f"{labelmap.uri}: not UTF-8 text ({error}); save it as UTF-8") from None
    classes, void = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"\s*(.*?\S)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line)
        if not found:
            raise LabelError(f"{labelmap.uri}: line {number} is {line!r:.80}; write name:r,g,b:: as CVAT does")
        color = [int(found[i]) for i in (2, 3, 4)]
        if found[1].lower() in names.VOID_NAMES:
            console.say(f"void, by its name: {found[1]!r}; --names can make it a class")
            void.append(color)
        else:
            classes.append({"name": found[1], "rgb": [color]})
    try:
        return names.by_colors(classes, void)
    except LabelError as error:
        raise LabelError(f"{labelmap.uri}: {error}") from None


def _by_name(listing: Listing, folder: str) -> dict[str, File]:
    """The files of a folder by name. Raises DataError when there are none."""
    found = listing.by_stem(folder)
    if not found:
        raise DataError(
            f"{storage.join(listing.source, folder)}: this folder does not exist, or holds no images; VOC has JPEGImages/, "
            f"SegmentationClass/ and {_LISTS}/ side by side (CVAT exports images if you say so)"
        )
    return found


VOC = Layout(
    find,
    "PASCAL VOC 2007 or 2012: classes by labelmap.txt (CVAT) or --names, else 20 kinds of objects and background, 255 = void",
    "JPEGImages/, SegmentationClass/, ImageSets/Segmentation/{train,val}.txt (or trainval.txt or default.txt; and test.txt, "
    "where its masks are there), perhaps labelmap.txt; or a folder above",
    "images: Flickr's terms of use (PASCAL VOC, Everingham et al.)",
)
