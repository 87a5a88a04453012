"""Shared by all importers: the listing of the source, pairs of image and mask, and the importers' results."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from segdist import console, storage
from segdist.data.importers.files import IMAGE_SUFFIXES, Content, Decode, File, decode_mask, report_retry
from segdist.data.labels import Labels
from segdist.data.order import key
from segdist.errors import DataError, first_few

SPLIT_NAMES = {  # usual names of splits
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# usual names of folders that segdist expects as masks/ and images/
_MASKS = {"mask", "label", "labels", "annotation", "annotations", "gt", "ground_truth", "segmentation", "segmentations"}
_IMAGES = {"image", "img", "imgs", "photos", "pictures", "jpegimages"}
SMALL = 50  # pairs; below this a split-off val has exactly its share, see `split_off`


@dataclass(frozen=True)
class Pair:
    """One image with its mask. `sample_id` is unique in its split. `decode` turns the mask's bytes into raw values."""

    sample_id: str
    image: Content
    mask: Content
    decode: Decode = decode_mask


Splits = dict[str, list[Pair]]


def raise_error(error: DataError) -> None:
    raise error


@dataclass(frozen=True)
class ImportOptions:
    """Options of an importer."""

    val_share: float = 0.2
    seed: int = 0
    limit: int | None = None  # samples per split; others need not be read
    revision: str | None = None  # of a dataset on the Hub
    # configuration of a dataset on the Hub; kind of COCO annotations; labelset of Segments.ai
    subset: str | None = None
    image_column: str | None = None
    mask_column: str | None = None
    # called for unpaired files; if it returns, they are left out
    on_unpaired: Callable[[DataError], None] = raise_error


@dataclass(frozen=True)
class ImportPlan:
    """Result of an importer. `labels` is the contract that the source declares, if any."""

    splits: Splits
    labels: Labels | None = None
    licence: str = ""
    source: str = ""  # description for the record: name, version, URI


@dataclass(frozen=True)
class Layout:
    """An importer, and its description for `segdist prepare --list`."""

    find: Callable[[str, ImportOptions], ImportPlan]  # (source, options)
    about: str
    expects: str  # the files it looks for
    licence: str = ""
    options: tuple[str, ...] = ()  # fields of ImportOptions that only some importers read


