"""Shared by importers of published datasets: finding such a dataset below SOURCE, and reading its lists of names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from segdist import storage
from segdist.data.importers.files import IMAGE_SUFFIXES, File
from segdist.data.importers.layout import Listing, Pair, Splits
from segdist.errors import DataError, first_few

SUFFIXES = {*IMAGE_SUFFIXES, ".txt"}


def root_of(listing: Listing, parts: Iterable[str], what: str) -> str:
    """Return the folder that holds one of `parts` (paths of folders), as a prefix: "" for SOURCE, else ending in "/".

    Raises DataError if there are several such folders, or none.
    """
    wanted = [f"/{part}/" for part in parts]
    padded = [f"/{path}" for path in listing.paths()]
    roots = sorted({path[: path.index(part)].lstrip("/") for path in padded for part in wanted if part in path})
    if not roots:
        held = first_few(storage.names(listing.source), 8) or "nothing"
        raise DataError(f"{listing.source}: not {what}. It must hold {_either(parts)}, but it holds {held}")
    if len(roots) > 1:
        places = ", ".join(root or "." for root in roots)
        raise DataError(
            f"{listing.source}: found {_either(parts)} in several folders ({places}). Give one of them as SOURCE"
        )
    return f"{roots[0]}/" if roots[0] else ""


def read_list(listing: Listing, path: str, columns: bool = False) -> list[str]:
    """Return the names in a list file, one per line. With `columns`, a name is the first word of its line and # is a comment.

    Raises DataError if the file is not text, is empty, or lists a name twice.
    """
    file = listing.get(path)
    assert file is not None, path
    try:
        lines = [line.strip() for line in file.read().decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{file.uri}: this list is not UTF-8 text. Unpack the archive again") from None
    if columns:
        lines = [line.split()[0] for line in lines if line and not line.startswith("#")]
    names = [unicodedata.normalize("NFC", line) for line in lines if line]  # as Listing.by_stem
    if not names:
        raise DataError(f"{file.uri}: this list is empty. Unpack the archive again, or remove the list")
    if len(set(names)) < len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise DataError(f"{file.uri}: {twice!r} is listed twice. Remove one of its lines")
    return names


def pairs_of(
    listing: Listing, names: list[str], path: str, images: dict[str, File], masks: dict[str, File]
) -> list[Pair]:
    """Return the pairs listed at `path`. Raises DataError if the image or mask of a name does not exist."""
    for kind, found in (("image", images), ("mask", masks)):
        if missing := [name for name in names if name not in found]:
            more = f" ({len(missing)} of its {len(names)} have none)" if len(missing) > 1 else ""
            raise DataError(
                f"{storage.join(listing.source, path)}: it lists {missing[0]!r}, but there is no such {kind}{more}. Unpack the "
                "archive again, or remove the name from the list"
            )
    return [Pair(name, images[name], masks[name]) for name in names]


def check_disjoint(splits: Splits, source: str) -> None:
    """Raise DataError if a sample is in two splits, because then its score would be on training data."""
    seen: dict[str, str] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            if pair.sample_id in seen:
                raise DataError(
                    f"{source}: {pair.sample_id!r} is listed in both {seen[pair.sample_id]} and {split}. Remove it from one"
                )
            seen[pair.sample_id] = split


def _either(parts: Iterable[str]) -> str:
    return " or ".join(f"{part}/" for part in parts)
