"""index.json: what a prepared data set holds and where. It is written last, so its presence means the data is whole."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segdist import storage
from segdist.data.labels import Labels
from segdist.errors import DataError, MissingError

FORMAT = "segdist-1"
NAME = "index.json"


_Count = Annotated[int, Field(ge=1, lt=2**62)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Part):
    """One Parquet file; the footer (metadata, its length, and the closing PAR1) is one ranged read of known digest."""

    file: str
    rows: _Count
    bytes: _Count
    footer_offset: _Count
    footer_length: _Count
    footer_sha256: str
    group_pixels: tuple[int, ...] = ()  # mask pixels of each row group; empty in data of an earlier version


class Split(_Part):
    """One split. All row groups hold `rows_per_group` rows but the last of a shard, which may hold fewer."""

    num_samples: int
    rows_per_group: _Count
    shuffle_seed: int | None  # of the order in which rows were written; None: the source's order
    class_pixels: tuple[int, ...]  # pixels of each class, over the split
    void_pixels: int
    smallest: tuple[int, int]  # (height, width) of the mask with the fewest pixels
    largest: tuple[int, int]
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.num_samples != sum(shard.rows for shard in self.shards):
            raise ValueError(f"{self.num_samples} samples are said, and the shards hold others")
        for shard in self.shards:
            if shard.rows > shard.bytes:
                raise ValueError(f"{shard.file}: {shard.rows} rows in {shard.bytes} bytes")
            if shard.footer_offset + shard.footer_length > shard.bytes:
                raise ValueError(f"{shard.file}: its footer lies beyond its end")
        return self

    def group_sizes(self) -> np.ndarray:
        """int64 rows of every row group, shard after shard."""
        parts = []
        for shard in self.shards:
            whole, tail = divmod(shard.rows, self.rows_per_group)
            parts.append(np.full(whole + (tail > 0), self.rows_per_group, np.int64))
            if tail:
                parts[-1][-1] = tail
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def group_pixels(self) -> np.ndarray:
        """int64 mask pixels of every row group; where they are not known, its rows, which serve to compare groups."""
        known = [n for shard in self.shards for n in shard.group_pixels]
        sizes = self.group_sizes()
        return np.array(known, np.int64) if len(known) == len(sizes) else sizes


class Index(_Part):
    """A prepared data set."""

    format: str
    name: str
    source: str
    source_digest: str  # of the files and settings that `prepare` read; the same again means nothing to do
    licence: str
    contract: dict[str, Any]
    meaning: str = ""  # digest of what raw values mean, see Labels.meaning; the data's, whatever became of the contract
    splits: dict[str, Split]

    @property
    def labels(self) -> Labels:
        return Labels.from_json(self.contract)

    def split(self, name: str) -> Split:
        """Raises DataError, naming the splits there are, when it is missing or empty."""
        if name not in self.splits:
            near = difflib.get_close_matches(name, self.splits, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"data set {self.name!r} has no split {name!r}, only {', '.join(sorted(self.splits))}{hint}"
            )
        if self.splits[name].num_samples == 0:
            raise DataError(f"split {name!r} of data set {self.name!r} is empty; prepare it from a folder with images")
        return self.splits[name]

    def digest(self, split: str) -> str:
        """What a model trained or scored on this split depends on: the contract and the rows, not their address."""
        told_by_footers = {"shards": {"__all__": {"group_pixels"}}}
        tree = {"labels": self.contract, "split": self.split(split).model_dump(mode="json", exclude=told_by_footers)}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def load(uri: str) -> Index:
    """The index of a prepared data set. Raises DataError when there is none, or none that this version reads."""
    address = storage.join(uri, NAME)
    try:
        data = storage.read(address)
    except MissingError:
        raise DataError(
            f"{uri}: no {NAME} there, so this is no prepared data set; make one with `segdist prepare SOURCE {uri}`"
        ) from None
    try:
        tree = json.loads(data)
        if tree.get("format") != FORMAT:
            raise DataError(
                f"{address}: format {tree.get('format')!r}; this version reads {FORMAT!r}. Prepare it again"
            )
        index = Index.model_validate_json(data)
        num = index.labels.num_classes
        if any(len(split.class_pixels) != num for split in index.splits.values()):
            raise ValueError(f"class_pixels are not those of {num} classes")
        if index.meaning and index.meaning != index.labels.meaning():
            raise DataError(
                f"{address}: the contract's raw values, or its order of classes, were changed since the data were checked "
                "against them; prepare the data again with other --names (names and colours alone may be edited)"
            )
        return index
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{address}: not a data set's index: {error}") from None


def save(uri: str, index: Index) -> None:
    storage.write(storage.join(uri, NAME), index.model_dump_json(indent=1).encode())
