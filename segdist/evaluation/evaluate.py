"""Scores a model on a split: every sample once, at its mask's own size, by one exact table of pixel pairs.

Ranks take whole units of the split, about equally many pixels each, and meet only at the end: no collective stands inside
the loop. So the table is the same, to the integer, on any number of ranks, and so is every score.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from segdist.config import Io
from segdist.data.cache import cache_of
from segdist.data.index import Index
from segdist.data.source import Source
from segdist.data.stream import EvalBatch, eval_batches, eval_share, eval_units
from segdist.distributed import SharedError, World
from segdist.errors import DataError, UserError, is_out_of_memory
from segdist.evaluation.boundary import boundary_counts
from segdist.evaluation.confusion import class_counts, confusion_matrix
from segdist.evaluation.inference import PLAIN, InferenceSettings, segment, settle
from segdist.evaluation.scores import Scores, scores
from segdist.models.segmenter import Segmenter
from segdist.ops import IGNORE

ImageSize = int | tuple[int, int] | None


@dataclass(frozen=True)
class PerSample:
    """What each sample adds to the scores, in the order of the split."""

    sample_ids: list[str]
    counts: np.ndarray  # int64 (samples, 3, K): see metric.class_counts


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split; `table` is the exact int64 (256, 256) count of [mask, pred] pixels."""

    scores: Scores
    loss: float  # mean cross-entropy over valid pixels; NaN where there are none
    num_samples: int
    table: torch.Tensor
    per_sample: PerSample | None  # where it was asked for
    boundary: np.ndarray | None  # int64 (3, K), see metric.boundary_counts; where it was asked for


def evaluate(
    model: Segmenter | None,
    uri: str,
    index: Index,
    split: str,
    image_size: ImageSize,
    io: Io,
    batch_size: int,
    world: World,
    advance: Callable[[int], None] = lambda n: None,
    *,
    how: InferenceSettings = PLAIN,
    num_samples: int | None = None,
    per_sample: bool = False,
    boundary: bool = False,
    logits_of: Callable[[EvalBatch], torch.Tensor] | None = None,
    see: Callable[[EvalBatch, torch.Tensor], None] = lambda batch, pred: None,
) -> Evaluation:
    """The evaluation of `model` on a split; all ranks must call it and get the same. `advance` hears of done samples.

    `num_samples`: only so many, always the same. `logits_of` makes the logits (B, K, h, w) of a batch in the model's place,
    and `model` may be None then; for scores that are known beforehand. They are resized as by a model that does not align
    corners. `see` is shown each batch of this rank with its uint8 (B, H, W) predictions. Raises DataError when not every
    sample was seen once, SharedError when another rank failed, which says why.
    """
    source = Source(uri, index, split, cache_of(uri, io))
    units = eval_units(source.sizes, batch_size, num_samples)
    tally = _Tally(index.split(split).num_samples, index.labels.num_classes, world.device, per_sample, boundary)
    was_training = model is not None and model.training
    failure: Exception | None = None
    try:
        mine = eval_share(units, index.split(split), world.rank, world.num_ranks)
        if model is not None:
            model.eval()
        with contextlib.closing(eval_batches(source, index.labels, image_size, io, mine)) as batches:
            for batch in batches:
                masks = batch.masks.to(world.device)
                size = (masks.shape[1], masks.shape[2])
                if logits_of is not None:
                    pred, loss = settle(logits_of(batch).to(world.device), size, False, masks)
                else:
                    assert model is not None
                    pred, loss = segment(model, batch.images, size, how, batch_size, masks)
                tally.add(batch, masks, pred, loss)
                see(batch, pred)
                advance(len(masks))
    except Exception as error:  # whatever it is, the other ranks wait for this one's table
        failure = out_of_memory(error) or error
    finally:
        if model is not None:
            model.train(was_training)
    return tally.gather(world, sum(len(rows) for _, rows in units), failure)


def out_of_memory(error: Exception) -> UserError | None:
    """The remedy, where an evaluation needed more memory than there is."""
    if not is_out_of_memory(error):
        return None
    told = UserError(
        "the evaluation ran out of memory; lower eval.batch_size (--batch-size), or let it see large images in windows with "
        "eval.mode=sliding (--mode sliding)"
    )
    told.__cause__ = error
    return told


class _Tally:
    """What this rank has counted, sample by sample; `gather` adds up all ranks."""

    def __init__(self, num_rows: int, num_classes: int, device: torch.device, per_sample: bool, boundary: bool) -> None:
        self._num_classes = num_classes
        self._table = torch.zeros(256, 256, dtype=torch.int64, device=device)
        self._losses = torch.zeros(num_rows, dtype=torch.float64, device=device)  # a batch's, at its first row
        self._seen = torch.zeros(num_rows, dtype=torch.int64)  # how often
        self._counts = torch.zeros(num_rows, 3, num_classes, dtype=torch.int64) if per_sample else None
        self._boundary = torch.zeros(3, num_classes, dtype=torch.int64) if boundary else None
        self._ids: dict[int, str] = {}  # by row

    def add(self, batch: EvalBatch, masks: torch.Tensor, pred: torch.Tensor, loss: torch.Tensor) -> None:
        """Counts uint8 (B, H, W) predictions and the batch's summed loss; only counting by sample waits for a device."""
        self._losses[batch.rows[0]] += loss
        self._seen[batch.rows] += 1
        if self._boundary is not None:
            for one, mask in zip(pred, masks):
                self._boundary += torch.from_numpy(boundary_counts(one, mask, self._num_classes))
        if self._counts is None:
            self._table += confusion_matrix(pred, masks)
            return
        for row, sample_id, one, mask in zip(batch.rows, batch.sample_ids, pred, masks):
            table = confusion_matrix(one, mask)
            self._table += table
            self._counts[row] = torch.from_numpy(class_counts(table, self._num_classes))
            self._ids[row] = sample_id

    def gather(self, world: World, num_samples: int, failure: Exception | None) -> Evaluation:
        """The sum over ranks, on every rank. Raises `failure` if there is one, and SharedError on the other ranks."""
        table = torch.zeros_like(self._table, device="cpu") if failure else self._table.cpu()
        whole = torch.cat([torch.tensor([failure is not None]).long(), self._seen, table.flatten()])
        failed, seen, table = world.late_sum(whole).split([1, len(self._seen), table.numel()])
        if failure is not None:
            raise failure
        if failed:
            raise SharedError("the evaluation failed on another rank, which says why")
        if int(seen.sum()) != num_samples or int(seen.max()) > 1:
            raise DataError(f"{num_samples} samples were to be seen once each, but {int(seen.sum())} were seen")
        losses = world.sum(self._losses.cpu()).numpy()
        table = table.view(256, 256)
        valid = int(table[:IGNORE].sum())
        loss = float(np.cumsum(losses)[-1]) / valid if valid else math.nan  # in the order of the split, whoever saw it
        found = scores(table, self._num_classes)
        boundary = None if self._boundary is None else world.sum(self._boundary).numpy()
        return Evaluation(found, loss, num_samples, table, self._per_sample(world, seen), boundary)

    def _per_sample(self, world: World, seen: torch.Tensor) -> PerSample | None:
        if self._counts is None:
            return None
        counts = world.sum(self._counts)
        ids = {row: sample_id for part in world.gather(self._ids) for row, sample_id in part.items()}
        return PerSample([ids[row] for row in sorted(ids)], counts[seen > 0].numpy())
