"""Samples on their way to the device: row groups fetched ahead, decoded in threads straight into the batch.

The training stream yields, step after step, the micro-batches of this rank; the evaluation stream yields every sample of
a split once. Neither has state: a step number (or nothing) says where it stands.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from segdist.config import Data, Io
from segdist.data import augment
from segdist.data.codec import decode_image, decode_mask, size_of
from segdist.data.index import Split
from segdist.data.labels import Labels
from segdist.data.order import Order, key
from segdist.data.source import Group, Sample, Source
from segdist.errors import DataError
from segdist.ops import IGNORE
from segdist.threads import ahead

PAD = 124  # of images, 0..255: near ImageNet's mean, so that padding is near zero once normalised


@dataclass
class MicroBatch:
    """A fixed group of consecutive slots of the global batch: the unit of batch statistics and dropout."""

    group: int  # number of the group in the global batch
    images: torch.Tensor  # uint8 (m, 3, h, w)
    masks: torch.Tensor  # uint8 (m, h, w): 0..K-1 and 255
    colors: torch.Tensor  # float32 (m, 3, 4): see augment.View.color
    sample_ids: list[str] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)  # of each mask, what `count` of the stream says

    @property
    def count(self) -> torch.Tensor:
        """What `count` of the stream says of all masks."""
        return torch.stack(self.counts).sum(0)


@dataclass
class EvalBatch:
    """Whole images of one size with their masks of one size."""

    images: torch.Tensor  # uint8 (b, 3, h, w), at the size the model sees
    masks: torch.Tensor  # uint8 (b, H, W), at their own size
    sample_ids: list[str]
    rows: list[int]  # their places in the split


class Decoder:
    """Stored samples to pixels and classes: here, and only here, the label contract is applied."""

    def __init__(self, labels: Labels) -> None:
        self._tables = {np.dtype(t): labels.table(t) for t in (np.uint8, np.uint16)}

    def __call__(self, sample: Sample) -> tuple[torch.Tensor, np.ndarray]:
        """((3, H, W) uint8 image, (H, W) uint8 classes). Raises DataError naming the sample."""
        size = (sample.height, sample.width)
        try:
            if (found := size_of(sample.image)) != size:  # before a pixel is decoded: it may be a bomb
                raise DataError(f"image {found} and mask {size} differ in size")
            image = decode_image(sample.image)
            raw = decode_mask(sample.mask, sample.mask_codec, *size)
        except DataError as error:
            raise DataError(f"sample {sample.sample_id!r}: {error}") from None
        return image, self._tables[raw.dtype].take(raw)  # in 0.4 of the time of [raw]


class _Fetcher:
    """Row groups at hand or under way, each kept until the last step that was said to need it."""

    def __init__(self, source: Source, pool: ThreadPoolExecutor) -> None:
        self._source, self._pool = source, pool
        self._groups: dict[int, tuple[Future[Group], int]] = {}

    def need(self, step: int, groups: Iterable[int]) -> None:
        for group in groups:
            known = self._groups.get(group)
            self._groups[group] = (known[0] if known else self._pool.submit(self._source.fetch, group), step)

    def future(self, group: int) -> Future[Group]:
        return self._groups[group][0]

    def forget_before(self, step: int) -> None:
        self._groups = {g: entry for g, entry in self._groups.items() if entry[1] >= step}


@dataclass(frozen=True)
class _Plan:
    step: int
    epoch: int
    groups: np.ndarray
    rows: np.ndarray


class TrainStream:
    """The micro-batches `groups` (numbers in the global batch) of every step; `count` is asked about each mask (1, h, w)."""

    def __init__(
        self,
        source: Source,
        order: Order,
        labels: Labels,
        cfg: Data,
        io: Io,
        groups: range,
        size: int,
        pin: bool = False,
        count: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._source, self._order, self._cfg, self._io, self._pin = source, order, cfg, io, pin
        self._decode, self._count = Decoder(labels), count
        self._groups, self._size = groups, size
        self._slots = np.arange(groups.start * size, groups.stop * size)

    def steps(self, start: int, stop: int) -> Generator[list[MicroBatch]]:
        """The batches of steps start..stop-1; close it to stop its threads."""
        torch.get_num_threads()  # this thread's count is settled before the decoders set theirs
        fetchers = ThreadPoolExecutor(self._io.fetch_threads, "fetch")
        decoders = ThreadPoolExecutor(
            self._io.loader_threads, "decode", initializer=torch.set_num_threads, initargs=(1,)
        )
        fetcher = _Fetcher(self._source, fetchers)
        plans: deque[_Plan] = deque()
        ready: deque[tuple[list[MicroBatch], list[Future[None]]]] = deque()
        planned = decoding = start
        try:
            for step in range(start, stop):
                while planned < min(stop, step + max(self._io.fetch_ahead_steps, self._io.prefetch_steps) + 1):
                    plan = _Plan(planned, *self._order.batch(planned, self._slots))
                    fetcher.need(planned, plan.groups.tolist())
                    plans.append(plan)
                    planned += 1
                while decoding < min(stop, step + self._io.prefetch_steps + 1):
                    ready.append(self._start(plans.popleft(), fetcher, decoders))
                    decoding += 1
                batch, filled = ready.popleft()
                for one in filled:
                    one.result()
                fetcher.forget_before(step)
                yield batch
        finally:
            decoders.shutdown(wait=True, cancel_futures=True)
            fetchers.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, plan: _Plan, fetcher: _Fetcher, pool: ThreadPoolExecutor
    ) -> tuple[list[MicroBatch], list[Future[None]]]:
        """The step's micro-batches, allocated, and the futures that fill them."""
        batch = [self._allocate(group) for group in self._groups]
        filled = []
        for i, (group, row) in enumerate(zip(plan.groups.tolist(), plan.rows.tolist())):
            into, slot = batch[i // self._size], i % self._size
            filled.append(pool.submit(self._fill, into, slot, plan.epoch, fetcher.future(group), row))
        return batch, filled

    def _allocate(self, group: int) -> MicroBatch:
        m, (h, w) = self._size, self._cfg.crop_size
        return MicroBatch(
            group,
            images=torch.full((m, 3, h, w), PAD, dtype=torch.uint8, pin_memory=self._pin),
            masks=torch.full((m, h, w), IGNORE, dtype=torch.uint8, pin_memory=self._pin),
            colors=torch.empty((m, 3, 4), pin_memory=self._pin),
            sample_ids=[""] * m,
            counts=[torch.empty(0)] * m if self._count else [],
        )

    def _fill(self, into: MicroBatch, slot: int, epoch: int, group: Future[Group], row: int) -> None:
        sample = group.result().sample(row)
        image, mask = self._decode(sample)
        view = augment.draw(self._cfg, self._order.seed, epoch, sample.sample_id, *mask.shape)
        augment.apply(view, image, mask, into.images[slot], into.masks[slot].numpy())
        into.colors[slot] = torch.from_numpy(view.color)
        into.sample_ids[slot] = sample.sample_id
        if self._count:
            into.counts[slot] = self._count(into.masks[slot : slot + 1])


Unit = tuple[int, tuple[int, ...]]  # (row group, rows in it): what is evaluated together
_AHEAD_PIXELS = 1 << 26  # decoded ahead of the model, about: at four bytes each, image and mask
_BATCH_PIXELS = 1 << 26  # in a batch, where it holds more than one picture


def eval_units(sizes: np.ndarray, batch_size: int, num_samples: int | None = None) -> list[Unit]:
    """The units of evaluation: every row once, or of `num_samples` rows, always the same.

    Units do not depend on the number of ranks, which take whole ones: so each picture meets the same neighbours in its
    forward pass, and the same arithmetic, on any number of ranks.
    """
    first = np.concatenate([[0], np.cumsum(sizes)])
    chosen = spread(int(first[-1]), num_samples)
    bounds = np.searchsorted(chosen, first)
    return [
        (group, tuple((chosen[i : min(i + batch_size, bounds[group + 1])] - first[group]).tolist()))
        for group in range(len(sizes))
        for i in range(bounds[group], bounds[group + 1], batch_size)
    ]


def spread(num_rows: int, num: int | None) -> np.ndarray:
    """int64 rows, ascending: all, or one drawn from each of `num` equal parts, so that no period of a video is met."""
    if num is None or num >= num_rows:
        return np.arange(num_rows)
    part = np.arange(num + 1, dtype=np.int64) * num_rows // num
    return part[:-1] + (key(0, np.arange(num)) % np.diff(part).astype(np.uint64)).astype(np.int64)


def eval_share(units: list[Unit], split: Split, rank: int, num_ranks: int) -> list[Unit]:
    """This rank's part of the units, contiguous; the parts hold about equally many pixels, and may be empty."""
    pixels, sizes = split.group_pixels(), split.group_sizes()
    cost = np.array([pixels[group] * len(rows) // sizes[group] for group, rows in units], np.int64)
    middle = 2 * np.cumsum(cost) - cost
    owner = middle * num_ranks // (2 * cost.sum())
    return [unit for unit, one in zip(units, owner.tolist()) if one == rank]


def eval_batches(
    source: Source, labels: Labels, image_size: int | tuple[int, int] | None, io: Io, units: list[Unit]
) -> Generator[EvalBatch]:
    """Every sample of the units once, in order; neighbours in a unit share a batch when their sizes agree.

    Close it to stop its threads.
    """
    decode = Decoder(labels)
    torch.get_num_threads()
    fetchers = ThreadPoolExecutor(io.fetch_threads, "fetch")
    decoders = ThreadPoolExecutor(io.loader_threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
    fetcher = _Fetcher(source, fetchers)
    depth = io.loader_threads + io.prefetch_steps
    first = np.concatenate([[0], np.cumsum(source.sizes)]).tolist()

    def planned() -> Iterator[_Piece]:
        for i, (number, rows) in enumerate(units):
            fetcher.need(i, [u[0] for u in units[i : i + depth]])
            fetcher.forget_before(i - depth)
            yield from _pieces(fetcher.future(number).result(), first[number], rows)

    def load(piece: _Piece) -> EvalBatch:
        size = augment.model_size(image_size, *piece.size)
        samples = [piece.group.sample(row) for row in piece.rows]
        pairs = [(augment.resize_image(image, size), torch.from_numpy(mask)) for image, mask in map(decode, samples)]
        images, masks = ([part[None] for part in parts] for parts in zip(*pairs))
        return EvalBatch(
            images[0] if len(pairs) == 1 else torch.cat(images),  # a large picture is not copied
            masks[0] if len(pairs) == 1 else torch.cat(masks),
            [sample.sample_id for sample in samples],
            [piece.first + row for row in piece.rows],
        )

    def cost(piece: _Piece) -> int:
        return max(1, piece.pixels * depth // _AHEAD_PIXELS)

    try:
        yield from ahead(decoders, load, planned(), depth, cost)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        fetchers.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Piece:
    """Rows of a group whose masks are of one (height, width), px; `first` is the group's first row in the split."""

    group: Group
    first: int
    rows: tuple[int, ...]
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        return len(self.rows) * self.size[0] * self.size[1]


def _pieces(group: Group, first: int, rows: tuple[int, ...]) -> Iterator[_Piece]:
    """The batches of a unit, in order."""
    for size, run in itertools.groupby(rows, group.size):
        alike = tuple(run)
        most = max(1, _BATCH_PIXELS // (size[0] * size[1]))
        for i in range(0, len(alike), most):
            yield _Piece(group, first, alike[i : i + most], size)
