"""ADE20K as the Scene Parsing Challenge of 2016 published it (SceneParse150): 150 classes as 1..150, 0 is void."""

from __future__ import annotations

from segdist import storage
from segdist.data.importers.layout import ImportOptions, ImportPlan, Layout, Listing, pair_up
from segdist.data.importers.release import root_of
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError

_SPLITS = {"training": "train", "validation": "val"}


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The pairs of images/{training,validation} and annotations/{training,validation}."""
    listing = Listing(source)
    _refuse_full(listing)
    folders = [f"{kind}/{split}" for kind in ("annotations", "images") for split in _SPLITS]
    root = root_of(listing, folders, "the layout of ADEChallengeData2016")
    splits = {}
    for folder, split in _SPLITS.items():
        images, masks = f"{root}images/{folder}", f"{root}annotations/{folder}"
        if listing.below(images) or listing.below(masks):
            splits[split] = pair_up(listing, images, masks, ask)
    return ImportPlan(splits, CONTRACTS["ade20k"])


def _refuse_full(listing: Listing) -> None:
    """Raises DataError for the full ADE20K, whose masks hold 3,000 kinds of objects in two channels, beside the images."""
    full = next((path for path in listing.paths() if path.endswith("_seg.png")), None)
    if full:
        raise DataError(
            f"{storage.join(listing.source, full)}: this is the full ADE20K, whose *_seg.png code thousands of classes as "
            "colours; the benchmark of 150 classes is ADEChallengeData2016.zip of sceneparsing.csail.mit.edu: give that"
        )


ADE20K = Layout(
    find,
    "ADE20K, SceneParse150 (ADEChallengeData2016): scenes, 150 classes as 1..150, 0 = void",
    "images/{training,validation}/, annotations/{training,validation}/; or a folder above",
    "images: non-commercial research and education; annotations: BSD-3-Clause (ADE20K, Zhou et al. 2017)",
)
