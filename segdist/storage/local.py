"""Files on this machine or on a mounted file system. Writes go through a temporary file, fsync and a rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from segdist.errors import MissingError, StorageError
from segdist.storage.entry import Entry

_TEMPORARY = ".tmp-"


def path_of(uri: str) -> Path:
    """Return the path of a URI."""
    return Path(uri.removeprefix("file://")).expanduser()


def read(uri: str) -> bytes:
    try:
        return path_of(uri).read_bytes()
    except OSError as error:
        raise _read_error(uri, error) from error


def read_range(uri: str, offset: int, length: int) -> bytes:
    try:
        with path_of(uri).open("rb") as file:
            data = os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise _read_error(uri, error) from error
    if len(data) != length:
        raise StorageError(
            f"{uri}: truncated: {len(data)} of {length} bytes at offset {offset}. Copy or prepare the data again"
        )
    return data


def exists(uri: str) -> bool:
    try:
        return path_of(uri).exists()
    except OSError as error:
        raise _read_error(uri, error) from error


def write(uri: str, data: bytes) -> None:
    _write(path_of(uri), data, os.replace, uri)


def create(uri: str, data: bytes) -> bool:
    try:
        _write(path_of(uri), data, os.link, uri)
    except FileExistsError:
        return False
    return True


def names(uri: str) -> list[str]:
    try:
        return sorted(p.name for p in path_of(uri).iterdir() if not p.name.startswith(_TEMPORARY))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(f"{uri}: cannot list ({error.strerror}). Check its permissions") from error


def sizes(uri: str) -> dict[str, int]:
    return {name: (path_of(uri) / name).stat().st_size for name in names(uri) if (path_of(uri) / name).is_file()}


def walk(uri: str) -> Iterator[Entry]:
    root = path_of(uri)

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise StorageError(f"{error.filename}: cannot list ({error.strerror}). Check its permissions") from error

    ancestors = {str(root): {root.resolve()}}  # folder -> real paths of itself and of the folders above it
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        inside = {name: (Path(folder) / name).resolve() for name in folders}
        chain = ancestors.pop(folder)
        folders[:] = [name for name in folders if inside[name] not in chain]  # skip links that form a cycle
        ancestors |= {os.path.join(folder, name): chain | {inside[name]} for name in folders}
        for name in files:
            path = Path(folder) / name
            if name.startswith(_TEMPORARY):
                continue
            if path.is_file():
                yield Entry(path.relative_to(root).as_posix(), path.stat().st_size)
            elif path.is_symlink():  # dangling: reading it raises the error
                yield Entry(path.relative_to(root).as_posix(), 0)


def delete(uri: str) -> None:
    path = path_of(uri)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_stale(uri: str) -> None:
    for leftover in path_of(uri).glob(f"{_TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    probe = f"{uri.rstrip('/')}/.probe-{uuid.uuid4().hex}"
    try:
        write(probe, b"segdist writes here")
    except StorageError as error:
        reason = getattr(error.__cause__, "strerror", None) or "part of the path is not a folder"
        raise StorageError(f"{uri}: cannot write there ({reason}). Choose a writable location") from None
    delete(probe)


def _read_error(uri: str, error: OSError) -> StorageError:
    kind = MissingError if isinstance(error, FileNotFoundError | NotADirectoryError) else StorageError
    return kind(f"{uri}: cannot read ({error.strerror})")


def _write(path: Path, data: bytes, place: Callable[[Path, Path], None], uri: str) -> None:
    """Write a temporary file and move it with place(temporary, path). Raises FileExistsError if `place` does."""
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
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
        raise StorageError(f"{uri}: cannot write ({path.parent} is not a folder). Choose another location") from None
    except OSError as error:
        raise StorageError(f"{uri}: cannot write ({error.strerror}). Choose a writable location") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
