"""The rows of a Hugging Face data set, of the Hub or of a local folder, through the `datasets` library: its only door.

Images stay the bytes that they are (`decode=False`): they are decoded by us, within our limits. Nothing of the data set
is executed; `datasets` 4 and later know no scripts. Measured against a Hub of our own (datasets 5.2): `split="train[:N]"`
still downloads every file of every split, so a limit is a stream, which reads row group by row group.
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
from segdist.data.importers.hub_errors import scripted, through
from segdist.errors import DataError, MissingError, StorageError

T = TypeVar("T")
_CONVERTED = "refs/convert/parquet"
_STREAMED = {"parquet", "arrow"}  # others may decode images before one can say not to
_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Place:
    """A data set: its id and commit on the Hub, or a local folder."""

    name: str  # OWNER/NAME, or the folder
    folder: Path | None = None
    commit: str = ""  # "" where none is known
    config: str = ""
    converted: bool = False  # the commit is one of the Hub's conversion, which holds nothing but Parquet

    @property
    def uri(self) -> str:
        """Where its card and other files beside the data are."""
        if self.folder:
            return str(self.folder)
        return f"hf://datasets/{self.name}" + (f"@{self.commit}" if self.commit and not self.converted else "")


@dataclass(frozen=True)
class Cell:
    """An image in a row. Arrow's tables may be read from several threads."""

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
            raise DataError(f"{self.name}: no image is there; every row needs an image and a mask")
        return _inside(cell["path"], self.place, self.name).read_bytes()

    def digest(self) -> str:
        """Of commit, configuration, split, column and row, which fix the content; without a commit, of its bytes."""
        if not self.place.commit:
            return hashlib.sha256(self.read()).hexdigest()
        return hashlib.sha256(repr((self.place, self.where, self.row)).encode()).hexdigest()


Take = Callable[[str, list[str], list[str], int | None], pa.Table]  # (split, columns of images, others, how many rows)


@dataclass(frozen=True)
class Rows:
    """What a data set holds: features by column, the names of its splits, and a way to a split's first rows."""

    place: Place
    features: dict[str, Any]
    splits: list[str]
    take: Take  # downloads or streams when it is called


def open_rows(source: str, revision: str | None, subset: str | None, stream: bool) -> Rows:
    """A data set, downloaded as a whole, or to be streamed. Raises DataError or StorageError with the remedy."""
    import datasets

    datasets.logging.set_verbosity_error()
    if not console.console.is_terminal:
        datasets.disable_progress_bars()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _of_folder(folder, subset)
    name, _, pinned = source.removeprefix("hf://datasets/").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):  # huggingface_hub 1 reads no names without owner any more
        moved = f"; https://huggingface.co/datasets/{name} leads to where it is now" if "/" not in name else ""
        raise DataError(f"{source}: neither a folder here nor the id OWNER/NAME of a data set on the Hub{moved}")
    revision = revision or pinned or None
    builder = _builder(name, revision, subset)
    if builder.name == "cache":
        _check_cached(name, revision, builder.hash)
    commit = builder.hash if re.fullmatch("[0-9a-f]{40}", str(builder.hash)) else ""
    converted = builder.config.data_dir is not None  # we name a folder for conversions only
    place = Place(name, None, commit, "" if converted else builder.config.name, converted)
    if builder.name not in _STREAMED:
        console.say(f"downloading {name} into {datasets.config.HF_CACHE_HOME}, as a whole: its files are not Parquet")
        return _rows(place, _downloaded(name, builder), _of_table)
    streams = through(name, builder.as_streaming_dataset)  # reads no more than a file's footer: columns come first
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
    through(name, builder.download_and_prepare)
    return through(name, builder.as_dataset)


def _rows(place: Place, found: dict[str, Any], table_of: Callable[..., pa.Table]) -> Rows:
    features = next(iter(found.values())).features
    assert features is not None, "Parquet and Arrow say their columns, and tables know theirs"

    def take(split: str, images: list[str], others: list[str], num: int | None) -> pa.Table:
        return table_of(place.name, found[split], images, others, num)

    return Rows(place, features, list(found), take)


def _check_cached(name: str, revision: str | None, commit: str) -> None:
    """Where the Hub is not reached, `datasets` takes what its cache holds, of whatever revision."""
    if revision and revision != commit:
        raise StorageError(
            f"{name}: the Hub is not reached, and the cache holds commit {commit}, which need not be {revision!r}; go online, "
            f"or say --revision {commit}"
        )
    console.say(f"{name}: the Hub is not reached; taking the newest version that the cache holds, commit {commit}")


