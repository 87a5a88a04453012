"""Streams of samples: threads prefetch row groups and decode samples directly into the batch.

The training stream yields this rank's micro-batches, step by step. The evaluation stream yields every sample of a split
once. The step number is the only state.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from segdist import storage
from segdist.config import Data, Io
from segdist.data import augment
from segdist.data.codec import decode_image, decode_mask, size_of
from segdist.data.index import Split
from segdist.data.labels import Labels
from segdist.data.order import Order, key
from segdist.data.source import RowGroup, Sample, Source
from segdist.errors import DataError
from segdist.ops import IGNORE
from segdist.threads import map_ahead

PAD = 124  # padding value of images in 0..255: close to ImageNet's mean, so about zero after normalisation


@dataclass
class MicroBatch:
    """Consecutive slots of the global batch, the same for any number of ranks: the unit of BatchNorm and dropout."""

    number: int  # in the global batch
    images: torch.Tensor  # uint8 (m, 3, h, w)
    masks: torch.Tensor  # uint8 (m, h, w): 0..K-1 and 255
    colors: torch.Tensor  # float32 (m, 3, 4): see augment.View.color
    sample_ids: list[str] = field(default_factory=list)
    counts: list[torch.Tensor] = field(default_factory=list)  # `count` of TrainStream, for each mask

    @property
    def count(self) -> torch.Tensor:
        """Return `count` of TrainStream, summed over all masks."""
        return torch.stack(self.counts).sum(0)


@dataclass
class EvalBatch:
    """Whole images of one size, and their masks."""

    images: torch.Tensor  # uint8 (b, 3, h, w), at the model's input size
    masks: torch.Tensor  # uint8 (b, H, W), at the mask's own size
    sample_ids: list[str]
    rows: list[int]  # row numbers in the split


class Decoder:
    """Decodes stored samples to pixels and classes. This is the only place that applies the label contract."""

    def __init__(self, labels: Labels, uri: str) -> None:
        self._uri = storage.redacted(uri)  # of the dataset, for errors
        self._tables = {np.dtype(t): labels.table(t) for t in (np.uint8, np.uint16)}

    def __call__(self, sample: Sample) -> tuple[torch.Tensor, np.ndarray]:
        """Return the image (3, H, W) uint8 and its classes (H, W) uint8. Raises DataError, naming dataset and sample."""
        size = (sample.height, sample.width)
        try:
            if (image_size := size_of(sample.image)) != size:  # checked before decoding: may be a decompression bomb
                raise DataError(
                    f"the image is {image_size[0]}x{image_size[1]}, but its mask is {size[0]}x{size[1]} (height x width)"
                )
            image = decode_image(sample.image)
            raw = decode_mask(sample.mask, sample.mask_codec, *size)
        except DataError as error:
            raise DataError(
                f"{self._uri}: sample {sample.sample_id!r}: {error}. Copy or prepare the data again. "
                f"`segdist doctor {self._uri} --all` lists all damaged samples"
            ) from None
        return image, self._tables[raw.dtype].take(raw)  # takes 0.4 of the time of [raw]


class _Fetcher:
    """Fetches row groups in threads and keeps each one until the last step that needs it."""

    def __init__(self, source: Source, pool: ThreadPoolExecutor) -> None:
        self._source, self._pool = source, pool
        self._row_groups: dict[int, tuple[Future[RowGroup], int]] = {}  # and the last step that needs it

    def prefetch(self, step: int, row_groups: Iterable[int]) -> None:
        for number in row_groups:
            known = self._row_groups.get(number)
            self._row_groups[number] = (known[0] if known else self._pool.submit(self._source.fetch, number), step)

    def future(self, row_group: int) -> Future[RowGroup]:
        return self._row_groups[row_group][0]

    def drop_before(self, step: int) -> None:
        self._row_groups = {number: entry for number, entry in self._row_groups.items() if entry[1] >= step}


@dataclass(frozen=True)
class _StepPlan:
    step: int
    epoch: int
    row_groups: np.ndarray  # of each slot
    rows: np.ndarray  # of each slot, within its row group


class TrainStream:
    """This rank's micro-batches of every step.

    `micro_batches` are their numbers in the global batch, and `size` the samples in each. `count`, if given, is called with
    every mask (1, h, w) in the decoder threads; see `MicroBatch.count`.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        labels: Labels,
        cfg: Data,
        io: Io,
        micro_batches: range,
        size: int,
        pin: bool = False,
        count: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._source, self._order, self._cfg, self._io, self._pin = source, order, cfg, io, pin
        self._decode, self._count = Decoder(labels, source.uri), count
        self._micro_batches, self._size = micro_batches, size
        self._slots = np.arange(micro_batches.start * size, micro_batches.stop * size)

    def steps(self, start: int, stop: int) -> Generator[list[MicroBatch]]:
        """Yield the micro-batches of steps start..stop-1. Closing the generator stops its threads."""
        torch.get_num_threads()  # fixes this thread's count before the decoder threads set theirs
        fetchers = ThreadPoolExecutor(self._io.fetch_threads, "fetch")
        decoders = ThreadPoolExecutor(
            self._io.loader_threads, "decode", initializer=torch.set_num_threads, initargs=(1,)
        )
        fetcher = _Fetcher(self._source, fetchers)
        plans: deque[_StepPlan] = deque()
        ready: deque[tuple[list[MicroBatch], list[Future[None]]]] = deque()
        planned = decoding = start
        try:
            for step in range(start, stop):
                while planned < min(stop, step + max(self._io.fetch_ahead_steps, self._io.prefetch_steps) + 1):
                    plan = _StepPlan(planned, *self._order.batch(planned, self._slots))
                    fetcher.prefetch(planned, plan.row_groups.tolist())
                    plans.append(plan)
                    planned += 1
                while decoding < min(stop, step + self._io.prefetch_steps + 1):
                    ready.append(self._start(plans.popleft(), fetcher, decoders))
                    decoding += 1
                batch, filled = ready.popleft()
                for future in filled:
                    future.result()
                fetcher.drop_before(step)
                yield batch
        finally:
            decoders.shutdown(wait=True, cancel_futures=True)
            fetchers.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, plan: _StepPlan, fetcher: _Fetcher, pool: ThreadPoolExecutor
    ) -> tuple[list[MicroBatch], list[Future[None]]]:
        """Allocate the step's micro-batches. Returns them and the futures that fill them."""
        batch = [self._allocate(number) for number in self._micro_batches]
        filled = []
        for i, (row_group, row) in enumerate(zip(plan.row_groups.tolist(), plan.rows.tolist())):
            into, slot = batch[i // self._size], i % self._size
            filled.append(pool.submit(self._fill, into, slot, plan.epoch, fetcher.future(row_group), row))
        return batch, filled

    def _allocate(self, number: int) -> MicroBatch:
        m, (h, w) = self._size, self._cfg.crop_size
        return MicroBatch(
            number,
            images=torch.full((m, 3, h, w), PAD, dtype=torch.uint8, pin_memory=self._pin),
            masks=torch.full((m, h, w), IGNORE, dtype=torch.uint8, pin_memory=self._pin),
            colors=torch.empty((m, 3, 4), pin_memory=self._pin),
            sample_ids=[""] * m,
            counts=[torch.empty(0)] * m if self._count else [],
        )

    def _fill(self, into: MicroBatch, slot: int, epoch: int, row_group: Future[RowGroup], row: int) -> None:
        sample = row_group.result().sample(row)
        image, mask = self._decode(sample)
        view = augment.draw(self._cfg, self._order.seed, epoch, sample.sample_id, *mask.shape)
        augment.apply(view, image, mask, into.images[slot], into.masks[slot].numpy())
        into.colors[slot] = torch.from_numpy(view.color)
        into.sample_ids[slot] = sample.sample_id
        if self._count:
            into.counts[slot] = self._count(into.masks[slot : slot + 1])


EvalUnit = tuple[int, tuple[int, ...]]  # (row group, rows in it) that one rank evaluates together
_AHEAD_PIXELS = 1 << 26  # approximate number of pixels decoded ahead, at 4 bytes each (image and mask)
_BATCH_PIXELS = 1 << 26  # most pixels in a batch of more than one image


def eval_units(sizes: np.ndarray, batch_size: int, num_samples: int | None = None) -> list[EvalUnit]:
    """Return the units of evaluation: every row once, or a fixed choice of `num_samples` rows.

    Units do not depend on the number of ranks, and a rank takes whole units. So each image shares its forward pass with the
    same images, and has the same arithmetic, on any number of ranks.
    """
    first = np.concatenate([[0], np.cumsum(sizes)])
    chosen = stratified_rows(int(first[-1]), num_samples)
    bounds = np.searchsorted(chosen, first)
    return [
        (g, tuple((chosen[i : min(i + batch_size, bounds[g + 1])] - first[g]).tolist()))
        for g in range(len(sizes))  # row groups
        for i in range(bounds[g], bounds[g + 1], batch_size)
    ]


def stratified_rows(num_rows: int, num: int | None) -> np.ndarray:
    """Return int64 row numbers, ascending: all, or one random row from each of `num` equal parts.

    Random rows avoid aliasing with periodic content, such as the frames of a video.
    """
    if num is None or num >= num_rows:
        return np.arange(num_rows)
    part = np.arange(num + 1, dtype=np.int64) * num_rows // num
    return part[:-1] + (key(0, np.arange(num)) % np.diff(part).astype(np.uint64)).astype(np.int64)


def units_of_rank(units: list[EvalUnit], split: Split, rank: int, num_ranks: int) -> list[EvalUnit]:
    """Return this rank's contiguous share of the units. Shares have about equal numbers of pixels, and may be empty."""
    pixels, sizes = split.row_group_pixels(), split.row_group_sizes()
    cost = np.array([pixels[row_group] * len(rows) // sizes[row_group] for row_group, rows in units], np.int64)
    middle = 2 * np.cumsum(cost) - cost
    owners = middle * num_ranks // (2 * cost.sum())
    return [unit for unit, owner in zip(units, owners.tolist()) if owner == rank]


def eval_batches(
    source: Source, labels: Labels, image_size: int | tuple[int, int] | None, io: Io, units: list[EvalUnit]
) -> Generator[EvalBatch]:
    """Yield every sample of the units once, in order. Neighbours of equal mask size in a unit share a batch.

    Closing the generator stops its threads.
    """
    decode = Decoder(labels, source.uri)
    torch.get_num_threads()
    fetchers = ThreadPoolExecutor(io.fetch_threads, "fetch")
    decoders = ThreadPoolExecutor(io.loader_threads, "decode", initializer=torch.set_num_threads, initargs=(1,))
    fetcher = _Fetcher(source, fetchers)
    depth = io.loader_threads + io.prefetch_steps
    first = np.concatenate([[0], np.cumsum(source.sizes)]).tolist()

    def plans() -> Iterator[_EvalPlan]:
        for i, (number, rows) in enumerate(units):
            fetcher.prefetch(i, [row_group for row_group, _ in units[i : i + depth]])
            fetcher.drop_before(i - depth)
            yield from _eval_plans(fetcher.future(number).result(), first[number], rows)

    def load(plan: _EvalPlan) -> EvalBatch:
        size = augment.model_size(image_size, *plan.size)
        samples = [plan.row_group.sample(row) for row in plan.rows]
        pairs = [(augment.resize_image(image, size), torch.from_numpy(mask)) for image, mask in map(decode, samples)]
        images, masks = ([part[None] for part in parts] for parts in zip(*pairs))
        return EvalBatch(
            images[0] if len(pairs) == 1 else torch.cat(images),  # do not copy a single large image
            masks[0] if len(pairs) == 1 else torch.cat(masks),
            [sample.sample_id for sample in samples],
            [plan.first + row for row in plan.rows],
        )

    def cost(plan: _EvalPlan) -> int:
        return max(1, plan.pixels * depth // _AHEAD_PIXELS)

    try:
        yield from map_ahead(decoders, load, plans(), depth, cost)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        fetchers.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _EvalPlan:
    """The rows of one EvalBatch."""

    row_group: RowGroup
    first: int  # row number in the split of the row group's first row
    rows: tuple[int, ...]
    size: tuple[int, int]  # (height, width) of all its masks, px

    @property
    def pixels(self) -> int:
        return len(self.rows) * self.size[0] * self.size[1]


def _eval_plans(row_group: RowGroup, first: int, rows: tuple[int, ...]) -> Iterator[_EvalPlan]:
    """Yield the batches of a unit, in order."""
    for size, same_size in itertools.groupby(rows, row_group.size):
        members = tuple(same_size)
        batch_size = max(1, _BATCH_PIXELS // (size[0] * size[1]))
        for i in range(0, len(members), batch_size):
            yield _EvalPlan(row_group, first, members[i : i + batch_size], size)
