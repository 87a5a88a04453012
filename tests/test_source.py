"""Row groups at rest: what is fetched is what was written, or an error says where it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segdist.data import index
from segdist.data.source import Source
from segdist.errors import DataError, StorageError


@pytest.fixture
def copy(street_data: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(street_data, tmp_path / "copy"))


def source_of(folder: Path) -> Source:
    return Source(str(folder), index.load(str(folder)), "train")


def shard_of(folder: Path) -> Path:
    return next((folder / "train").glob("*.parquet"))


def test_a_row_group_is_one_range_with_its_digest(copy: Path) -> None:
    source = source_of(copy)
    source.check()
    whole = pq.read_table(shard_of(copy)).column("sample_id").to_pylist()
    groups = [source.fetch(g) for g in range(len(source.sizes))]
    assert [g.sample(r).sample_id for g in groups for r in range(g.num_rows)] == whole
    assert [g.num_rows for g in groups] == source.sizes.tolist()


def test_a_truncated_shard_is_found_before_a_row_is_read(copy: Path) -> None:
    shard = shard_of(copy)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{shard.name}: this shard is truncated or changed. .* index.json says"):
        source_of(copy).check()
    with pytest.raises(StorageError, match="truncated"):
        source_of(copy).fetch(0)


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard_of(copy).unlink()
    with pytest.raises(DataError, match="this shard is missing"):
        source_of(copy).check()


@pytest.mark.parametrize("where", [100, -20])
def test_a_flipped_bit_is_never_trained_on(copy: Path, where: int) -> None:
    shard = shard_of(copy)
    data = bytearray(shard.read_bytes())
    data[where] ^= 1
    shard.write_bytes(data)
    source = source_of(copy)
    source.check()  # its size is right
    with pytest.raises(DataError, match="sha256 differs"):
        [source.fetch(g) for g in range(len(source.sizes))]


def test_an_unknown_split_names_those_there_are(copy: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'vall', only train, val. Did you mean 'val'"):
        index.load(str(copy)).split("vall")