class Listing:
    """The files below a source, from a single listing."""

    def __init__(self, source: str, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> None:
        self.source = source
        self._suffixes = set(suffixes)
        self._files = {
            e.name: File(storage.join(source, e.name), e.num_bytes, e.tag)
            for e in storage.with_retries(lambda: storage.walk(source), report_retry)
            if PurePosixPath(e.name).suffix.lower() in self._suffixes and not PurePosixPath(e.name).name.startswith(".")
        }
        for name in self._files:
            if not _is_text(name):
                escaped = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                raise DataError(f"{storage.join(source, escaped)}: this file's name is not UTF-8 text. Rename it")

    def get(self, name: str) -> File | None:
        """Return one file by its path below the source, or None."""
        return self._files.get(name)

    def paths(self) -> list[str]:
        """Return the paths of all files below the source, sorted."""
        return sorted(self._files)

    def below(self, folder: str) -> dict[str, File]:
        """Return the files of a folder by their path in it; "" is the whole source."""
        prefix = f"{folder}/" if folder else ""
        return {n.removeprefix(prefix): f for n, f in self._files.items() if n.startswith(prefix)}

    def by_stem(self, folder: str) -> dict[str, File]:
        """Return the files of a folder, sorted, by path without extension. Raises DataError if two have the same such path."""
        found: dict[str, File] = {}
        for name, file in sorted(self.below(folder).items()):
            # macOS writes é as e and an accent; names that look equal must be equal
            stem = unicodedata.normalize("NFC", str(PurePosixPath(name).with_suffix("")))
            if stem in found:
                twin = found[stem].uri.rsplit("/", 1)[-1]
                raise DataError(f"{file.uri}: {twin} has the same name without extension. Rename one of them")
            found[stem] = file
        return dict(sorted(found.items()))

    def names(self, folder: str = "") -> list[str]:
        """Return the names directly in a folder, or in the source, including empty folders."""
        found = storage.names(storage.join(self.source, folder) if folder else self.source)
        return [name for name in found if PurePosixPath(name).suffix.lower() not in self._suffixes]


def splits_of(source: str, folders: Iterable[str]) -> dict[str, str]:
    """Return the split of each folder: by its usual names, else the folder's name. Raises DataError for two of one split."""
    found: dict[str, str] = {}
    owners: dict[str, str] = {}
    for folder in folders:
        split = found[folder] = SPLIT_NAMES.get(folder, folder)
        first = owners.setdefault(split, folder)
        if first != folder:
            raise DataError(
                f"{source}: {first}/ and {folder}/ are both the split {split!r}. Merge them, or move one elsewhere"
            )
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
        return True
    except UnicodeEncodeError:
        return False


def pair_up(source: Listing, images: str, masks: str, options: ImportOptions) -> list[Pair]:
    """Return pairs of equal names (without extension) below two folders, sorted. Reports the rest to options.on_unpaired.

    Raises DataError if one of the folders is missing or empty.
    """
    found = {folder: source.by_stem(folder) for folder in (images, masks)}
    for folder, other in ((images, masks), (masks, images)):
        if found[other] and not found[folder]:
            raise DataError(
                f"{storage.join(source.source, folder)}: this folder does not exist, or holds no images. {images}/ and "
                f"{masks}/ must be side by side, with matching file names{layout_hint(source)}"
            )
    if affix := _affix(list(found[images]), set(found[masks])):
        prefix, suffix = affix
        console.say(f"pairing masks named {prefix}NAME{suffix} in {masks} with images named NAME in {images}")
        return [Pair(stem, file, found[masks][_affixed(stem, *affix)]) for stem, file in found[images].items()]
    lonely = [
        (file, kind, other, f"{storage.join(source.source, place)}/{stem}")
        for folder, kind, other, place in ((images, "image", "mask", masks), (masks, "mask", "image", images))
        for stem, file in found[folder].items()
        if stem not in found[place]
    ]
    if lonely:
        file, kind, other, expected = lonely[0]
        stem = PurePosixPath(file.uri).stem
        similar = next((f.uri for f, k, _, _ in lonely if k == other and stem in PurePosixPath(f.uri).stem), None)
        more = f" ({len(lonely)} files are unpaired in all)" if len(lonely) > 1 else ""
        text = f"{file.uri}: this {kind} has no {other}; expected {expected}.*{more}. Add it, or remove the {kind}"
        if similar:
            text += f". If {similar} is its {other}, rename it. Masks may have a prefix or suffix, but all the same one"
        options.on_unpaired(DataError(text))
    return [Pair(stem, file, found[masks][stem]) for stem, file in found[images].items() if stem in found[masks]]


def _affixed(stem: str, prefix: str, suffix: str) -> str:
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{prefix}{name}{suffix}"


def _affix(images: list[str], masks: set[str]) -> tuple[str, str] | None:
    """Return (prefix, suffix), one of them empty, that the masks' names have and the images' lack, if it pairs them all."""
    if len(images) < 2 or len(images) != len(masks) or masks.issuperset(images):
        return None
    longest = max(images, key=len)  # the name least likely to occur in others by chance
    folder, slash, name = longest.rpartition("/")
    for mask in sorted(masks):
        other = mask.removeprefix(folder + slash)
        affix = ("", other.removeprefix(name)) if other.startswith(name) else (other.removesuffix(name), "")
        if _affixed(longest, *affix) == mask and all(_affixed(stem, *affix) in masks for stem in images):
            return affix
    return None


def layout_hint(source: Listing) -> str:
    """Return a hint for errors if folders look like images/ or masks/ with another name, or if there are labelme files."""
    jsons = {PurePosixPath(path).with_suffix("") for path in Listing(source.source, {".json"}).paths()}
    if any(PurePosixPath(path).with_suffix("") in jsons for path in source.paths()):
        return ". If the JSON files beside the images are labelme's, say --format labelme"
    there = [(name, "masks") for name in source.names() if name.lower() in _MASKS]
    there += [(name, "images") for name in source.names() if name.lower() in _IMAGES]
    return "".join(f". If {name}/ holds the {right}, rename it to {right}/" for name, right in there)


def report_left_out(source: Listing, folders: Iterable[str]) -> None:
    """Report, in one line, the images outside of these folders, which are left out."""
    taken = tuple(f"{folder}/" for folder in folders)
    if left := [path for path in source.paths() if not path.startswith(taken)]:
        console.say(
            f"{source.source}: leaving out {len(left)} images outside of {', '.join(taken)}: {first_few(left, 3)}"
        )


def split_off(pairs: list[Pair], options: ImportOptions) -> Splits:
    """Divide pairs into train and val by a seeded hash of each name. The smallest hashes are val: at least one, never all.

    Below 50 pairs, val has exactly its share, rounded. From 50 on, val has the hashes below a threshold: its share is met on
    average, and adding images later moves no other image.
    """
    rank = {p.sample_id: int(key(options.seed, 12, *p.sample_id.encode())) for p in pairs}
    below = sum(r < options.val_share * 2**64 for r in rank.values())
    num = below if len(pairs) >= SMALL else round(options.val_share * len(pairs))
    chosen = set(sorted(rank, key=rank.__getitem__)[: max(0, min(max(num, 1), len(pairs) - 1))])
    return {
        "train": [p for p in pairs if p.sample_id not in chosen],
        "val": [p for p in pairs if p.sample_id in chosen],
    }
