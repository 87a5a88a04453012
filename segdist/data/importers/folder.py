"""images/ and masks/ with matching file names, and CamVid, whose layout is similar."""

from __future__ import annotations

from segdist.data import labels as contracts
from segdist.data.importers.layout import (
    SPLIT_NAMES,
    ImportOptions,
    ImportPlan,
    Layout,
    Listing,
    layout_hint,
    pair_up,
    report_left_out,
    split_off,
    splits_of,
)
from segdist.data.labels import Labels
from segdist.data.presets import CONTRACTS
from segdist.data.unknown_values import format_ranges
from segdist.errors import DataError, LabelError, first_few

_MANY_CLASSES = 64  # more classes must be named explicitly


def find(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs of SOURCE/{images,masks}/..., SOURCE/SPLIT/{images,masks}/... or SOURCE/{images,masks}/SPLIT/..."""
    listing = Listing(source)
    tops = listing.names()
    if "images" in tops:
        splits = [s for s in listing.names("images") if s in SPLIT_NAMES]
        if splits:
            names = splits_of(source, splits)
            _check_no_extra_images(listing, splits)
            return ImportPlan({names[s]: pair_up(listing, f"images/{s}", f"masks/{s}", options) for s in splits})
        return ImportPlan(split_off(pair_up(listing, "images", "masks", options), options))
    splits = [s for s in tops if "images" in listing.names(s)]
    if not splits:
        raise DataError(
            f"{source}: found neither images/ and masks/ nor SPLIT/images and SPLIT/masks. Put images and masks with matching "
            "file names into such folders, or choose another layout with --format (see `segdist prepare --list`)"
            f"{layout_hint(listing)}"
        )
    names = splits_of(source, splits)
    report_left_out(listing, [f"{s}/{kind}" for s in splits for kind in ("images", "masks")])
    return ImportPlan({names[s]: pair_up(listing, f"{s}/images", f"{s}/masks", options) for s in splits})


def _check_no_extra_images(listing: Listing, splits: list[str]) -> None:
    """Raise DataError if images in images/ or masks/ are outside the folders of all splits."""
    left = [f"{t}/{n}" for t in ("images", "masks") for n in sorted(listing.below(t)) if n.split("/")[0] not in splits]
    if left:
        raise DataError(
            f"{listing.source}: {len(left)} images are outside the splits {', '.join(splits)}: {first_few(left, 3)}. Move them "
            "into a split, or out of images/ and masks/"
        )


def find_camvid(source: str, options: ImportOptions) -> ImportPlan:
    """Return the pairs of CamVid in the layout of SegNet's authors."""
    listing = Listing(source)
    splits = [s for s in ("train", "val", "test") if s in listing.names()]
    if not splits:
        raise DataError(
            f"{source}: not CamVid's layout (train/, trainannot/, val/, valannot/). Give the folder that holds these folders"
        )
    return ImportPlan({s: pair_up(listing, s, f"{s}annot", options) for s in splits}, CONTRACTS["camvid"])


def infer_labels(found: set[int], void: tuple[int, ...]) -> Labels:
    """Return a contract for masks without class names: values 0..max are classes. Raises LabelError if that is implausible."""
    values = sorted(found - set(void))
    if values in ([0], []) and 255 in found:
        raise LabelError(
            "the masks hold only 0 and 255, and 255 is void unless declared. If 255 is a class, say "
            "--names background=0,object=255"
        )
    if len(values) > _MANY_CLASSES:
        raise LabelError(
            f"the masks hold {len(values)} values beside void ({format_ranges(values)}), which is too many for classes. "
            "They may be grey images, or were anti-aliased, resized or JPEG-compressed. Export them without that (nearest "
            "neighbour, PNG). If there are so many classes, say --names"
        )
    if len(values) < 2:
        raise LabelError(f"the masks hold only the values {format_ranges(found)}. At least two classes are needed")
    if len(values) < (values[-1] + 1) / 2 or values[-1] >= contracts.MAX_CLASSES:
        raise LabelError(
            f"the masks hold the values {format_ranges(values)}, which are not 0, 1, 2, .... Declare what they mean "
            "with --names name=value,..."
        )
    raw = [v for v in range(values[-1] + 1) if v not in void]
    return contracts.plain([f"class {v}" for v in raw], void, raw)


FOLDER = Layout(
    find,
    "your own images and masks with matching file names",
    "images/ and masks/, optionally with train/ and val/ above or below them",
)
CAMVID = Layout(
    find_camvid,
    "CamVid: street scenes, 11 classes, 11 = void",
    "train/, trainannot/, val/, valannot/ (and test/, testannot/)",
    "research use (CamVid, Brostow et al. 2009)",
)
