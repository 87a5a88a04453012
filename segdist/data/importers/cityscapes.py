"""Cityscapes with its fine masks: 34 labelIds, of which the benchmark scores 19 classes.

The masks of test show nothing but the car's own bonnet and the borders: the real ones are kept by the evaluation server.
"""

from __future__ import annotations

from segdist import console, storage
from segdist.data.importers.files import IMAGE_SUFFIXES
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, Pair
from segdist.data.importers.release import root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError

_IMAGE, _MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The pairs of leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY, for train and val."""
    listing = Listing(source, {*IMAGE_SUFFIXES, ".json"})  # polygons are no masks, but a message names them
    images, masks = (
        f"{root_of(listing, (kind,), 'the layout of Cityscapes')}{kind}" for kind in ("leftImg8bit", "gtFine")
    )
    splits = {
        split: _pairs(listing, f"{images}/{split}", f"{masks}/{split}", ask)
        for split in ("train", "val")
        if listing.below(f"{images}/{split}") or listing.below(f"{masks}/{split}")
    }
    if not splits:
        raise DataError(
            f"{storage.join(source, images)}: neither train/ nor val/ is there; unpack leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip into one folder"
        )
    if listing.below(f"{masks}/test"):
        console.say("test is left out: its masks are not public, those in gtFine/test are empty")
    return ImportPlan(splits, CONTRACTS["cityscapes"])


def _pairs(listing: Listing, images: str, masks: str, ask: ImportOptions) -> list[Pair]:
    """Pairs of equal city, sequence and frame. Tells ask.unpaired of what has no partner; raises DataError without masks."""
    there = {
        kind: {name.removesuffix(kind): file for name, file in listing.below(folder).items() if name.endswith(kind)}
        for folder, kind in ((images, _IMAGE), (masks, _MASK))
    }
    if there[_IMAGE] and not there[_MASK]:
        raise DataError(
            f"{storage.join(listing.source, masks)}: no *{_MASK} are there{_instead(listing, masks)}. They are part of "
            "gtFine_trainvaltest.zip (`csDownload gtFine_trainvaltest.zip` of cityscapesscripts); *_labelTrainIds.png, as "
            "csCreateTrainIdLabelImgs makes them, hold other numbers and do not replace them"
        )
    for kind, other, folder in ((_IMAGE, _MASK, masks), (_MASK, _IMAGE, images)):
        if lonely := [key for key in there[kind] if key not in there[other]]:
            expected = storage.join(listing.source, f"{folder}/{lonely[0]}{other}")
            more = f" ({len(lonely)} files are unpaired in all)" if len(lonely) > 1 else ""
            text = f"{there[kind][lonely[0]].uri}: expected {expected} beside it{more}; unpack both archives again"
            ask.unpaired(DataError(text))
    paired = [(key, file) for key, file in there[_IMAGE].items() if key in there[_MASK]]
    return [Pair(key.rsplit("/", 1)[-1], file, there[_MASK][key]) for key, file in paired]


def _instead(listing: Listing, masks: str) -> str:
    """What the folder of masks holds, for a message."""
    kinds = sorted({name.rsplit("_", 1)[-1] for name in listing.below(masks)})
    return f", only {', '.join(f'*_{kind}' for kind in kinds[:4])}" if kinds else ""


CITYSCAPES = Layout(
    find,
    "Cityscapes: street scenes, 34 labelIds, of which 19 classes count; train and val",
    "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png, gtFine/{train,val}/CITY/*_gtFine_labelIds.png; or a folder above",
    "Cityscapes' own licence: non-commercial use such as research and teaching (Cordts et al. 2016)",
)
