"""Cityscapes with its fine masks: 34 label IDs, of which the benchmark scores 19 classes.

The published masks of test contain only the ego vehicle and the image borders. The evaluation server keeps the real ones.
"""

from __future__ import annotations

from segdist import console, storage
from segdist.data.importers.files import IMAGE_SUFFIXES
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, Pair
from segdist.data.importers.published import root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError, first_few

_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs of leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, for train and val."""
    listing = Listing(source, {*IMAGE_SUFFIXES, ".json"})  # polygons are not masks, but an error message may name them
    images, masks = (
        f"{root_of(listing, (kind,), 'the layout of Cityscapes')}{kind}" for kind in ("leftImg8bit", "gtFine")
    )
    splits = {
        split: _pairs(listing, f"{images}/{split}", f"{masks}/{split}", options)
        for split in ("train", "val")
        if listing.below(f"{images}/{split}") or listing.below(f"{masks}/{split}")
    }
    if not splits:
        raise DataError(
            f"{storage.join(source, images)}: found neither train/ nor val/. Unpack leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip into one folder"
        )
    if listing.below(f"{masks}/test"):
        console.say("leaving out test: its masks are not public, and those in gtFine/test are empty")
    return ImportPlan(splits, CONTRACTS["cityscapes"])


def _pairs(listing: Listing, images: str, masks: str, options: ImportOptions) -> list[Pair]:
    """Pair files of the same city, sequence and frame. Reports unpaired files; raises DataError if there are no masks."""
    there = {
        kind: {name.removesuffix(kind): file for name, file in listing.below(folder).items() if name.endswith(kind)}
        for folder, kind in ((images, _IMAGE), (masks, _MASK))
    }
    if there[_IMAGE] and not there[_MASK]:
        raise DataError(
            f"{storage.join(listing.source, masks)}: found no *{_MASK}{_other_kinds(listing, masks)}. Download "
            "gtFine_trainvaltest.zip (`csDownload gtFine_trainvaltest.zip` from cityscapesscripts). The *_labelTrainIds.png of "
            "csCreateTrainIdLabelImgs hold other values and cannot be used instead"
        )
    for kind, other, folder in ((_IMAGE, _MASK, masks), (_MASK, _IMAGE, images)):
        if lonely := [key for key in there[kind] if key not in there[other]]:
            expected = storage.join(listing.source, f"{folder}/{lonely[0]}{other}")
            more = f" ({len(lonely)} files are unpaired in all)" if len(lonely) > 1 else ""
            text = f"{there[kind][lonely[0]].uri}: its partner {expected} is missing{more}. Unpack both archives again"
            options.on_unpaired(DataError(text))
    paired = [(key, file) for key, file in there[_IMAGE].items() if key in there[_MASK]]
    return [Pair(key.rsplit("/", 1)[-1], file, there[_MASK][key]) for key, file in paired]


def _other_kinds(listing: Listing, masks: str) -> str:
    """Return which other kinds of files the mask folder holds, for an error message."""
    kinds = sorted({name.rsplit("_", 1)[-1] for name in listing.below(masks)})
    return f", only {first_few([f'*_{kind}' for kind in kinds], 4)}" if kinds else ""


CITYSCAPES = Layout(
    find,
    "Cityscapes: street scenes, 34 label IDs, 19 of them scored; train and val",
    "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, gtFine/{train,val}/CITY/*_gtFine_labelIds.png; or a folder above",
    "Cityscapes' own licence: non-commercial use such as research and teaching (Cordts et al. 2016)",
)
