"""What every importer shares: the source's listing, pairs of image and mask, and what an importer finds."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from segdist import console, storage
from segdist.data.importers.files import IMAGE_SUFFIXES, Content, Decode, File, decode_mask, waiting
from segdist.data.labels import Labels
from segdist.data.order import key
from segdist.errors import DataError

SPLIT_NAMES = {  # what people call them
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# and folders that they name otherwise
_MASKS = {"mask", "label", "labels", "annotation", "annotations", "gt", "ground_truth", "segmentation", "segmentations"}
_IMAGES = {"image", "img", "imgs", "photos", "pictures", "jpegimages"}
FEW = 50  # pairs; a split of fewer keeps to its share, one of more to its samples


@dataclass(frozen=True)
class Pair:
    """One image with its mask; `sample_id` is unique in its split. `decode` makes raw values of the mask's bytes."""

    sample_id: str
    image: Content
    mask: Content
    decode: Decode = decode_mask


Splits = dict[str, list[Pair]]


def refuse(error: DataError) -> None:
    raise error


@dataclass(frozen=True)
class ImportOptions:
    """What a person may ask of an importer."""

    val_share: float = 0.2
    seed: int = 0
    limit: int | None = None  # samples per split; the rest need not be read
    revision: str | None = None  # of a Hub data set
    subset: str | None = None  # configuration of a Hub data set; kind of COCO's annotations
    image_column: str | None = None
    mask_column: str | None = None
    unpaired: Callable[[DataError], None] = refuse  # told of files without partner; where it returns, they are left out


@dataclass(frozen=True)
class ImportPlan:
    """What an importer found. `labels` is the contract that the source declares, if it does."""

    splits: Splits
    labels: Labels | None = None
    licence: str = ""
    source: str = ""  # what it is, for the record: name, version, address


@dataclass(frozen=True)
class Layout:
    """An importer, and what `segdist prepare --list` says of it."""

    find: Callable[[str, ImportOptions], ImportPlan]  # (source, what is asked)
    about: str
    expects: str  # the files it looks for
    licence: str = ""
    options: tuple[str, ...] = ()  # fields of Ask that only some importers read


class Listing:
    """The files below a source, by one listing."""

    def __init__(self, source: str, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> None:
        self.source = source
        self._suffixes = set(suffixes)
        self._files = {
            e.name: File(storage.join(source, e.name), e.num_bytes, e.tag)
            for e in storage.with_retries(lambda: storage.walk(source), waiting)
            if PurePosixPath(e.name).suffix.lower() in self._suffixes and not PurePosixPath(e.name).name.startswith(".")
        }
        for name in self._files:
            if not _is_text(name):
                shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                raise DataError(f"{storage.join(source, shown)}: this file's name is no UTF-8 text; rename it")

    def get(self, name: str) -> File | None:
        """One file, by its path below the source."""
        return self._files.get(name)

    def paths(self) -> list[str]:
        """The paths below the source of all files, sorted."""
        return sorted(self._files)

    def below(self, folder: str) -> dict[str, File]:
        """The files of a folder, or of the whole source for "", by their path in it."""
        prefix = f"{folder}/" if folder else ""
        return {n.removeprefix(prefix): f for n, f in self._files.items() if n.startswith(prefix)}

    def by_stem(self, folder: str) -> dict[str, File]:
        """The files of a folder by their path in it without suffix, sorted. Raises DataError for two of one name."""
        found: dict[str, File] = {}
        for name, file in sorted(self.below(folder).items()):
            # a Mac writes é as e and an accent; names that look equal are equal
            stem = unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))
            if stem in found:
                twin = found[stem].uri.rsplit("/", 1)[-1]
                raise DataError(f"{file.uri}: {twin} has the same name without suffix; rename one of them")
            found[stem] = file
        return dict(sorted(found.items()))

    def names(self, folder: str = "") -> list[str]:
        """Names directly in a folder, or in the source itself; what holds nothing is among them."""
        found = storage.names(storage.join(self.source, folder) if folder else self.source)
        return [name for name in found if PurePosixPath(name).suffix.lower() not in self._suffixes]


def splits_of(source: str, folders: Iterable[str]) -> dict[str, str]:
    """The split of each folder, by its usual names, else its own. Raises DataError for two folders of one split."""
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for folder in folders:
        split = found[folder] = SPLIT_NAMES.get(folder, folder)
        first = owners.setdefault(split, folder)
        if first != folder:
            raise DataError(
                f"{source}: {first}/ and {folder}/ are both the split {split!r}; merge them, or move one elsewhere"
            )
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
        return True
    except UnicodeEncodeError:
        return False


