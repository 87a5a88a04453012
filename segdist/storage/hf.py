"""Read-only access to the Hugging Face Hub.

Datasets are hf://datasets/OWNER/NAME/PATH, models are hf://OWNER/NAME/PATH; NAME@REVISION pins a revision. Access goes through
huggingface_hub's file system, so HF_TOKEN, HF_ENDPOINT and its other settings apply.
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
    return _call(uri, lambda: _hub().cat_file(_path(uri)))


def read_range(uri: str, offset: int, length: int) -> bytes:
    def once() -> bytes:
        with _hub().open(_path(uri), "rb", cache_type="none") as file:  # no read-ahead beyond the range
            file.seek(offset)
            return file.read(length)

    data = _call(uri, once)
    if len(data) != length:
        raise StorageError(
            f"{uri}: truncated: {len(data)} of {length} bytes at offset {offset}. Copy or prepare the data again"
        )
    return data


def exists(uri: str) -> bool:
    try:
        _call(uri, lambda: _hub().info(_path(uri)))
    except MissingError:
        return False
    return True


def names(uri: str) -> list[str]:
    return sorted(item["name"].rsplit("/", 1)[-1] for item in _children(uri))


def sizes(uri: str) -> dict[str, int]:
    return {item["name"].rsplit("/", 1)[-1]: item["size"] for item in _children(uri) if item["type"] == "file"}


def walk(uri: str) -> Iterator[Entry]:
    try:
        top = _call(uri, lambda: _hub().info(_path(uri)))
    except MissingError:
        return
    if top["type"] == "file":
        return
    root = top["name"]
    found: dict[str, Any] = _call(uri, lambda: _hub().find(_path(uri), detail=True))
    for name, item in found.items():
        tag = (item.get("lfs") or {}).get("sha256") or item.get("blob_id")
        yield Entry(name.removeprefix(f"{root}/"), item["size"], tag)


def file_exists(repo: str, name: str, revision: str | None = None) -> bool:
    """Return whether a model repository has a file; asks the local cache first, then the Hub. Raises StorageError."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repo, name, revision=revision), str):
        return True
    return exists(f"hf://{repo}{f'@{revision}' if revision else ''}/{name}")


def cached_file(repo: str, name: str, revision: str | None = None) -> Path | None:
    """Return the path of a model's file in huggingface_hub's cache, downloading it if needed.

    Its folder is named after the commit. Returns None if the model has no such file, or if HF_HUB_OFFLINE is set and the file
    is not cached. Raises UnavailableError if the Hub does not answer and the cache has no answer either, and StorageError.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def once() -> Path | None:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but the file may exist on the Hub
            offline = isinstance(error.__cause__, OfflineModeIsEnabled)
            if offline or try_to_load_from_cache(repo, name, revision=revision) is not None:  # cached as missing
                return None
            raise error.__cause__ or error from None
        except EntryNotFoundError:
            return None

    return _call(f"hf://{repo}{f'@{revision}' if revision else ''}", once)


def _path(uri: str) -> str:
    return uri.removeprefix("hf://").rstrip("/")


def _children(uri: str) -> list[dict[str, Any]]:
    try:
        return _call(uri, lambda: _hub().ls(_path(uri), detail=True))
    except MissingError:
        return []


@functools.cache
def _hub_of(pid: int) -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


def _hub() -> Any:
    return _hub_of(os.getpid())


def _call(uri: str, work: Callable[[], T]) -> T:
    """Return work(). Raises StorageError for huggingface_hub's errors."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

    try:
        return work()
    except (RepositoryNotFoundError, FileNotFoundError) as error:
        if isinstance(error, RepositoryNotFoundError) or isinstance(error.__cause__, RepositoryNotFoundError):
            raise StorageError(
                f"{uri}: no such repository on the Hub. Correct the name (datasets are hf://datasets/OWNER/NAME), or set "
                "HF_TOKEN if the repository is private or gated"
            ) from error
        raise MissingError(f"{uri}: not found on the Hub") from error
    except HTTPError as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status == 404:
            raise MissingError(f"{uri}: not found on the Hub") from error
        if status == 0 or status >= 500 or status == 429:
            raise UnavailableError(f"{uri}: the Hub does not answer ({status or error})") from error
        raise StorageError(
            f"{uri}: the Hub denies access ({error}). Set HF_TOKEN to a token with read access"
        ) from error
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: cannot read ({error}). Correct the URI") from error
