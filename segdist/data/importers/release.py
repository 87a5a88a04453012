"""What the importers of published data sets share: where such a set lies below SOURCE, and its lists of names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from segdist import storage
from segdist.data.importers.files import IMAGE_SUFFIXES, File
from segdist.data.importers.layout import Listing, Pair, Splits
from segdist.errors import DataError

SUFFIXES = {*IMAGE_SUFFIXES, ".txt"}


def root_of(listing: Listing, parts: Iterable[str], what: str) -> str:
    """The folder that holds one of `parts` (paths of folders), as a prefix: "" for SOURCE itself, else it ends with "/".

    Raises DataError, naming them, when it holds several such folders, or none.
    """
    wanted = [f"/{part}/" for part in parts]
    padded = [f"/{path}" for path in listing.paths()]
    roots = sorted({path[: path.index(part)].lstrip("/") for path in padded for part in wanted if part in path})
    if not roots:
        held = ", ".join(storage.names(listing.source)[:8]) or "nothing"
        raise DataError(f"{listing.source}: not {what}: neither there nor below lies {_either(parts)}; it holds {held}")
    if len(roots) > 1:
        shown = ", ".join(f"{root or '.'}" for root in roots)
        raise DataError(
            f"{listing.source}: {_either(parts)} lies in several folders ({shown}); give one of them as SOURCE"
        )
    return f"{roots[0]}/" if roots[0] else ""


def listed(listing: Listing, path: str, columns: bool = False) -> list[str]:
    """The names in a list file, a line each; with `columns` a name is the first word of its line, and # begins a comment.

    Raises DataError when it is no text, is empty, or names something twice.
    """
    file = listing.get(path)
    assert file is not None, path
    try:
        lines = [line.strip() for line in file.read().decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{file.uri}: this list is no UTF-8 text; take it from the archive again") from None
    if columns:
        lines = [line.split()[0] for line in lines if line and not line.startswith("#")]
    names = [unicodedata.normalize("NFC", line) for line in lines if line]  # as Listing.by_stem
    if not names:
        raise DataError(f"{file.uri}: this list names nothing; take it from the archive again, or remove it")
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise DataError(f"{file.uri}: {twice!r} stands there twice; remove one of its lines")
    return names


def pairs_of(
    listing: Listing, names: list[str], path: str, images: dict[str, File], masks: dict[str, File]
) -> list[Pair]:
    """The pairs that the list at `path` names. Raises DataError when it names an image or a mask that is not there."""
    for kind, found in (("image", images), ("mask", masks)):
        if missing := [name for name in names if name not in found]:
            more = f" ({len(missing)} of its {len(names)} have none)" if len(missing) > 1 else ""
            raise DataError(
                f"{storage.join(listing.source, path)}: it names {missing[0]!r}, but there is no such {kind}{more}; take it "
                "from the archive again, or remove it from the list"
            )
    return [Pair(name, images[name], masks[name]) for name in names]


def check_disjoint(splits: Splits, source: str) -> None:
    """Raises DataError when a sample lies in two splits: its score would be that of something learnt by heart."""
    seen: dict[str, str] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            if pair.sample_id in seen:
                raise DataError(
                    f"{source}: {pair.sample_id!r} is listed in both {seen[pair.sample_id]} and {split}; remove it from one"
                )
            seen[pair.sample_id] = split


def _either(parts: Iterable[str]) -> str:
    return " or ".join(f"{part}/" for part in parts)
