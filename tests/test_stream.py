from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import prepare, write_pair

from segdist.config import Config, Io
from segdist.data import index as indices
from segdist.data.source import Source
from segdist.data.stream import TrainStream, eval_batches, eval_units
from segdist.distributed import World
from segdist.errors import DataError
from segdist.train.build import train_stream
from segdist.train.setup import training_order

Make = Callable[..., Config]


def stream_of(cfg: Config, rank: int = 0, num_ranks: int = 1) -> TrainStream:
    world = World(rank, num_ranks, torch.device("cpu"))
    return train_stream(cfg, indices.load(cfg.data.uri), world.share(cfg.train.num_micro_batches), world)


def test_ranks_share_the_very_batches_of_one(make_config: Make) -> None:
    cfg = make_config(train={"global_batch_size": 6, "micro_batch_size": 2})
    whole = [{b.number: b for b in step} for step in stream_of(cfg).steps(0, 5)]
    for num_ranks in (2, 3):
        seen = []
        for rank in range(num_ranks):
            for step, batch in enumerate(stream_of(cfg, rank, num_ranks).steps(0, 5)):
                for one in batch:
                    twin = whole[step][one.number]
                    seen.append((step, one.number))
                    assert one.sample_ids == twin.sample_ids
                    assert torch.equal(one.images, twin.images)
                    assert torch.equal(one.masks, twin.masks)
                    assert torch.equal(one.colors, twin.colors)
        assert sorted(seen) == [(step, group) for step in range(5) for group in sorted(whole[step])]


@pytest.mark.parametrize("start", [1, 4, 1000])
def test_a_stream_begun_in_the_middle_goes_on_alike(make_config: Make, start: int) -> None:
    cfg = make_config()
    first = start - min(start, 2)
    straight = [[b.images for b in step] for step in stream_of(cfg).steps(first, start + 2)][start - first :]
    resumed = [[b.images for b in step] for step in stream_of(cfg).steps(start, start + 2)]
    assert len(resumed) == 2 and all(map(len, resumed))
    assert all(torch.equal(a, b) for s, r in zip(straight, resumed, strict=True) for a, b in zip(s, r, strict=True))


def test_threads_and_depths_change_nothing(make_config: Make) -> None:
    one = make_config(io={"loader_threads": 1, "prefetch_steps": 1, "fetch_ahead_steps": 1})
    many = make_config(io={"loader_threads": 7, "prefetch_steps": 5, "fetch_ahead_steps": 40})
    steps = list(zip(stream_of(one).steps(0, 8), stream_of(many).steps(0, 8), strict=True))
    assert len(steps) == 8
    for a, b in steps:
        assert all(torch.equal(x.images, y.images) and torch.equal(x.masks, y.masks) for x, y in zip(a, b, strict=True))


def test_the_stream_follows_the_order(make_config: Make) -> None:
    cfg = make_config()
    index = indices.load(cfg.data.uri)
    source, order = Source(cfg.data.uri, index, "train"), training_order(cfg, index)
    batches = list(stream_of(cfg).steps(0, 6))
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        _, groups, rows = order.batch(step, np.arange(4))
        ids = [source.fetch(int(g)).sample(int(r)).sample_id for g, r in zip(groups, rows)]
        assert [i for b in batch for i in b.sample_ids] == ids


def test_masks_hold_classes_or_void_only(make_config: Make) -> None:
    seen = {
        value
        for batch in stream_of(make_config()).steps(0, 6)
        for one in batch
        for value in one.masks.unique().tolist()
    }
    assert seen == {*range(7), 255}


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 9])
def test_evaluation_sees_every_sample_once_on_any_number_of_ranks(
    street_data: str, batch_size: int, num_ranks: int
) -> None:
    index = indices.load(street_data)
    source = Source(street_data, index, "val")
    units = eval_units(source.sizes, batch_size)
    seen: list[str] = []
    for rank in range(num_ranks):
        share = World(rank, num_ranks, torch.device("cpu")).share(len(units))
        for batch in eval_batches(source, index.labels, None, Io(), [units[i] for i in share]):
            assert len(batch.images) == len(batch.masks) == len(batch.sample_ids) <= batch_size
            seen += batch.sample_ids
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == index.split("val").num_samples


def test_evaluation_resizes_images_and_never_masks(street_data: str) -> None:
    index = indices.load(street_data)
    source = Source(street_data, index, "val")
    batches = list(eval_batches(source, index.labels, (20, 25), Io(), eval_units(source.sizes, 2)))
    assert sum(len(batch.masks) for batch in batches) == 5
    for batch in batches:
        assert batch.images.shape[1:] == (3, 20, 25)
        assert batch.masks.shape[1:] == (32, 48)


def test_pictures_of_different_sizes_never_share_a_batch(tmp_path: Path) -> None:
    for i, size in enumerate([(32, 48), (32, 48), (40, 32), (32, 48), (40, 32), (40, 32)]):
        for split in ("train", "val"):
            write_pair(tmp_path / "src", f"p{i}", np.zeros((*size, 3), np.uint8), np.full(size, i % 2, np.uint8), split)
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), names="a,b")
    index = indices.load(str(tmp_path / "out"))
    source = Source(str(tmp_path / "out"), index, "val")
    assert source.sizes.tolist() == [6]
    batches = list(eval_batches(source, index.labels, None, Io(), eval_units(source.sizes, 4)))
    assert [(len(b.sample_ids), tuple(b.masks.shape[1:])) for b in batches] == [
        (2, (32, 48)), (1, (40, 32)), (1, (32, 48)), (2, (40, 32)),
    ]  # fmt: skip
    assert [i for b in batches for i in b.sample_ids] == [f"p{i}" for i in range(6)]
    assert all(int(m.unique()) == int(i[1:]) % 2 for b in batches for m, i in zip(b.masks, b.sample_ids))


def test_a_broken_sample_is_named_and_ends_the_threads(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    import segdist.data.stream as module

    def broken(data: object) -> torch.Tensor:
        raise DataError("cannot decode the image: test")

    monkeypatch.setattr(module, "decode_image", broken)
    with pytest.raises(DataError, match=r"sample '00\d\d': cannot decode the image.*`segdist doctor"):
        list(stream_of(make_config()).steps(0, 3))
    assert not [t for t in threading.enumerate() if t.name.startswith(("fetch", "decode"))]
