"""Which images a person means by files, folders and patterns, and what the results of each will be called.

The names depend on the set of images alone, never on their order: what goes on where it stopped must find its files again.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from segdist import console, storage
from segdist.data.importers.files import IMAGE_SUFFIXES
from segdist.errors import UserError
from segdist.predict.outputs import place

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Picture:
    """An image that is meant."""

    uri: str
    name: str  # its place below what was given: the folder, or that part of a pattern which has no * in it
    tag: str | None = None  # of a listing that was made anyway; see predictions.Stamp


def pictures(images: Sequence[str], out: str) -> list[Picture]:
    """Every image that is meant, once. Raises UserError where none is, and where OUT lies within what is searched."""
    found: dict[str, Picture] = {}
    for given in images:
        for one in _meant(given, out):
            key = place(one.uri) if storage.is_local(one.uri) else one.uri
            if key not in found or found[key].name.count("/") < one.name.count("/"):  # a file of a folder, given too
                found[key] = one
    return list(found.values())


def stems(chosen: Sequence[Picture], ends: Sequence[str]) -> dict[str, str]:
    """By URI, what the names of an image's results below OUT begin with; `ends` is what they end with.

    The image's name without its suffix. Where two have the same name below OUT, all lie as they do below the folder that
    is common to all; of those whose results would then still be one file, each keeps the suffix. That fails where images
    of equal names have no folder in common.
    """
    names = {one.uri: one.name for one in chosen}
    if len({*names.values()}) < len(names):
        parts = {one.uri: place(one.uri).split("/") for one in chosen}
        above = zip(*(each[:-1] for each in parts.values()))
        common = sum(1 for _ in takewhile(lambda level: len({*level}) == 1, above))
        if common:
            names = {uri: "/".join(each[common:]) for uri, each in parts.items()}
    found = {uri: str(PurePosixPath(name).with_suffix("")) for uri, name in names.items()}
    while clashing := [uri for uri in _clashing(found, ends) if found[uri] != names[uri]]:
        found |= {uri: names[uri] for uri in clashing}
    if kept := sorted(name for uri, name in names.items() if found[uri] == name and PurePosixPath(name).suffix):
        console.say(
            f"{len(kept)} images differ in their suffix alone, so their results keep it: {kept[0]}{ends[0]}, ..."
        )
    return found


def _clashing(found: dict[str, str], ends: Sequence[str]) -> list[str]:
    """URIs of images one of whose results would be that of another image, too."""
    taken = Counter(stem + end for stem in found.values() for end in ends)
    return [uri for uri, stem in found.items() if any(taken[stem + end] > 1 for end in ends)]


def _meant(uri: str, out: str) -> list[Picture]:
    """The image, those of the folder, or those that match. Raises UserError without any."""
    if uri.lower().startswith(("http://", "https://")):  # a single file, and a ? is no pattern
        return [Picture(uri, PurePosixPath(storage.redacted(uri)).name)]
    folder, pattern = _split(uri)
    listed = storage.walk(folder)
    found = [
        Picture(storage.join(folder, e.name), e.name, e.tag)
        for e in listed
        if _matches(e.name.split("/"), pattern or ["**"]) and _is_image(e.name)
    ]
    if found:
        _check_apart(folder, pattern or ["**"], found, out)
        return found
    if pattern:
        raise UserError(f"{uri}: no image matches; {_told(folder, [e.name for e in listed])}")
    if listed:
        raise UserError(f"{_told(uri, [e.name for e in listed])}, and no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such image or folder")
    if storage.is_local(uri) and storage.local_path(uri).is_dir():
        raise UserError(
            f"{uri}: this folder is empty; give one that holds images ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return [Picture(uri, PurePosixPath(uri).name)]


def _check_apart(folder: str, pattern: list[str], found: list[Picture], out: str) -> None:
    """Raises UserError where results would lie where images are looked for: the next time they would be taken for some."""
    above, below = (f"{place(uri).rstrip('/')}/" for uri in (folder, out))
    if not below.startswith(above):
        return
    inner = [part for part in below.removeprefix(above).split("/") if part]
    level = [*pattern[:-1], "**" if pattern[-1] == "**" else "*"]
    if any(_matches([*inner, *one.name.split("/")], level) for one in found):
        raise UserError(
            f"--out {out} lies in {folder}, whose images are predicted: next time its masks would be taken for images; give a "
            "folder outside of it"
        )


def _split(uri: str) -> tuple[str, list[str]]:
    """(folder, parts of the pattern below it); no parts where it is no pattern, or a file or folder of this very name."""
    scheme, separator, path = uri.rpartition("://")
    parts = path.rstrip("/").split("/")
    for i, part in enumerate(parts):
        if any(sign in part for sign in "*?[") and not storage.exists(scheme + separator + "/".join(parts[: i + 1])):
            above = "/".join(parts[:i])
            return scheme + separator + above or ("/" if path.startswith("/") else "."), parts[i:]
    return uri, []


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match those of a pattern: ** stands for folders, any number of them, * for no /."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        return any(_matches(name[k:], rest) for k in range(len(name)))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _told(folder: str, names: list[str]) -> str:
    """What lies in a folder, in words."""
    if not names:
        return f"{folder} " + ("is empty" if storage.exists(folder) else "does not exist")
    kinds = Counter(PurePosixPath(name).suffix or "without a suffix" for name in names)
    counts = ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items(), key=lambda pair: -pair[1])[:5])
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{folder} holds {counts} ({', '.join(names[:_SHOWN])}{more})"
