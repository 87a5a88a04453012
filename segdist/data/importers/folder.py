"""images/ and masks/ with equal names, and CamVid, which is laid out almost so."""

from __future__ import annotations

from segdist.data import labels as contracts
from segdist.data.causes import ranges
from segdist.data.importers.layout import (
    SPLIT_NAMES,
    ImportOptions,
    ImportPlan,
    Layout,
    Listing,
    hint,
    pair_up,
    split_off,
    splits_of,
    tell_left,
)
from segdist.data.labels import Labels
from segdist.data.presets import CONTRACTS
from segdist.errors import DataError, LabelError

_MANY_CLASSES = 64  # more are named by a person


def find(source: str, ask: ImportOptions) -> ImportPlan:
    """The pairs of SOURCE/{images,masks}/..., SOURCE/SPLIT/{images,masks}/..., or SOURCE/{images,masks}/SPLIT/..."""
    listing = Listing(source)
    tops = listing.names()
    if "images" in tops:
        splits = [s for s in listing.names("images") if s in SPLIT_NAMES]
        if splits:
            names = splits_of(source, splits)
            _check_taken(listing, splits)
            return ImportPlan({names[s]: pair_up(listing, f"images/{s}", f"masks/{s}", ask) for s in splits})
        return ImportPlan(split_off(pair_up(listing, "images", "masks", ask), ask))
    splits = [s for s in tops if "images" in listing.names(s)]
    if not splits:
        raise DataError(
            f"{source}: found neither images/ and masks/ nor SPLIT/images and SPLIT/masks there; put images and masks of "
            f"equal names into such folders (or name another layout with --format: see `segdist prepare --list`){hint(listing)}"
        )
    names = splits_of(source, splits)
    tell_left(listing, [f"{s}/{kind}" for s in splits for kind in ("images", "masks")])
    return ImportPlan({names[s]: pair_up(listing, f"{s}/images", f"{s}/masks", ask) for s in splits})


def _check_taken(listing: Listing, splits: list[str]) -> None:
    """Raises DataError for images in images/ and masks/ that lie in the folder of no split."""
    left = [f"{t}/{n}" for t in ("images", "masks") for n in sorted(listing.below(t)) if n.split("/")[0] not in splits]
    if left:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        raise DataError(
            f"{listing.source}: {len(left)} images lie beside the splits {', '.join(splits)}: {shown}; move them into "
            "one, or out of images/ and masks/"
        )


def find_camvid(source: str, ask: ImportOptions) -> ImportPlan:
    """The pairs of CamVid as SegNet's authors laid it out."""
    listing = Listing(source)
    splits = [s for s in ("train", "val", "test") if s in listing.names()]
    if not splits:
        raise DataError(f"{source}: not CamVid's layout (train/, trainannot/, val/, valannot/)")
    return ImportPlan({s: pair_up(listing, s, f"{s}annot", ask) for s in splits}, CONTRACTS["camvid"])


def infer_labels(found: set[int], void: tuple[int, ...]) -> Labels:
    """A contract for masks without names: values 0..most are classes, `void` is void. Raises LabelError when unlikely."""
    values = sorted(found - set(void))
    if values in ([0], []) and 255 in found:
        raise LabelError(
            "the masks hold only 0 and 255, and 255 is void unless declared; did you mean a class? "
            "Say --names background=0,object=255"
        )
    if len(values) > _MANY_CLASSES:
        raise LabelError(
            f"the masks hold {len(values)} values beside void ({ranges(values)}), which is much for classes: were the masks "
            "anti-aliased, resized or JPEG-compressed, or are they grey images? Export them without that (nearest "
            "neighbour, PNG); if there really are so many classes, say --names"
        )
    if len(values) < 2:
        raise LabelError(f"the masks hold only the values {ranges(found)}; at least two classes are needed")
    if len(values) < (values[-1] + 1) / 2 or values[-1] >= contracts.MAX_CLASSES:
        raise LabelError(
            f"the masks hold the values {ranges(values)}, which are not 0, 1, 2, ...; say what they mean with "
            "--names name=value,..."
        )
    raw = [v for v in range(values[-1] + 1) if v not in void]
    return contracts.plain([f"class {v}" for v in raw], void, raw)


FOLDER = Layout(
    find,
    "your own images and masks, of equal names",
    "images/ and masks/, with train/ and val/ above or below, or none",
)
CAMVID = Layout(
    find_camvid,
    "CamVid: street scenes, 11 classes, 11 = void",
    "train/, trainannot/, val/, valannot/ (and test/, testannot/)",
    "research use (CamVid, Brostow et al. 2009)",
)
