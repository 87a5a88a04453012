"""Writing of Parquet shards with equal row groups, one ranged read each, and the sha256 of every row group and footer.

Shard names contain their digest. So preparing a dataset again never breaks it: the new shards are written next to the old
ones, then index.json is replaced in one step, then the old shards are deleted.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segdist import console, storage
from segdist.data.index import Shard

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image", pa.binary()),
        ("mask", pa.binary()),
        ("mask_codec", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
DIGESTS = "segdist.row_group_sha256"  # footer metadata: JSON list of hex digests
ROW_GROUP_BYTES = 4 << 20
SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Row:
    """One sample to store. `counts` are the pixels of each raw value that the mask holds."""

    sample_id: str
    image: bytes
    mask: bytes
    mask_codec: str
    height: int
    width: int
    counts: dict[int, int]


def rows_per_group(largest_bytes: int, num_samples: int, shuffled: bool) -> int:
    """Return the number of rows in a row group: at most 32 rows and 4 MB.

    A shuffled split has at least 32 row groups if it has the samples, since a batch mixes row groups.
    """
    limit = max(1, num_samples // 32) if shuffled else 32
    return max(1, min(32, limit, ROW_GROUP_BYTES // max(largest_bytes, 1)))


class ShardWriter:
    """Writes rows, given in their final order, to shards. `close` writes the last one."""

    def __init__(
        self, put: Callable[[str, bytes], object], split: str, rows_per_group: int, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """`put(name, data)` stores a shard under a name relative to the dataset."""
        self._put, self._split, self._rows_per_group, self._shard_bytes = put, split, rows_per_group, shard_bytes
        self._rows: list[Row] = []
        self.shards: list[Shard] = []
        self._open()

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == self._rows_per_group:
            self._write_row_group()
            if self._sink.tell() >= self._shard_bytes:
                self._close_shard()
                self._open()

    def close(self) -> None:
        if self._rows:
            self._write_row_group()
        if self._digests:
            self._close_shard()

    def _open(self) -> None:
        self._sink = io.BytesIO()  # one shard in memory: its name contains a digest of its content
        self._writer = pq.ParquetWriter(
            self._sink, SCHEMA, compression="none", use_dictionary=["mask_codec"], write_statistics=False
        )
        self._digests: list[str] = []
        self._pixels: list[int] = []
        self._num_rows = 0

    def _write_row_group(self) -> None:
        start = self._sink.tell()
        columns = [[getattr(row, name) for row in self._rows] for name in SCHEMA.names]
        self._writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=len(self._rows))
        self._digests.append(hashlib.sha256(self._sink.getbuffer()[start:]).hexdigest())
        self._pixels.append(sum(row.height * row.width for row in self._rows))
        self._num_rows += len(self._rows)
        self._rows = []

    def _close_shard(self) -> None:
        self._writer.add_key_value_metadata({DIGESTS: json.dumps(self._digests)})
        offset = self._sink.tell()
        self._writer.close()
        data = self._sink.getvalue()
        footer = data[offset:]
        digest = hashlib.sha256(footer).hexdigest()
        file = f"{self._split}/{len(self.shards):05d}-{digest[:12]}.parquet"
        self._put(file, data)
        self.shards.append(
            Shard(
                file=file,
                rows=self._num_rows,
                bytes=len(data),
                footer_offset=offset,
                footer_length=len(footer),
                footer_sha256=digest,
                group_pixels=tuple(self._pixels),
            )
        )


def shard_uploader(uri: str) -> Callable[[str, bytes], None]:
    """Return a function that writes shards below a URI, for `ShardWriter(put=...)`."""

    def put(name: str, data: bytes) -> None:
        address = storage.join(uri, name)
        storage.with_retries(lambda: storage.write(address, data), console.say)

    return put


def sparse_counts(counts: np.ndarray) -> dict[int, int]:
    """Return the non-zero counts of a histogram as {raw value: pixels}."""
    return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
