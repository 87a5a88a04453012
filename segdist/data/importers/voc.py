"""PASCAL VOC 2007 and 2012: palette PNGs whose indices are the classes, 255 between them; lists of names say the splits.

Of the test sets, the organisers published the masks of 2007 only.
"""

from __future__ import annotations

from segdist import log, storage
from segdist.data.importers.files import File
from segdist.data.importers.layout import Ask, Found, Layout, Listing, Pair, split_off
from segdist.data.importers.release import SUFFIXES, check_disjoint, listed, pairs_of, root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError

_LISTS = "ImageSets/Segmentation"


def find(source: str, ask: Ask) -> Found:
    """The pairs that ImageSets/Segmentation names, in the one VOC20xx that SOURCE is or holds."""
    listing = Listing(source, SUFFIXES)
    root = root_of(listing, ("JPEGImages", "SegmentationClass", _LISTS), "PASCAL VOC's layout")
    images, masks = (_pictures(listing, f"{root}{folder}") for folder in ("JPEGImages", "SegmentationClass"))
    present = {s for s in ("train", "val", "trainval", "test") if listing.get(f"{root}{_LISTS}/{s}.txt")}

    def taken(split: str) -> list[Pair]:
        path = f"{root}{_LISTS}/{split}.txt"
        return pairs_of(listing, listed(listing, path), path, images, masks)

    if present >= {"train", "val"}:
        splits = {s: taken(s) for s in ("train", "val")}
    elif "trainval" in present:
        splits = split_off(taken("trainval"), ask)
    else:
        raise DataError(
            f"{storage.join(source, root + _LISTS)}: the lists train.txt and val.txt (or trainval.txt) are not both there; "
            "take them from the archive again"
        )
    if "test" in present:
        if any(name in masks for name in listed(listing, f"{root}{_LISTS}/test.txt")):
            splits["test"] = taken("test")
        else:
            log.say("test is left out: its masks are not public (those of 2007 are)")
    check_disjoint(splits, source)
    return Found(splits, CONTRACTS["voc"])


def _pictures(listing: Listing, folder: str) -> dict[str, File]:
    """The pictures of a folder by name. Raises DataError when there are none."""
    found = listing.by_stem(folder)
    if not found:
        raise DataError(
            f"{storage.join(listing.source, folder)}: this folder does not exist, or holds no pictures; VOC has JPEGImages/, "
            f"SegmentationClass/ and {_LISTS}/ side by side"
        )
    return found


VOC = Layout(
    find,
    "PASCAL VOC 2007 or 2012: your own classes by --names, else 20 kinds of objects and background, 255 = void",
    "JPEGImages/, SegmentationClass/, ImageSets/Segmentation/{train,val}.txt (or trainval.txt; and test.txt, where its masks "
    "are there); or a folder above",
    "images: Flickr's terms of use (PASCAL VOC, Everingham et al.)",
)
