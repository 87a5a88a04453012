"""Input images given as files, folders and patterns, and the names of their results.

The names depend only on the set of images, never on their order, so that a resumed prediction finds its files again.
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
from segdist.errors import UserError, first_few
from segdist.predict.outputs import canonical

_NUM_NAMES = 3  # listed in a message


@dataclass(frozen=True)
class InputImage:
    """An image to predict."""

    uri: str
    name: str  # path below the given folder, or below the part of a pattern before its first wildcard
    tag: str | None = None  # from the listing; see outputs.Stamp


def find_images(given: Sequence[str], out: str) -> list[InputImage]:
    """Return every image of the given files, folders and patterns once.

    Raises UserError if one of them has no image, or if OUT lies inside a searched folder.
    """
    found: dict[str, InputImage] = {}
    for uri in given:
        for one in _expand(uri, out):
            key = canonical(one.uri) if storage.is_local(one.uri) else one.uri
            if key not in found or found[key].name.count("/") < one.name.count("/"):  # given as a file and in a folder
                found[key] = one
    return list(found.values())


def output_stems(images: Sequence[InputImage], ends: Sequence[str]) -> dict[str, str]:
    """Return, by image URI, the path below OUT that all results of the image start with. `ends` are the suffixes they add.

    The stem is the image's name without its extension. If two images have the same name, all are named by their path below
    their common folder. If the results of two images would then still clash, both keep the image's extension. Clashes remain if
    images of equal names have no folder in common.
    """
    names = {one.uri: one.name for one in images}
    if len({*names.values()}) < len(names):
        parts = {one.uri: canonical(one.uri).split("/") for one in images}
        above = zip(*(each[:-1] for each in parts.values()))
        common = sum(1 for _ in takewhile(lambda level: len({*level}) == 1, above))
        if common:
            names = {uri: "/".join(each[common:]) for uri, each in parts.items()}
    found = {uri: str(PurePosixPath(name).with_suffix("")) for uri, name in names.items()}
    while clashing := [uri for uri in _clashing(found, ends) if found[uri] != names[uri]]:
        found |= {uri: names[uri] for uri in clashing}
    if kept := sorted(name for uri, name in names.items() if found[uri] == name and PurePosixPath(name).suffix):
        console.say(
            f"{len(kept)} images differ only in their extension, so their results keep it: {kept[0]}{ends[0]}, ..."
        )
    return found


def _clashing(found: dict[str, str], ends: Sequence[str]) -> list[str]:
    """Return the URIs of images that share a result's name with another image."""
    taken = Counter(stem + end for stem in found.values() for end in ends)
    return [uri for uri, stem in found.items() if any(taken[stem + end] > 1 for end in ends)]


def _expand(uri: str, out: str) -> list[InputImage]:
    """Return the image, the images of the folder, or those that match the pattern. Raises UserError if there are none."""
    if uri.lower().startswith(("http://", "https://")):  # a single file: ? is a query, not a wildcard
        return [InputImage(uri, PurePosixPath(storage.redacted(uri)).name)]
    folder, pattern = _split(uri)
    listed = storage.walk(folder)
    found = [
        InputImage(storage.join(folder, e.name), e.name, e.tag)
        for e in listed
        if _matches(e.name.split("/"), pattern or ["**"]) and _is_image(e.name)
    ]
    if found:
        _check_apart(folder, pattern or ["**"], found, out)
        return found
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    if pattern:
        raise UserError(f"{uri}: no image matches this pattern. {_contents(folder, [e.name for e in listed])}")
    if listed:
        raise UserError(
            f"{_contents(uri, [e.name for e in listed])}, but no image ({suffixes}). Give a folder with images"
        )
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such image or folder. Correct the path")
    if storage.is_local(uri) and storage.local_path(uri).is_dir():
        raise UserError(f"{uri}: this folder is empty. Give a folder with images ({suffixes})")
    return [InputImage(uri, PurePosixPath(uri).name)]


def _check_apart(folder: str, pattern: list[str], found: list[InputImage], out: str) -> None:
    """Raise UserError if results would be written where images are searched: the next call would take them for images."""
    above, below = (f"{canonical(uri).rstrip('/')}/" for uri in (folder, out))
    if not below.startswith(above):
        return
    inner = [part for part in below.removeprefix(above).split("/") if part]
    level = [*pattern[:-1], "**" if pattern[-1] == "**" else "*"]
    if any(_matches([*inner, *one.name.split("/")], level) for one in found):
        raise UserError(
            f"--out {out} lies inside {folder}, where images are searched, so the next call would take its masks for images. "
            f"Give a folder outside {folder}"
        )


def _split(uri: str) -> tuple[str, list[str]]:
    """Return (folder, parts of the pattern below it). There are no parts without wildcards, or if such a path exists."""
    scheme, separator, path = uri.rpartition("://")
    parts = path.rstrip("/").split("/")
    for i, part in enumerate(parts):
        if any(sign in part for sign in "*?[") and not storage.exists(scheme + separator + "/".join(parts[: i + 1])):
            above = "/".join(parts[:i])
            return scheme + separator + above or ("/" if path.startswith("/") else "."), parts[i:]
    return uri, []


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Return whether the parts of a path match those of a pattern. ** matches any number of folders, * never matches a /."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        return any(_matches(name[k:], rest) for k in range(len(name)))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _contents(folder: str, names: list[str]) -> str:
    """Describe the contents of a folder."""
    if not names:
        return f"{folder} " + ("is empty" if storage.exists(folder) else "does not exist")
    kinds = Counter(PurePosixPath(name).suffix or "without a suffix" for name in names)
    counts = ", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items(), key=lambda pair: -pair[1])[:5])
    return f"{folder} contains {counts} ({first_few(names, _NUM_NAMES)})"
