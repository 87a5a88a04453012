"""index.json: the label contract, splits and shards of a prepared dataset. It is written last and marks a complete dataset."""

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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Strict):
    """One Parquet file. One ranged read fetches its footer (metadata, length and closing PAR1), whose digest is known."""

    file: str
    rows: _Count
    bytes: _Count
    footer_offset: _Count
    footer_length: _Count
    footer_sha256: str
    group_pixels: tuple[int, ...] = ()  # mask pixels of each row group; empty in datasets of an earlier version


class Split(_Strict):
    """One split. Every row group has `rows_per_group` rows, except that the last one of a shard may have fewer."""

    num_samples: int
    rows_per_group: _Count
    shuffle_seed: int | None  # seed of the order of rows; None: the source's order
    class_pixels: tuple[int, ...]  # pixels of each class in the split
    void_pixels: int
    smallest: tuple[int, int]  # (height, width) of the mask with the fewest pixels
    largest: tuple[int, int]  # of the mask with the most pixels
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.num_samples != sum(shard.rows for shard in self.shards):
            raise ValueError(f"num_samples is {self.num_samples}, but the shards have another number of rows")
        for shard in self.shards:
            if shard.rows > shard.bytes:
                raise ValueError(f"{shard.file}: {shard.rows} rows in {shard.bytes} bytes")
            if shard.footer_offset + shard.footer_length > shard.bytes:
                raise ValueError(f"{shard.file}: the footer lies outside the file")
        return self

    def row_group_sizes(self) -> np.ndarray:
        """Return the int64 number of rows of every row group, shard by shard."""
        parts = []
        for shard in self.shards:
            whole, tail = divmod(shard.rows, self.rows_per_group)
            parts.append(np.full(whole + (tail > 0), self.rows_per_group, np.int64))
            if tail:
                parts[-1][-1] = tail
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def row_group_pixels(self) -> np.ndarray:
        """Return the int64 mask pixels of every row group, or its rows where the pixels are unknown.

        Use the result to compare row groups only.
        """
        known = [n for shard in self.shards for n in shard.group_pixels]
        sizes = self.row_group_sizes()
        return np.array(known, np.int64) if len(known) == len(sizes) else sizes


class Index(_Strict):
    """The index of a prepared dataset."""

    format: str
    name: str
    source: str
    source_digest: str  # of the source files and settings; `prepare` does nothing if it has not changed
    licence: str
    contract: dict[str, Any]
    meaning: str = ""  # Labels.meaning() at preparation; differs from the contract's if somebody edited the contract
    splits: dict[str, Split]

    @property
    def labels(self) -> Labels:
        return Labels.from_json(self.contract)

    def split(self, name: str) -> Split:
        """Return a split by name. Raises DataError if it is missing or empty."""
        if name not in self.splits:
            near = difflib.get_close_matches(name, self.splits, 1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"dataset {self.name!r} has no split {name!r}, only {', '.join(sorted(self.splits))}{hint}")
        if self.splits[name].num_samples == 0:
            raise DataError(
                f"split {name!r} of dataset {self.name!r} is empty. Prepare it again with images in this split"
            )
        return self.splits[name]

    def digest(self, split: str) -> str:
        """Return the sha256 of the contract and the rows of a split: the same wherever the dataset is stored."""
        excluded = {"shards": {"__all__": {"group_pixels"}}}  # the footers' digests cover them
        tree = {"labels": self.contract, "split": self.split(split).model_dump(mode="json", exclude=excluded)}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def load(uri: str) -> Index:
    """Load the index of a prepared dataset. Raises DataError if it is missing, invalid or of another format version."""
    address = storage.join(uri, NAME)
    try:
        data = storage.read(address)
    except MissingError:
        raise DataError(
            f"{uri} has no {NAME}, so it is not a prepared dataset. Make one with `segdist prepare SOURCE {uri}`"
        ) from None
    try:
        tree = json.loads(data)
        if tree.get("format") != FORMAT:
            raise DataError(
                f"{address}: unknown format {tree.get('format')!r}. This version reads {FORMAT!r}. Prepare the data again"
            )
        index = Index.model_validate_json(data)
        num = index.labels.num_classes
        if any(len(split.class_pixels) != num for split in index.splits.values()):
            raise ValueError(f"class_pixels does not have {num} numbers, one per class")
        if index.meaning and index.meaning != index.labels.meaning():
            raise DataError(
                f"{address}: the values or the order of the classes were edited. Only names and colours may be changed there. "
                "For other values, prepare the data again with other --names"
            )
        return index
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{address} is not a valid dataset index ({error}). Copy or prepare the data again") from None


def save(uri: str, index: Index) -> None:
    storage.write(storage.join(uri, NAME), index.model_dump_json(indent=1).encode())
