"""Evaluate a model on a split: every sample once, at its mask's own size, in one exact confusion matrix.

Each rank takes whole units of the split, about the same number of pixels per rank. The loop contains no collective; ranks add
their counts once at the end. The confusion matrix, and so every score, is therefore identical on any number of ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from segdist.config import Io
from segdist.data.cache import open_cache
from segdist.data.index import Index
from segdist.data.source import Source
from segdist.data.stream import EvalBatch, eval_batches, eval_units, units_of_rank
from segdist.distributed import World
from segdist.errors import DataError, SharedError, UserError, is_out_of_memory
from segdist.evaluation.boundary import boundary_counts
from segdist.evaluation.confusion import class_counts, confusion_matrix
from segdist.evaluation.inference import PLAIN, InferenceSettings, classes_and_loss, segment
from segdist.evaluation.scores import Scores, scores
from segdist.models.segmenter import Segmenter
from segdist.ops import IGNORE

ImageSize = int | tuple[int, int] | None


@dataclass(frozen=True)
class PerSample:
    """The counts of each sample, in the order of the split."""

    sample_ids: list[str]
    counts: np.ndarray  # int64 (samples, 3, K), see confusion.class_counts


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a split."""

    scores: Scores
    loss: float  # mean cross-entropy over valid pixels; NaN if there are none
    num_samples: int
    table: torch.Tensor  # confusion matrix, int64 (256, 256) pixels of [mask, pred]
    per_sample: PerSample | None  # None unless requested
    boundary: np.ndarray | None  # int64 (3, K), see boundary.boundary_counts; None unless requested


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
    settings: InferenceSettings = PLAIN,
    num_samples: int | None = None,
    per_sample: bool = False,
    boundary: bool = False,
    logits_of: Callable[[EvalBatch], torch.Tensor] | None = None,
    on_batch: Callable[[EvalBatch, torch.Tensor], None] = lambda batch, pred: None,
) -> Evaluation:
    """Evaluate `model` on a split. All ranks must call it, and all get the same result.

    `advance` is called with the number of samples done since the last call. `num_samples` limits the evaluation to a fixed
    subset of that size. `logits_of`, for tests with known scores, replaces the model: it returns logits (B, K, h, w) of a
    batch, which are resized with align_corners=False; `model` may then be None. `on_batch` receives every batch of this rank
    with its uint8 (B, H, W) predictions. Raises DataError if some sample was not seen exactly once, and SharedError if another
    rank failed; that rank raises the cause.
    """
    source = Source(uri, index, split, open_cache(uri, io))
    units = eval_units(source.sizes, batch_size, num_samples)
    tally = _Tally(index.split(split).num_samples, index.labels.num_classes, world.device, per_sample, boundary)
    was_training = model is not None and model.training
    failure: Exception | None = None
    try:
        mine = units_of_rank(units, index.split(split), world.rank, world.num_ranks)
        if model is not None:
            model.eval()
        with contextlib.closing(eval_batches(source, index.labels, image_size, io, mine)) as batches:
            for batch in batches:
                masks = batch.masks.to(world.device)
                size = (masks.shape[1], masks.shape[2])
                if logits_of is not None:
                    pred, loss = classes_and_loss(logits_of(batch).to(world.device), size, False, masks)
                else:
                    assert model is not None
                    pred, loss = segment(model, batch.images, size, settings, batch_size, masks)
                tally.add(batch, masks, pred, loss)
                on_batch(batch, pred)
                advance(len(masks))
    except Exception as error:  # any error: the other ranks wait for this rank's counts
        failure = out_of_memory(error) or error
    finally:
        if model is not None:
            model.train(was_training)
    return tally.gather(world, sum(len(rows) for _, rows in units), failure)


def out_of_memory(error: Exception) -> UserError | None:
    """Return a UserError with a remedy if `error` is an out-of-memory error, else None."""
    if not is_out_of_memory(error):
        return None
    explained = UserError(
        "the evaluation ran out of memory. Lower eval.batch_size (--batch-size), or process large images in windows with "
        "eval.mode=sliding (--mode sliding)"
    )
    explained.__cause__ = error
    return explained


class _Tally:
    """The counts of this rank; `gather` adds up all ranks."""

    def __init__(self, num_rows: int, num_classes: int, device: torch.device, per_sample: bool, boundary: bool) -> None:
        self._num_classes = num_classes
        self._table = torch.zeros(256, 256, dtype=torch.int64, device=device)
        self._losses = torch.zeros(num_rows, dtype=torch.float64, device=device)  # of each batch, at its first row
        self._seen = torch.zeros(num_rows, dtype=torch.int64)  # how often each row was evaluated
        self._counts = torch.zeros(num_rows, 3, num_classes, dtype=torch.int64) if per_sample else None
        self._boundary = torch.zeros(3, num_classes, dtype=torch.int64) if boundary else None
        self._ids: dict[int, str] = {}  # by row

    def add(self, batch: EvalBatch, masks: torch.Tensor, pred: torch.Tensor, loss: torch.Tensor) -> None:
        """Count uint8 (B, H, W) predictions and the batch's summed loss. Only per-sample counts wait for the device."""
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
        """Return the result summed over all ranks. Raises `failure` if given, and SharedError on the other ranks."""
        table = torch.zeros_like(self._table, device="cpu") if failure else self._table.cpu()
        whole = torch.cat([torch.tensor([failure is not None]).long(), self._seen, table.flatten()])
        failed, seen, table = world.sum_long_timeout(whole).split([1, len(self._seen), table.numel()])
        if failure is not None:
            raise failure
        if failed:
            raise SharedError("the evaluation failed on another rank. See that rank's error")
        if int(seen.sum()) != num_samples or int(seen.max()) > 1:
            raise DataError(
                f"expected to evaluate {num_samples} samples once each, but evaluated {int(seen.sum())}. Please report this"
            )
        losses = world.sum(self._losses.cpu()).numpy()
        table = table.view(256, 256)
        valid = int(table[:IGNORE].sum())
        loss = float(np.cumsum(losses)[-1]) / valid if valid else math.nan  # summed in the order of the split
        found = scores(table, self._num_classes)
        boundary = None if self._boundary is None else world.sum(self._boundary).numpy()
        return Evaluation(found, loss, num_samples, table, self._per_sample(world, seen), boundary)

    def _per_sample(self, world: World, seen: torch.Tensor) -> PerSample | None:
        if self._counts is None:
            return None
        counts = world.sum(self._counts)
        ids = {row: sample_id for part in world.gather(self._ids) for row, sample_id in part.items()}
        return PerSample([ids[row] for row in sorted(ids)], counts[seen > 0].numpy())
