"""The Hugging Face Hub, to read from: hf://datasets/OWNER/NAME/PATH, or hf://OWNER/NAME/PATH of a model; NAME@REVISION pins it.

Through huggingface_hub's own file system: HF_TOKEN, HF_ENDPOINT and the rest of its settings hold.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from segdist.errors import MissingError, StorageError, UnavailableError
from segdist.storage.entry import Entry

T = TypeVar("T")


def read(uri: str) -> bytes:
    return _ask(uri, lambda: _hub().cat_file(_path(uri)))


def read_range(uri: str, offset: int, length: int) -> bytes:
    def once() -> bytes:
        with _hub().open(_path(uri), "rb", cache_type="none") as file:  # no read-ahead: the range is all that is wanted
            file.seek(offset)
            return file.read(length)

    data = _ask(uri, once)
    if len(data) != length:
        raise StorageError(f"{uri}: truncated: {len(data)} of {length} bytes at offset {offset}")
    return data


def exists(uri: str) -> bool:
    try:
        _ask(uri, lambda: _hub().info(_path(uri)))
    except MissingError:
        return False
    return True


def names(uri: str) -> list[str]:
    return sorted(item["name"].rsplit("/", 1)[-1] for item in _children(uri))


def sizes(uri: str) -> dict[str, int]:
    return {item["name"].rsplit("/", 1)[-1]: item["size"] for item in _children(uri) if item["type"] == "file"}


def walk(uri: str) -> Iterator[Entry]:
    try:
        top = _ask(uri, lambda: _hub().info(_path(uri)))
    except MissingError:
        return
    if top["type"] == "file":
        return
    root = top["name"]
    found: dict[str, Any] = _ask(uri, lambda: _hub().find(_path(uri), detail=True))
    for name, item in found.items():
        tag = (item.get("lfs") or {}).get("sha256") or item.get("blob_id")
        yield Entry(name.removeprefix(f"{root}/"), item["size"], tag)


def knows(repo: str, name: str, revision: str | None = None) -> bool:
    """Whether a model has a file: in this machine's cache, or on the Hub, which is asked once. Raises StorageError."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, name, revision=revision), str):
        return True
    return exists(f"hf://{repo}{f'@{revision}' if revision else ''}/{name}")


def cached(repo: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model in huggingface_hub's own cache, in a folder that bears the commit's name, fetched if need be.

    None where the model has no such file, or (HF_HUB_OFFLINE) the cache does not hold it. Raises UnavailableError where the Hub
    does not answer and the cache does not know either, and StorageError.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def once() -> Path | None:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError, though nobody said that there is none
            offline = isinstance(error.__cause__, OfflineModeIsEnabled)
            if offline or try_to_load_from_cache(repo, name, revision=revision) is not None:  # known not to exist
                return None
            raise error.__cause__ or error from None
        except EntryNotFoundError:
            return None

    return _ask(f"hf://{repo}{f'@{revision}' if revision else ''}", once)


def _path(uri: str) -> str:
    return uri.removeprefix("hf://").rstrip("/")


def _children(uri: str) -> list[dict[str, Any]]:
    try:
        return _ask(uri, lambda: _hub().ls(_path(uri), detail=True))
    except MissingError:
        return []


@functools.cache
def _hub_of(pid: int) -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _hub() -> Any:
    return _hub_of(os.getpid())


def _ask(uri: str, work: Callable[[], T]) -> T:
    """work(), with the errors of huggingface_hub told in our words."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

    try:
        return work()
    except (RepositoryNotFoundError, FileNotFoundError) as error:
        if isinstance(error, RepositoryNotFoundError) or isinstance(error.__cause__, RepositoryNotFoundError):
            raise StorageError(
                f"{uri}: the Hub knows no such repository; correct the name (data sets: hf://datasets/OWNER/NAME), or set "
                "HF_TOKEN if it is private or gated"
            ) from error
        raise MissingError(f"{uri}: nothing is there") from error
    except HTTPError as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status == 404:
            raise MissingError(f"{uri}: nothing is there") from error
        if status == 0 or status >= 500 or status == 429:
            raise UnavailableError(f"{uri}: the Hub does not answer ({status or error})") from error
        raise StorageError(f"{uri}: the Hub refuses ({error}); set HF_TOKEN to a token that may read this") from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot read ({error})") from error
