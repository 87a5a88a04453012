"""Bytes at a URI. Everything that segdist reads or leaves behind passes through these functions.

Writing is atomic: a reader sees the old object or the new one, never half of one. `create` is the one primitive that
two writers can race on and only one can win.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from segdist.errors import StorageError


def path_of(uri: str) -> Path:
    """The local path of a URI. Raises StorageError for a scheme that is not served."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri).expanduser()
    if scheme == "file":
        return Path(rest)
    raise StorageError(f"{uri}: {scheme}:// is not served; give a local path")


def join(uri: str, *parts: str) -> str:
    """The URI of something below `uri`. Raises StorageError when it would escape it."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise StorageError(f"{part!r} would escape {uri}")
    return "/".join([uri.rstrip("/"), *parts])


def read(uri: str) -> bytes:
    """All bytes. Raises StorageError, FileNotFoundError included as its cause."""
    try:
        return path_of(uri).read_bytes()
    except OSError as error:
        raise StorageError(f"{uri}: cannot read ({error.strerror})") from error


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`. Raises StorageError when there are fewer."""
    try:
        with path_of(uri).open("rb") as file:
            data = os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise StorageError(f"{uri}: cannot read ({error.strerror})") from error
    if len(data) != length:
        raise StorageError(
            f"{uri}: truncated: {len(data)} of {length} bytes at offset {offset}; prepare the data again"
        )
    return data


def exists(uri: str) -> bool:
    """Whether something is there. Raises StorageError when that cannot be known."""
    try:
        return path_of(uri).exists()
    except OSError as error:
        raise StorageError(f"{uri}: cannot read ({error.strerror})") from error


def write(uri: str, data: bytes) -> None:
    """Put the bytes, durably and atomically, making folders as needed. Raises StorageError."""
    _put(path_of(uri), data, os.replace, uri)


def create(uri: str, data: bytes) -> bool:
    """Put the bytes only if nothing is there; False when something was. Of two racing writers one wins."""
    try:
        _put(path_of(uri), data, os.link, uri)
    except FileExistsError:
        return False
    return True


def names(uri: str) -> list[str]:
    """Names directly below `uri`, sorted; none when it does not exist. Writes under way are not shown."""
    try:
        return sorted(p.name for p in path_of(uri).iterdir() if not p.name.startswith(".tmp-"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{uri}: cannot list ({error.strerror})") from error


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every file directly below `uri`; none when it does not exist."""
    return {name: (path_of(uri) / name).stat().st_size for name in names(uri)}


def delete(uri: str) -> None:
    """Remove a file, or a folder and all below it; nothing happens when it is not there."""
    path = path_of(uri)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sweep(uri: str) -> None:
    """Removes what killed writers left directly below `uri`; only for a folder that nobody else is writing to."""
    for leftover in path_of(uri).glob(".tmp-*"):
        leftover.unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Raises StorageError unless something can be written below `uri`; leaves nothing behind but the folder."""
    probe = join(uri, f".probe-{uuid.uuid4().hex}")
    try:
        write(probe, b"segdist writes here")
    except StorageError as error:
        reason = getattr(error.__cause__, "strerror", None) or "something on the way is no folder"
        raise StorageError(f"{uri}: cannot write there ({reason}); give another place") from None
    delete(probe)


def _put(path: Path, data: bytes, place: Callable[[Path, Path], None], uri: str) -> None:
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
        _sync_folder(path.parent)
    except FileExistsError:
        if path.parent.is_dir():
            raise
        raise StorageError(f"{uri}: cannot write ({path.parent} is not a folder)") from None
    except OSError as error:
        raise StorageError(f"{uri}: cannot write ({error.strerror}); give a place you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
