"""Rows of a Hugging Face dataset, on the Hub or in a local folder. This module is the only user of the `datasets` library.

Images stay encoded (`decode=False`) and are decoded by segdist, within its limits. No code of the dataset is executed;
`datasets` 4 and later do not support scripts. Measured against our own Hub server (datasets 5.2): `split="train[:N]"` still
downloads every file of every split, so a limit uses streaming, which reads row group by row group.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa

from segdist import console, storage
from segdist.data.importers.hub_errors import script_message, translate_errors
from segdist.errors import DataError, MissingError, StorageError

T = TypeVar("T")
_CONVERTED = "refs/convert/parquet"
_STREAMED = {"parquet", "arrow"}  # other formats may decode images before decoding can be turned off
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Place:
    """A dataset: its ID and commit on the Hub, or a local folder."""

    name: str  # OWNER/NAME, or the folder
    folder: Path | None = None
    commit: str = ""  # "" if unknown
    config: str = ""
    converted: bool = False  # the commit belongs to the Hub's conversion, which holds only Parquet

    @property
    def uri(self) -> str:
        """URI of the card and other files beside the data."""
        if self.folder:
            return str(self.folder)
        return f"hf://datasets/{self.name}" + (f"@{self.commit}" if self.commit and not self.converted else "")


@dataclass(frozen=True)
class Cell:
    """An image in a row. Arrow tables can be read from several threads."""

    column: Any = field(repr=False)  # pa.ChunkedArray of bytes and path
    row: int
    place: Place
    where: str  # "train, column image"

    @property
    def name(self) -> str:
        return f"{self.place.name}: {self.where}, row {self.row}"

    @property
    def num_bytes(self) -> int:
        return len(self.read())

    def read(self) -> bytes:
        cell = self.column[self.row].as_py() or {}
        if cell.get("bytes") is not None:
            return cell["bytes"]
        if not cell.get("path"):
            raise DataError(f"{self.name}: no image in this row. Every row needs an image and a mask")
        return _inside(cell["path"], self.place, self.name).read_bytes()

    def digest(self) -> str:
        """Return a hash of the place and the row, which fix the content if the commit is known, and else of the bytes."""
        if not self.place.commit:
            return hashlib.sha256(self.read()).hexdigest()
        return hashlib.sha256(repr((self.place, self.where, self.row)).encode()).hexdigest()


Take = Callable[
    [str, list[str], list[str], int | None], pa.Table
]  # (split, columns of images, other columns, number of rows)


@dataclass(frozen=True)
class Rows:
    """Contents of a dataset: features by column, names of its splits, and a function for the first rows of a split."""

    place: Place
    features: dict[str, Any]
    splits: list[str]
    take: Take  # downloads or streams when called


def open_rows(source: str, revision: str | None, subset: str | None, stream: bool) -> Rows:
    """Open a dataset, to be downloaded as a whole or streamed. Raises DataError or StorageError if that fails."""
    import datasets

    datasets.logging.set_verbosity_error()
    if not console.console.is_terminal:
        datasets.disable_progress_bars()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _of_folder(folder, subset)
    name, _, pinned = source.removeprefix("hf://datasets/").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # huggingface_hub 1 no longer accepts names without owner
        moved = f". https://huggingface.co/datasets/{name} redirects to its new ID" if "/" not in name else ""
        raise DataError(f"{source}: neither a folder here nor the ID OWNER/NAME of a dataset on the Hub{moved}")
    revision = revision or pinned or None
    builder = _builder(name, revision, subset)
    if builder.name == "cache":
        _check_cached(name, revision, builder.hash)
    commit = builder.hash if re.fullmatch("[0-9a-f]{40}", str(builder.hash)) else ""
    converted = builder.config.data_dir is not None  # set by `_builder` for conversions only
    place = Place(name, None, commit, "" if converted else builder.config.name, converted)
    if builder.name not in _STREAMED:
        console.say(f"downloading {name} into {datasets.config.HF_CACHE_HOME}, as a whole: its files are not Parquet")
        return _rows(place, _downloaded(name, builder), _of_table)
    streams = translate_errors(name, builder.as_streaming_dataset)  # reads only file footers, which hold the columns
    if stream:
        return _rows(place, streams, _of_stream)

    def take(split: str, images: list[str], others: list[str], num: int | None) -> pa.Table:
        return _of_table(name, downloaded()[split], images, others, num)

    @functools.cache
    def downloaded() -> dict[str, Any]:
        console.say(f"downloading {name} into {datasets.config.HF_CACHE_HOME} (--limit N fetches only the beginning)")
        return _downloaded(name, builder)

    return replace(_rows(place, streams, _of_stream), take=take)


def _downloaded(name: str, builder: Any) -> dict[str, Any]:
    translate_errors(name, builder.download_and_prepare)
    return translate_errors(name, builder.as_dataset)


def _rows(place: Place, found: dict[str, Any], table_of: Callable[..., pa.Table]) -> Rows:
    features = next(iter(found.values())).features
    assert features is not None, "Parquet, Arrow and tables declare their columns"

    def take(split: str, images: list[str], others: list[str], num: int | None) -> pa.Table:
        return table_of(place.name, found[split], images, others, num)

    return Rows(place, features, list(found), take)


def _check_cached(name: str, revision: str | None, commit: str) -> None:
    """Check the revision that `datasets` takes from its cache, which may be any, if the Hub cannot be reached."""
    if revision and revision != commit:
        raise StorageError(
            f"{name}: the Hub cannot be reached, and the cache holds commit {commit}, which may not be {revision!r}. Go "
            f"online, or pass --revision {commit}"
        )
    console.say(f"{name}: the Hub cannot be reached; using the newest version in the cache, commit {commit}")


def _of_folder(folder: Path, subset: str | None) -> Rows:
    """Open a folder written by `save_to_disk`, or one that `datasets.load_dataset` reads."""
    import datasets

    place, name = Place(str(folder), folder.resolve()), str(folder)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        found = translate_errors(name, lambda: datasets.load_from_disk(str(folder)))
        return _rows(place, found if isinstance(found, dict) else {"train": found}, _of_table)
    found = translate_errors(name, lambda: datasets.load_dataset(str(folder.resolve()), name=subset))
    return _rows(place, found, _of_table)


def _builder(name: str, revision: str | None, subset: str | None) -> Any:
    """Return the builder of a dataset on the Hub. For a dataset made by a script, the Hub's own conversion is used."""
    import datasets

    def load(revision: str | None, **more: Any) -> Any:
        return datasets.load_dataset_builder(f"hf://datasets/{name}", revision=revision, **more)

    if not _is_script(name, revision):
        return translate_errors(name, lambda: load(revision, name=subset))
    if revision is not None:
        raise DataError(
            f"{script_message(name)}. Its revision {revision!r} was not converted to Parquet: leave out --revision"
        )
    console.say(f"{script_message(name)}; using the Hub's conversion of it to Parquet ({_CONVERTED})")
    uri = f"hf://datasets/{name}@{_CONVERTED}"
    configs = sorted(set(storage.names(uri)) - set(storage.sizes(uri)))
    if not configs:
        raise DataError(
            f"{script_message(name)}, and the Hub has not converted it. Convert it to Parquet by running its script yourself, "
            "or give its own files"
        )
    chosen = subset or ("default" if "default" in configs else configs[0] if len(configs) == 1 else "")
    if chosen not in configs:
        raise DataError(f"{name}: its configurations are {', '.join(configs)}. Choose one with --subset")
    if any(split.startswith("partial-") for split in storage.names(storage.join(uri, chosen))):
        console.say(f"{name}: the Hub has converted only the beginning of this dataset")
    return translate_errors(name, lambda: load(_CONVERTED, data_dir=chosen))