def _of_folder(folder: Path, subset: str | None) -> Rows:
    """What `datasets.load_dataset` or `save_to_disk` makes of a folder."""
    import datasets

    place, name = Place(str(folder), folder.resolve()), str(folder)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        found = through(name, lambda: datasets.load_from_disk(str(folder)))
        return _rows(place, found if isinstance(found, dict) else {"train": found}, _of_table)
    return _rows(place, through(name, lambda: datasets.load_dataset(str(folder.resolve()), name=subset)), _of_table)


def _builder(name: str, revision: str | None, subset: str | None) -> Any:
    """What will load a data set of the Hub. One that is made by a script is taken from the Hub's own conversion."""
    import datasets

    def load(revision: str | None, **more: Any) -> Any:
        return datasets.load_dataset_builder(f"hf://datasets/{name}", revision=revision, **more)

    if not _is_script(name, revision):
        return through(name, lambda: load(revision, name=subset))
    if revision is not None:
        raise DataError(f"{scripted(name)}; its revision {revision!r} has no conversion: leave --revision out")
    console.say(f"{scripted(name)}; taking the Hub's conversion of it to Parquet ({_CONVERTED})")
    uri = f"hf://datasets/{name}@{_CONVERTED}"
    configs = sorted(set(storage.names(uri)) - set(storage.sizes(uri)))
    if not configs:
        raise DataError(
            f"{scripted(name)}, and the Hub has not converted it; save it as Parquet, or give its own files"
        )
    chosen = subset or ("default" if "default" in configs else configs[0] if len(configs) == 1 else "")
    if chosen not in configs:
        raise DataError(f"{name}: its configurations are {', '.join(configs)}; choose one with --subset")
    if any(split.startswith("partial-") for split in storage.names(storage.join(uri, chosen))):
        console.say(f"{name}: the Hub has converted only the beginning of this data set")
    return through(name, lambda: load(_CONVERTED, data_dir=chosen))


def _is_script(name: str, revision: str | None) -> bool:
    """Asked here, since `datasets` would take an older version from its cache rather than say so."""
    pinned = f"@{quote(revision, safe='')}" if revision else ""
    try:
        return storage.exists(f"hf://datasets/{name}{pinned}/{name.split('/')[1]}.py")
    except StorageError:
        return False  # `datasets` will say what is wrong


def _of_table(name: str, rows: Any, images: list[str], others: list[str], num: int | None) -> pa.Table:
    """Rows that lie here, memory-mapped; all of them."""
    return _undecoded(name, rows, images).select_columns([*images, *others]).data.table


def _of_stream(name: str, rows: Any, images: list[str], others: list[str], num: int | None) -> pa.Table:
    """The first rows of a stream, kept in a file without a name, which ends with this process."""
    stream = _undecoded(name, rows, images).select_columns([*images, *others])
    return _spooled(_through_each(name, iter(stream.take(num))), stream.features.arrow_schema)


def _undecoded(name: str, rows: Any, images: list[str]) -> Any:
    import datasets

    for column in images:
        rows = through(name, lambda column=column, rows=rows: rows.cast_column(column, datasets.Image(decode=False)))  # type: ignore[misc]
    return rows


def _spooled(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The rows as a memory-mapped table."""
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
    """An image's file. Raises DataError unless it lies in the data set's folder or in the caches of the Hub's libraries."""
    import datasets

    cache = Path(datasets.config.HF_CACHE_HOME)
    roots = [Path(os.environ.get("HF_HUB_CACHE", cache / "hub")), Path(datasets.config.HF_DATASETS_CACHE)]
    file = (place.folder / path if place.folder else Path(path)).resolve()
    if not any(file.is_relative_to(root.resolve()) for root in [*roots, *([place.folder] if place.folder else [])]):
        raise DataError(f"{name}: its image lies at {path}, outside of the data set, and is not read")
    if not file.is_file():
        raise DataError(f"{name}: its image {path!r} is not there; looked for {file}")
    return file


def _through_each(name: str, rows: Iterator[T]) -> Iterator[T]:
    end = object()
    while (row := through(name, lambda: next(rows, end))) is not end:
        yield row  # type: ignore[misc]


def read_beside(place: Place, name: str) -> bytes | None:
    """A file beside the data; None when there is none, or nobody can be asked."""
    try:
        return storage.read(storage.join(place.uri, name))
    except MissingError:
        return None
    except StorageError as error:
        console.say(f"{name} cannot be looked for: {error}")
        return None
