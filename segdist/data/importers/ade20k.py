"""ADE20K as published for the Scene Parsing Challenge 2016 (SceneParse150): 150 classes with values 1..150; 0 is void."""

from __future__ import annotations

from segdist import storage
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, pair_up
from segdist.data.importers.published import root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError

_SPLITS = {"training": "train", "validation": "val"}


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs of images/{training,validation} and annotations/{training,validation}."""
    listing = Listing(source)
    _refuse_full(listing)
    folders = [f"{kind}/{split}" for kind in ("annotations", "images") for split in _SPLITS]
    root = root_of(listing, folders, "the layout of ADEChallengeData2016")
    splits = {}
    for folder, split in _SPLITS.items():
        images, masks = f"{root}images/{folder}", f"{root}annotations/{folder}"
        if listing.below(images) or listing.below(masks):
            splits[split] = pair_up(listing, images, masks, options)
    return ImportPlan(splits, CONTRACTS["ade20k"])


def _refuse_full(listing: Listing) -> None:
    """Raise DataError for the full ADE20K, whose masks encode 3,000 kinds of objects in two channels."""
    full = next((path for path in listing.paths() if path.endswith("_seg.png")), None)
    if full:
        raise DataError(
            f"{storage.join(listing.source, full)}: this is the full ADE20K, whose *_seg.png encode thousands of classes as "
            "colours. Give the benchmark of 150 classes instead: ADEChallengeData2016.zip from sceneparsing.csail.mit.edu"
        )


ADE20K = Layout(
    find,
    "ADE20K, SceneParse150 (ADEChallengeData2016): scenes, 150 classes with values 1..150, 0 = void",
    "images/{training,validation}/, annotations/{training,validation}/; or a folder above",
    "images: non-commercial research and education; annotations: BSD-3-Clause (ADE20K, Zhou et al. 2017)",
)