def pair_up(source: Listing, images: str, masks: str, ask: ImportOptions) -> list[Pair]:
    """Pairs of equal names (without suffix) below two folders, sorted. Tells ask.unpaired of what has no partner.

    Raises DataError when one of the folders is empty, or not there.
    """
    found = {folder: source.by_stem(folder) for folder in (images, masks)}
    for folder, other in ((images, masks), (masks, images)):
        if found[other] and not found[folder]:
            raise DataError(
                f"{storage.join(source.source, folder)}: this folder does not exist, or holds no images; {images}/ and "
                f"{masks}/ stand side by side, with equal names{hint(source)}"
            )
    if affix := _affix(list(found[images]), set(found[masks])):
        prefix, suffix = affix
        console.say(f"the masks in {masks} are called {prefix}NAME{suffix}, the images in {images} NAME: paired so")
        return [Pair(stem, file, found[masks][_affixed(stem, *affix)]) for stem, file in found[images].items()]
    lonely = [
        (file, kind, other, f"{storage.join(source.source, place)}/{stem}")
        for folder, kind, other, place in ((images, "image", "mask", masks), (masks, "mask", "image", images))
        for stem, file in found[folder].items()
        if stem not in found[place]
    ]
    if lonely:
        file, kind, other, expected = lonely[0]
        near = next(
            (
                f.uri
                for f, k, _, _ in lonely
                if k == other and PurePosixPath(file.uri).stem in PurePosixPath(f.uri).stem
            ),
            "",
        )
        meant = (
            f" Is {near} meant? Masks may have one prefix or suffix more than images, but all the same." if near else ""
        )
        more = f" ({len(lonely)} files are unpaired in all)" if len(lonely) > 1 else ""
        text = (
            f"{file.uri}: this {kind} has no {other}; expected {expected}.*. Add it, or remove the {kind}{more}.{meant}"
        )
        ask.unpaired(DataError(text))
    return [Pair(stem, file, found[masks][stem]) for stem, file in found[images].items() if stem in found[masks]]


def _affixed(stem: str, prefix: str, suffix: str) -> str:
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{prefix}{name}{suffix}"


def _affix(images: list[str], masks: set[str]) -> tuple[str, str] | None:
    """(prefix, suffix), of which one is empty, that the masks' names have beyond the images', if it pairs them all."""
    if len(images) < 2 or len(images) != len(masks) or masks.issuperset(images):
        return None
    longest = max(images, key=len)  # few masks' names hold it by chance
    folder, slash, name = longest.rpartition("/")
    for mask in sorted(masks):
        other = mask.removeprefix(folder + slash)
        affix = ("", other.removeprefix(name)) if other.startswith(name) else (other.removesuffix(name), "")
        if _affixed(longest, *affix) == mask and all(_affixed(stem, *affix) in masks for stem in images):
            return affix
    return None


def hint(source: Listing) -> str:
    """What to say of folders at the source's top that seem to be images/ or masks/ by another name, or of labelme's files."""
    jsons = {PurePosixPath(path).with_suffix("") for path in Listing(source.source, {".json"}).paths()}
    if any(PurePosixPath(path).with_suffix("") in jsons for path in source.paths()):
        return "; are the JSON files beside the images labelme's? Then say --format labelme"
    there = [(name, "masks") for name in source.names() if name.lower() in _MASKS]
    there += [(name, "images") for name in source.names() if name.lower() in _IMAGES]
    return "".join(f"; is {name}/ what should be called {right}/? Rename it" for name, right in there)


def tell_left(source: Listing, folders: Iterable[str]) -> None:
    """Says, in one line, which images lie outside of these folders and are therefore left out."""
    taken = tuple(f"{folder}/" for folder in folders)
    if left := [path for path in source.paths() if not path.startswith(taken)]:
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        console.say(f"{source.source}: {len(left)} images outside of {', '.join(taken)} are left out: {shown}")


def split_off(pairs: list[Pair], ask: ImportOptions) -> Splits:
    """train and val by the digest of each name: those of the smallest digests are val, one at least and not all.

    Below 50 pairs val has its share of them, rounded. From there on it has the digests below a threshold, which meets the
    share on average, and adding images later moves no other one.
    """
    rank = {p.sample_id: int(key(ask.seed, 12, *p.sample_id.encode())) for p in pairs}
    below = sum(r < ask.val_share * 2**64 for r in rank.values())
    num = below if len(pairs) >= FEW else round(ask.val_share * len(pairs))
    chosen = set(sorted(rank, key=rank.__getitem__)[: max(0, min(max(num, 1), len(pairs) - 1))])
    return {
        "train": [p for p in pairs if p.sample_id not in chosen],
        "val": [p for p in pairs if p.sample_id in chosen],
    }
