"""The data cache: what one run has fetched the next has here, nothing damaged is handed out, and no disk stops a stream."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from segdist import storage
from segdist.config import Io
from segdist.data import index
from segdist.data.cache import Cache, open_cache
from segdist.data.source import Source


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(cache: Cache, data: bytes, age: float = 0) -> str:
    digest = digest_of(data)
    cache.put(digest, data)
    path = cache._path(digest)
    if age:
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    return digest


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of which ranges were read."""
    seen: list[str] = []
    real = storage.read_range

    def read_range(uri: str, offset: int, length: int) -> bytes:
        seen.append(f"{uri}@{offset}")
        return real(uri, offset, length)

    monkeypatch.setattr(storage, "read_range", read_range)
    return seen


def test_what_one_source_has_fetched_another_does_not_fetch(street_data: str, tmp_path: Path, reads: list[str]) -> None:
    about = index.load(street_data)
    fetched = []
    for _ in range(2):
        source = Source(street_data, about, "train", Cache(tmp_path, 1 << 30))
        fetched.append([source.fetch(g).sample(0).sample_id for g in range(len(source.sizes))])
    assert fetched[0] == fetched[1]
    assert len(reads) == len(fetched[0]) + 2  # the groups once; the footer, which the index vouches for, by each


def test_a_damaged_file_is_fetched_again(street_data: str, tmp_path: Path, reads: list[str]) -> None:
    about, cache = index.load(street_data), Cache(tmp_path, 1 << 30)
    Source(street_data, about, "train", cache).fetch(0)
    (path,) = tmp_path.glob("??/*")
    whole = path.read_bytes()
    for spoilt in (whole[:-1], b"", bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(spoilt)
        before = len(reads)
        assert Source(street_data, about, "train", cache).fetch(0).sample(0).sample_id
        assert len(reads) == before + 2 and path.read_bytes() == whole


def test_the_oldest_go_when_it_is_full(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    old = put(cache, b"a" * 300, age=100)
    used = put(cache, b"b" * 300, age=90)
    other = put(cache, b"c" * 300, age=80)
    assert cache.get(used) is not None  # which makes it young
    new = put(cache, b"d" * 300)
    assert [cache.get(digest) is not None for digest in (old, used, other, new)] == [False, True, True, True]
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= 1000


def test_a_disk_that_takes_nothing_is_told_once_and_the_stream_goes_on(
    street_data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    source = Source(street_data, index.load(street_data), "train", Cache(tmp_path / "file", 1 << 30))
    assert all(source.fetch(g).num_rows for g in range(len(source.sizes)))
    assert capsys.readouterr().err.count("cannot write to the data cache") == 1


def test_many_threads_share_it(tmp_path: Path) -> None:
    data = [os.urandom(1000) for _ in range(40)]
    wrong: list[int] = []

    def work(n: int) -> None:
        cache = Cache(tmp_path, 20_000)
        for i in range(200):
            one = data[(i * 7 + n) % len(data)]
            found = cache.get(digest_of(one))
            if found is None:
                cache.put(digest_of(one), one)
            elif found != one:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_only_remote_data_is_kept(tmp_path: Path) -> None:
    wanted = Io(cache_gb=1, cache_dir=str(tmp_path))
    assert open_cache("s3://bucket/data", wanted) and not open_cache(str(tmp_path), wanted)
    assert not open_cache("s3://bucket/data", Io())
