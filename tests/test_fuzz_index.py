"""A prepared data set whose index or shards were tampered with: refused, or read exactly, by whoever trains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import prepare
from spoilt import NAMES, attempt, draw_good

from segdist.data import index
from segdist.data.source import Source

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    out = folder / "out"
    prepare(str(draw_good(folder)), str(out), names=NAMES)
    return out


def reads(uri: Path) -> dict[str, bytes]:
    """All that training reads: the index, the contract, the shards and their row groups."""
    loaded = index.load(str(uri))
    assert loaded.labels.num_classes == 3
    found = {}
    for split in ("train", "val"):
        source = Source(str(uri), loaded, split)
        source.check()
        for group in range(len(source.sizes)):
            rows = source.fetch(group)
            found |= {rows.sample(r).sample_id: rows.sample(r).mask.to_pybytes() for r in range(rows.num_rows)}
    return found


def edits() -> Iterator[tuple[str, Callable[[str], str | bytes]]]:
    """(what, index.json -> another)"""
    for i in range(8):
        yield f"cut at {i}/8", lambda text, i=i: text[: len(text) * i // 8]
    for text in (
        "null",
        "[]",
        "7",
        '"x"',
        "{}",
        '{"format": "segdist-1"}',
        "[" * 100_000,
        '{"a": ' * 50_000,
        '{"format": ' + "9" * 5000 + "}",
    ):
        yield f"is {text[:20]}", lambda _, text=text: text
    yield "has a BOM", lambda text: "\ufeff" + text
    yield "is UTF-16", lambda text: text.encode("utf-16")
    yield "has bytes of no UTF-8", lambda text: text.encode().replace(b"segdist", b"seg\xff")
    yield "has a NaN", lambda text: text.replace('"void_pixels": ', '"void_pixels": NaN, "x": ', 1)

    def at(*keys: str | int, value: object) -> Callable[[str], str]:
        def edit(text: str) -> str:
            tree = json.loads(text)
            node = tree
            for key in keys[:-1]:
                node = node[key]
            node[keys[-1]] = value
            return json.dumps(tree)

        return edit

    train = ("splits", "train")
    shard = (*train, "shards", 0)
    for keys, values in {
        ("contract",): ({}, None, [], {"classes": [], "void": []}, {"classes": 7, "void": 8}),
        ("contract", "void"): ("255", [255, 255], [0], None, [1.5]),
        ("contract", "classes", 0, "raw"): ("0", [0, 1], [0.5], [-1], [True], 0),
        ("splits",): ({}, [], None, {"train": {}}),
        (*train, "num_samples"): (0, -1, 99, "3", 1.5, 10**30),
        (*train, "rows_per_group"): (0, -1, 7, 10**30, None),
        (*train, "class_pixels"): ([], [1], None, [1, 2, 3, 4]),
        (*train, "shards"): ([], None, [{}]),
        (*shard, "file"): ("../../x.parquet", "/etc/passwd", "", "train/gone.parquet", "index.json", "train/\0", 7),
        (*shard, "rows"): (0, -1, 99, 10**30),
        (*shard, "bytes"): (0, -1, 10**30),
        (*shard, "footer_offset"): (0, -1, 10**30),
        (*shard, "footer_length"): (0, -1, 10**12),
        (*shard, "footer_sha256"): ("", "0" * 64, 7),
    }.items():
        for value in values:
            yield f"{'.'.join(map(str, keys))} = {str(value)[:40]}", at(*keys, value=value)


INDEXES = dict(edits())


@pytest.mark.parametrize("name", INDEXES)
def test_a_spoilt_index_is_refused_or_changes_nothing(prepared: Path, tmp_path: Path, name: str) -> None:
    expected = reads(prepared)
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    text = INDEXES[name]((data / "index.json").read_text(encoding="utf-8"))
    (data / "index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message, found = attempt(lambda: reads(data))
    if found is None:
        assert str(data) in message or "train" in message
        assert len(message) < 4000
    else:
        assert found == expected


@pytest.mark.parametrize("seed", range(12))
def test_a_spoilt_shard_is_refused(prepared: Path, tmp_path: Path, seed: int) -> None:
    data = Path(shutil.copytree(prepared, tmp_path / "data"))
    path = next((data / "train").glob("*.parquet"))
    expected, spoilt = reads(data), bytearray(path.read_bytes())
    at = int(np.random.default_rng(seed).integers(0, len(spoilt)))
    if seed % 3 == 0:
        del spoilt[at:]
    else:
        spoilt[at] ^= 1 + seed
    path.write_bytes(spoilt)
    message, found = attempt(lambda: reads(data))
    assert path.name in message if found is None else found == expected  # there are bytes that nobody reads