def _is_script(name: str, revision: str | None) -> bool:
    """Return whether a script makes the dataset. `datasets` would silently use an older cached version instead."""
    pinned = f"@{quote(revision, safe='')}" if revision else ""
    try:
        return storage.exists(f"hf://datasets/{name}{pinned}/{name.split('/')[1]}.py")
    except StorageError:
        return False  # `datasets` will report the error


def _of_table(name: str, rows: Any, images: list[str], others: list[str], num: int | None) -> pa.Table:
    """Return all rows of a split on this machine, memory-mapped."""
    return _undecoded(name, rows, images).select_columns([*images, *others]).data.table


def _of_stream(name: str, rows: Any, images: list[str], others: list[str], num: int | None) -> pa.Table:
    """Return the first rows of a stream, kept in an unlinked temporary file that ends with this process."""
    stream = _undecoded(name, rows, images).select_columns([*images, *others])
    return _spooled(_translated_rows(name, iter(stream.take(num))), stream.features.arrow_schema)


def _undecoded(name: str, rows: Any, images: list[str]) -> Any:
    import datasets

    undecoded = datasets.Image(decode=False)
    for column in images:
        rows = translate_errors(name, functools.partial(rows.cast_column, column, undecoded))
    return rows


def _spooled(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return the rows as a memory-mapped table."""
    handle, path = tempfile.mkstemp(prefix="segdist-")
    os.close(handle)
    try:
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            while batch := list(itertools.islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(batch, schema))
        return pa.ipc.open_stream(pa.memory_map(path)).read_all()
    finally:
        os.unlink(path)


def _inside(path: str, place: Place, name: str) -> Path:
    """Return an image's file. Raises DataError unless it is in the dataset's folder or in the caches of the Hub's libraries."""
    import datasets

    cache = Path(datasets.config.HF_CACHE_HOME)
    roots = [Path(os.environ.get("HF_HUB_CACHE", cache / "hub")), Path(datasets.config.HF_DATASETS_CACHE)]
    file = (place.folder / path if place.folder else Path(path)).resolve()
    if not any(file.is_relative_to(root.resolve()) for root in [*roots, *([place.folder] if place.folder else [])]):
        raise DataError(
            f"{name}: its image {path} is outside of the dataset, and is not read. Move it into the dataset"
        )
    if not file.is_file():
        raise DataError(f"{name}: its image {path!r} does not exist at {file}. Add it, or remove the row")
    return file


def _translated_rows(name: str, rows: Iterator[T]) -> Iterator[T]:
    end = object()
    while (row := translate_errors(name, lambda: next(rows, end))) is not end:
        yield row  # type: ignore[misc]


def read_beside(place: Place, name: str) -> bytes | None:
    """Return the content of a file beside the data, or None if there is none or it cannot be read."""
    try:
        return storage.read(storage.join(place.uri, name))
    except MissingError:
        return None
    except StorageError as error:
        console.say(f"cannot check for {name}: {error}")
        return None
