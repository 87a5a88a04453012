"""Reading of a stored split: one ranged read per row group, verified by its sha256."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segdist import console, storage
from segdist.data.cache import Cache
from segdist.data.index import NAME, Index, Shard
from segdist.data.write import DIGESTS, SCHEMA
from segdist.errors import DataError

_FOOTERS_KEPT = 1024


@dataclass(frozen=True)
class Sample:
    """One stored sample: encoded image and mask. `height` and `width` are the mask's, in px."""

    sample_id: str
    image: pa.Buffer
    mask: pa.Buffer
    mask_codec: str
    height: int
    width: int


class RowGroup:
    """One row group in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._columns = {name: table.column(name).combine_chunks() for name in SCHEMA.names}
        self.num_rows = table.num_rows

    def size(self, row: int) -> tuple[int, int]:
        """Return the (height, width) of a row's mask, in px."""
        return self._columns["height"][row].as_py(), self._columns["width"][row].as_py()

    def sample(self, row: int) -> Sample:
        c = self._columns
        return Sample(
            c["sample_id"][row].as_py(),
            c["image"][row].as_buffer(),
            c["mask"][row].as_buffer(),
            c["mask_codec"][row].as_py(),
            c["height"][row].as_py(),
            c["width"][row].as_py(),
        )


class Source:
    """The row groups of one split, by number. Thread-safe."""

    def __init__(self, uri: str, index: Index, split: str, cache: Cache | None = None) -> None:
        self.uri, self._cache = uri, cache
        self._split = index.split(split)
        self.sizes = self._split.row_group_sizes()
        counts = [-(-s.rows // self._split.rows_per_group) for s in self._split.shards]
        self._first_row_group = np.concatenate([[0], np.cumsum(counts)])  # of each shard
        self._footers: dict[int, tuple[pq.FileMetaData, list[str]]] = {}
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise DataError unless every shard exists with the size in the index. Lists the split, and reads no shard."""
        folders = {shard.file.rsplit("/", 1)[0] for shard in self._split.shards}
        found = {f"{f}/{n}": size for f in folders for n, size in storage.sizes(storage.join(self.uri, f)).items()}
        for shard in self._split.shards:
            size = found.get(shard.file)
            address = storage.join(self.uri, shard.file)
            if size is None:
                raise DataError(f"{address}: this shard is missing. Copy or prepare the data again")
            if size != shard.bytes:
                raise DataError(
                    f"{address}: this shard is truncated or changed. It has {size} bytes, but {NAME} says {shard.bytes}. "
                    "Copy or prepare the data again"
                )

    def fetch(self, row_group: int) -> RowGroup:
        """Return a row group. Raises DataError if its sha256 is not the one that was written."""
        shard_number = int(np.searchsorted(self._first_row_group, row_group, "right")) - 1
        shard = self._split.shards[shard_number]
        address = storage.join(self.uri, shard.file)
        meta, digests = self._footer(shard_number, shard, address)
        local = row_group - int(self._first_row_group[shard_number])
        start, length = _byte_range(meta.row_group(local))
        data = self._cache.get(digests[local]) if self._cache else None
        if data is None:
            data = _read(address, start, length)
            if hashlib.sha256(data).hexdigest() != digests[local]:
                raise DataError(
                    f"{address}: row group {local} has changed since it was written (sha256 differs). Copy or prepare the data "
                    "again"
                )
            if self._cache:
                self._cache.put(digests[local], data)
        file = pq.ParquetFile(pa.PythonFile(_PartialFile(data, start, shard.bytes), mode="r"), metadata=meta)
        return RowGroup(file.read_row_group(local, use_threads=False))

    def _footer(self, number: int, shard: Shard, address: str) -> tuple[pq.FileMetaData, list[str]]:
        known = self._footers.get(number)
        if known is None:
            data = _read(address, shard.footer_offset, shard.footer_length)
            if hashlib.sha256(data).hexdigest() != shard.footer_sha256:
                raise DataError(
                    f"{address}: the footer has changed since it was written (sha256 differs). Copy or prepare the data again"
                )
            meta = pq.read_metadata(pa.BufferReader(data))
            num_row_groups = int(self._first_row_group[number + 1] - self._first_row_group[number])
            if (meta.num_rows, meta.num_row_groups) != (shard.rows, num_row_groups):
                raise DataError(f"{address}: the shard has other rows than {NAME} says. Copy or prepare the data again")
            known = meta, json.loads(meta.metadata[DIGESTS.encode()])
            with self._lock:
                while len(self._footers) >= _FOOTERS_KEPT:
                    self._footers.pop(next(iter(self._footers)))
                self._footers[number] = known
        return known


def _read(address: str, offset: int, length: int) -> bytes:
    """Read a range, with retries, so that the stream survives a short storage outage."""
    return storage.with_retries(lambda: storage.read_range(address, offset, length), console.say)


def _byte_range(row_group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return the (offset, length) of a row group's bytes in its file."""
    columns = [row_group.column(i) for i in range(row_group.num_columns)]
    start = min(c.dictionary_page_offset or c.data_page_offset for c in columns)
    return start, sum(c.total_compressed_size for c in columns)


class _PartialFile:
    """File object for pyarrow: `size` bytes, of which only [start, start + len(data)) can be read."""

    closed = False

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self._data, self._start, self._size, self._at = data, start, size, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int = -1) -> bytes:
        begin = self._at - self._start
        end = begin + (length if length >= 0 else self._size - self._at)
        assert begin >= 0 and min(end, self._size - self._start) <= len(self._data), "read outside the available range"
        self._at += len(self._data[begin:end])
        return self._data[begin:end]

    def close(self) -> None:
        self.closed = True
