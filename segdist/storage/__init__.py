"""Bytes at a URI. Everything that segdist reads or leaves behind passes through these functions.

Served: local paths and file://, s3:// (any S3 store; see `s3`), and to read from, hf:// (the Hugging Face Hub) and
https:// (single files of a web server; http:// too). Writing is atomic: a reader sees the old object or the new one, never
half of one. `create` is the one primitive that two writers can race on and only one can win. All raise StorageError with a
remedy: MissingError where nothing is there, UnavailableError where the same request may succeed later.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from segdist.errors import MissingError, StorageError, UnavailableError
from segdist.storage import hf, http, local, s3
from segdist.storage.entry import Entry

__all__ = [
    "Entry",
    "check_absolute",
    "check_writable",
    "create",
    "delete",
    "did_you_mean",
    "download",
    "exists",
    "fetch",
    "hub_file",
    "hub_knows",
    "is_local",
    "is_relative",
    "join",
    "local_path",
    "names",
    "read",
    "read_range",
    "redacted",
    "remove_stale",
    "sizes",
    "walk",
    "with_retries",
    "write",
]  # fmt: skip

T = TypeVar("T")
hub_file, hub_knows = hf.cached, hf.knows
_STORES = {"": local, "file": local, "s3": s3, "hf": hf, "http": http, "https": http}
_READ_ONLY = {"hf", "http", "https"}
_PATIENCE_SECONDS = 120.0
_LEAST_TRIES = 3
_WARN_SECONDS = 30.0
_warned = -_WARN_SECONDS  # when; many threads meet the same outage


def _store(uri: str) -> ModuleType:
    scheme = _scheme(uri)
    try:
        return _STORES[scheme]
    except KeyError:
        raise StorageError(f"{uri}: {scheme}:// is not served; give a local path, s3://, hf:// or https://") from None


def _writable(uri: str) -> ModuleType:
    """As `_store`. Raises StorageError where segdist only reads."""
    store, scheme = _store(uri), _scheme(uri)
    if scheme in _READ_ONLY:
        raise StorageError(f"{redacted(uri)}: {scheme}:// is to read from only; write to a local folder or s3://")
    return store


def _scheme(uri: str) -> str:
    """In lower case; "" of a path."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else ""


def is_local(uri: str) -> bool:
    """Whether it is a path on this machine."""
    return _store(uri) is local


def redacted(uri: str) -> str:
    """The URI as a message or a record may name it: the query of a web address may hold a credential."""
    return http.shown(uri) if uri.lower().startswith(("http://", "https://")) else uri


def is_relative(uri: str) -> bool:
    """Whether it is a relative path, which means something else on every machine."""
    return is_local(uri) and not uri.startswith(("/", "~", "file:"))


def check_absolute(*uris: str) -> None:
    """Raises StorageError for a relative path in a job that was submitted to Ray."""
    lost = [uri for uri in uris if is_relative(uri)]
    if lost and "/working_dir_files/" in os.getcwd():
        raise StorageError(
            f"{', '.join(lost)}: in a submitted job a relative path lies in Ray's copy of your folder, which Ray deletes; give "
            "s3://, or an absolute path on a file system that all nodes share"
        )


def local_path(uri: str) -> Path:
    """The absolute path of a local URI."""
    return local.path_of(uri).absolute()


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`. Raises StorageError when it would escape it."""
    if uri.endswith("://"):
        raise StorageError(f"{uri}: nothing behind the scheme; write {uri}BUCKET/FOLDER")
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise StorageError(f"{part!r} would escape {uri}")
    return "/".join([uri.rstrip("/"), *parts])


def read(uri: str) -> bytes:
    """All bytes."""
    return _store(uri).read(uri)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`. Raises StorageError when there are fewer."""
    return _store(uri).read_range(uri, offset, length)


def fetch(uri: str, path: Path) -> None:
    """Put a copy of the file at a local path, atomically, making folders as needed."""
    store = _store(uri)
    if store is http:
        http.fetch(uri, path)
    else:
        local.write(str(path), store.read(uri))


def exists(uri: str) -> bool:
    """Whether a file or a folder is there. Raises StorageError when that cannot be known."""
    return _store(uri).exists(uri)


def write(uri: str, data: bytes) -> None:
    """Put the bytes, durably and atomically, making folders as needed; returns once they are known to be there."""
    _writable(uri).write(uri, data)


def create(uri: str, data: bytes) -> bool:
    """Put the bytes only if nothing is there; False when something was. Of two racing writers one wins.

    The bytes of two writers must differ: where an answer is lost, what is there then tells who won.
    """
    return _writable(uri).create(uri, data)


def names(uri: str) -> list[str]:
    """Names directly below `uri`, files and folders, sorted; none when it does not exist. Writes under way are not shown."""
    return _store(uri).names(uri)


def did_you_mean(uri: str) -> str:
    """What is there and bears almost the name of something that is not: " (near it: URI)", or nothing."""
    above, _, name = uri.rstrip("/").rpartition("/")
    if above.endswith((":", ":/")):
        return ""
    try:
        if above and not exists(above):
            return did_you_mean(above)
        siblings = names(above or ("/" if uri.startswith("/") else "."))
        found = difflib.get_close_matches(name, siblings, 1)
    except StorageError:
        return ""
    return f" (near it: {f'{above}/' if '/' in uri.rstrip('/') else ''}{found[0]})" if found else ""


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file directly below `uri`; none when it does not exist."""
    return _store(uri).sizes(uri)


def walk(uri: str) -> list[Entry]:
    """All files below `uri`, at any depth, sorted by name; none when it does not exist."""
    return sorted(_store(uri).walk(uri), key=lambda entry: entry.name)


def delete(uri: str) -> None:
    """Remove a file, or a folder and all below it; nothing happens when it is not there."""
    _writable(uri).delete(uri)


def remove_stale(uri: str) -> None:
    """Removes what killed writers left directly below `uri`; only for a folder that nobody else is writing to."""
    _writable(uri).remove_stale(uri)


def check_writable(uri: str) -> None:
    """Raises StorageError unless something can be written below `uri`; leaves nothing behind but the folder."""
    check_absolute(uri)
    _writable(uri).check_writable(uri)


def download(uri: str, folder: Path) -> Path:
    """A local copy of the folder at `uri`: itself when it is local, else all its files in `folder`.

    Raises MissingError when there are none.
    """
    if is_local(uri):
        return local_path(uri)
    found = walk(uri)
    if not found:
        raise MissingError(f"{uri}: no files are there")
    for entry in found:
        target = local.path_of(join(str(folder), entry.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read(join(uri, entry.name)))
    return folder


def with_retries(work: Callable[[], T], warn: Callable[[str], None]) -> T:
    """work(), tried again while storage does not answer: for two minutes from the first failure, and three times at least.

    `warn` hears of it now and then. What takes long before it fails, as an upload does, is so tried again, too.
    """
    global _warned
    pause, num_tries, deadline = 1.0, 0, 0.0
    while True:
        try:
            return work()
        except UnavailableError as error:
            now, num_tries = time.monotonic(), num_tries + 1
            deadline = deadline or now + _PATIENCE_SECONDS
            if now + pause > deadline and num_tries >= _LEAST_TRIES:
                raise
            if now - _warned > _WARN_SECONDS:
                _warned = now
                warn(f"warning: {error}; trying again for {max(deadline - now, pause):.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 16.0)
