"""Bytes at a URI: everything that segdist reads or writes goes through these functions.

Supported: local paths and file://, s3:// (any S3 store, see `s3`), and read-only hf:// (the Hugging Face Hub), https:// and
http:// (single files of a web server). Writes are atomic: a reader sees the old object or the new one, never a part. Of two
writers that race with `create`, exactly one succeeds. All functions raise StorageError with a remedy: MissingError if
nothing exists at the URI, UnavailableError if the same request may succeed later.

Retries, from the inside out: `s3` and `http` retry a request for seconds (their `_TRIES`), `with_retries` retries a read or
write for two minutes, and `runs.writer` retries what it uploads in the background.
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
    "hub_file_exists",
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
hub_file, hub_file_exists = hf.cached_file, hf.file_exists
_BACKENDS = {"": local, "file": local, "s3": s3, "hf": hf, "http": http, "https": http}
_READ_ONLY = {"hf", "http", "https"}
_RETRY_SECONDS = 120.0
_MIN_TRIES = 3
_WARN_SECONDS = 30.0
_warned_at = -_WARN_SECONDS  # shared: many threads fail at the same time


def _backend(uri: str) -> ModuleType:
    scheme = _scheme(uri)
    try:
        return _BACKENDS[scheme]
    except KeyError:
        raise StorageError(f"{uri}: {scheme}:// is not supported. Use a local path, s3://, hf:// or https://") from None


def _writable(uri: str) -> ModuleType:
    """Return the backend. Raises StorageError if it is read-only."""
    backend, scheme = _backend(uri), _scheme(uri)
    if scheme in _READ_ONLY:
        raise StorageError(f"{redacted(uri)}: {scheme}:// is read-only. Write to a local folder or s3://")
    return backend


def _scheme(uri: str) -> str:
    """Return the scheme in lower case; "" for a path."""
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else ""


def is_local(uri: str) -> bool:
    """Return whether `uri` is a path on this machine."""
    return _backend(uri) is local


def redacted(uri: str) -> str:
    """Return the URI without credentials, for messages and records: a web URL's query may hold one."""
    return http.redacted(uri) if uri.lower().startswith(("http://", "https://")) else uri


def is_relative(uri: str) -> bool:
    """Return whether `uri` is a relative path, which differs between machines."""
    return is_local(uri) and not uri.startswith(("/", "~", "file:"))


def check_absolute(*uris: str) -> None:
    """Raises StorageError for a relative path in a job submitted to Ray."""
    relative = [uri for uri in uris if is_relative(uri)]
    if relative and "/working_dir_files/" in os.getcwd():
        raise StorageError(
            f"{', '.join(relative)}: in a submitted job, a relative path points into Ray's copy of your folder, which Ray "
            "deletes. Use s3://, or an absolute path on a file system that all nodes share"
        )


def local_path(uri: str) -> Path:
    """Return the absolute path of a local URI."""
    return local.path_of(uri).absolute()


def join(uri: str, *parts: str) -> str:
    """Return the URI of `parts` below `uri`. Raises StorageError if the result would lie outside `uri`."""
    if uri.endswith("://"):
        raise StorageError(f"{uri}: the path is missing. Write {uri}BUCKET/FOLDER")
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise StorageError(f"{part!r} would escape {uri}. Use a relative path without `..`")
    return "/".join([uri.rstrip("/"), *parts])


def read(uri: str) -> bytes:
    """Return all bytes."""
    return _backend(uri).read(uri)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset`. Raises StorageError if there are fewer."""
    return _backend(uri).read_range(uri, offset, length)


def fetch(uri: str, path: Path) -> None:
    """Copy the file to a local path, atomically; creates folders as needed."""
    backend = _backend(uri)
    if backend is http:
        http.fetch(uri, path)
    else:
        local.write(str(path), backend.read(uri))


def exists(uri: str) -> bool:
    """Return whether a file or folder exists. Raises StorageError if that cannot be determined."""
    return _backend(uri).exists(uri)


def write(uri: str, data: bytes) -> None:
    """Write the bytes durably and atomically; creates folders as needed. Returns once the bytes are stored."""
    _writable(uri).write(uri, data)


def create(uri: str, data: bytes) -> bool:
    """Write the bytes only if nothing exists at `uri`; return whether they were written. Of two racing writers, one wins.

    Two writers must write different bytes: if a response is lost, the stored bytes show who won.
    """
    return _writable(uri).create(uri, data)


def names(uri: str) -> list[str]:
    """Return the sorted names of files and folders directly below `uri`; [] if it does not exist. Omits unfinished writes."""
    return _backend(uri).names(uri)


def did_you_mean(uri: str) -> str:
    """Return " (did you mean URI?)" for an existing URI with a similar name; "" if there is none."""
    above, _, name = uri.rstrip("/").rpartition("/")
    if above.endswith((":", ":/")):
        return ""
    try:
        if above and not exists(above):
            return did_you_mean(above)
        siblings = names(above or ("/" if uri.startswith("/") else "."))
        similar = difflib.get_close_matches(name, siblings, 1)
    except StorageError:
        return ""
    return f" (did you mean {f'{above}/' if '/' in uri.rstrip('/') else ''}{similar[0]}?)" if similar else ""


def sizes(uri: str) -> dict[str, int]:
    """Return {name: bytes} of the files directly below `uri`; {} if it does not exist."""
    return _backend(uri).sizes(uri)


def walk(uri: str) -> list[Entry]:
    """Return all files below `uri`, at any depth, sorted by name; [] if it does not exist."""
    return sorted(_backend(uri).walk(uri), key=lambda entry: entry.name)


def delete(uri: str) -> None:
    """Delete a file, or a folder and everything below it; does nothing if it does not exist."""
    _writable(uri).delete(uri)


def remove_stale(uri: str) -> None:
    """Delete the temporary files of killed writers directly below `uri`. No other process may be writing there."""
    _writable(uri).remove_stale(uri)


def check_writable(uri: str) -> None:
    """Raises StorageError if nothing can be written below `uri`. Leaves nothing behind except the folder."""
    check_absolute(uri)
    _writable(uri).check_writable(uri)


def download(uri: str, folder: Path) -> Path:
    """Return a local copy of the folder at `uri`: the folder itself if it is local, otherwise `folder` with all its files.

    Raises MissingError if there are no files.
    """
    if is_local(uri):
        return local_path(uri)
    found = walk(uri)
    if not found:
        raise MissingError(f"{uri}: no files found")
    for entry in found:
        target = local.path_of(join(str(folder), entry.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read(join(uri, entry.name)))
    return folder


def with_retries(work: Callable[[], T], warn: Callable[[str], None]) -> T:
    """Return work(), retried while it raises UnavailableError: for two minutes from the first failure, at least three times.

    Calls `warn` at most every 30 s. The minimum number of tries is for work that takes long before it fails, such as an upload.
    """
    global _warned_at
    pause, num_tries, deadline = 1.0, 0, 0.0
    while True:
        try:
            return work()
        except UnavailableError as error:
            now, num_tries = time.monotonic(), num_tries + 1
            deadline = deadline or now + _RETRY_SECONDS
            if now + pause > deadline and num_tries >= _MIN_TRIES:
                raise
            if now - _warned_at > _WARN_SECONDS:
                _warned_at = now
                warn(f"warning: {error}; retrying for {max(deadline - now, pause):.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, 16.0)
