"""Scores a model on a split: every sample once, at its mask's own size, by one exact table of pixel pairs.

Ranks take whole units of the split, about equally many pixels each, and meet only at the end: no collective stands inside
the loop. So the table is the same, to the integer, on any number of ranks, and so is every score.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from segdist import checkpoint, config, log
from segdist.config import Config, Io
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.data.labels import Labels
from segdist.data.source import Source
from segdist.data.stream import EvalBatch, eval_batches, eval_share, eval_units
from segdist.errors import DataError, LabelError, UserError
from segdist.inference import PLAIN, Recipe, look, recipe, settle
from segdist.metric import Scores, bootstrap_miou, boundary_counts, class_iou, pair_table, picture_counts, scores
from segdist.models.segmenter import Segmenter
from segdist.ops import IGNORE
from segdist.world import SharedError, World, joined

ImageSize = int | tuple[int, int] | None
_MEANS = (
    "miou", "mean_accuracy", "overall_accuracy", "miou_all", "mean_dice", "mean_precision", "freq_weighted_iou", "kappa",
)  # fmt: skip
_PER_CLASS = ("iou", "accuracy", "dice", "precision")


@dataclass(frozen=True)
class Pictures:
    """What each sample adds to the scores, in the order of the split."""

    sample_ids: list[str]
    counts: np.ndarray  # int64 (samples, 3, K): see metric.picture_counts


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split; `table` is the exact int64 (256, 256) count of [mask, pred] pixels."""

    scores: Scores
    loss: float  # mean cross-entropy over valid pixels; NaN where there are none
    num_samples: int
    table: torch.Tensor
    pictures: Pictures | None  # where they were asked for
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
    how: Recipe = PLAIN,
    num_samples: int | None = None,
    pictures: bool = False,
    boundary: bool = False,
    logits_of: Callable[[EvalBatch], torch.Tensor] | None = None,
) -> Evaluation:
    """The evaluation of `model` on a split; all ranks must call it and get the same. `advance` hears of done samples.

    `num_samples`: only so many, always the same. `logits_of` makes the logits (B, K, h, w) of a batch in the model's place,
    and `model` may be None then; for scores that are known beforehand. They are resized as by a model that does not align
    corners. Raises DataError when not every sample was seen once, SharedError when another rank failed, which says why.
    """
    source = Source(uri, index, split)
    units = eval_units(source.sizes, batch_size, num_samples)
    tally = _Tally(index.split(split).num_samples, index.labels.num_classes, world.device, pictures, boundary)
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
                    pred, loss = look(model, batch.images, size, how, batch_size, masks)
                tally.add(batch, masks, pred, loss)
                advance(len(masks))
    except Exception as error:  # whatever it is, the other ranks wait for this one's table
        failure = out_of_memory(error) or error
    finally:
        if model is not None:
            model.train(was_training)
    return tally.meet(world, sum(len(rows) for _, rows in units), failure)


def out_of_memory(error: Exception) -> UserError | None:
    """The remedy, where an evaluation needed more memory than there is."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return None
    told = UserError(
        "the evaluation ran out of memory; lower eval.batch_size (--batch-size), or let it see large images in windows with "
        "eval.mode=sliding (--mode sliding)"
    )
    told.__cause__ = error
    return told


class _Tally:
    """What this rank has counted, sample by sample; `meet` adds up all ranks."""

    def __init__(self, num_rows: int, num_classes: int, device: torch.device, pictures: bool, boundary: bool) -> None:
        self._num_classes = num_classes
        self._table = torch.zeros(256, 256, dtype=torch.int64, device=device)
        self._losses = torch.zeros(num_rows, dtype=torch.float64, device=device)  # a batch's, at its first row
        self._seen = torch.zeros(num_rows, dtype=torch.int64)  # how often
        self._counts = torch.zeros(num_rows, 3, num_classes, dtype=torch.int64) if pictures else None
        self._boundary = torch.zeros(3, num_classes, dtype=torch.int64) if boundary else None
        self._ids: dict[int, str] = {}  # by row

    def add(self, batch: EvalBatch, masks: torch.Tensor, pred: torch.Tensor, loss: torch.Tensor) -> None:
        """Counts uint8 (B, H, W) predictions and the batch's summed loss; only counting by picture waits for a device."""
        self._losses[batch.rows[0]] += loss
        self._seen[batch.rows] += 1
        if self._boundary is not None:
            for one, mask in zip(pred, masks):
                self._boundary += torch.from_numpy(boundary_counts(one, mask, self._num_classes))
        if self._counts is None:
            self._table += pair_table(pred, masks)
            return
        for row, sample_id, one, mask in zip(batch.rows, batch.sample_ids, pred, masks):
            table = pair_table(one, mask)
            self._table += table
            self._counts[row] = torch.from_numpy(picture_counts(table, self._num_classes))
            self._ids[row] = sample_id

    def meet(self, world: World, num_samples: int, failure: Exception | None) -> Evaluation:
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
        return Evaluation(found, loss, num_samples, table, self._pictures(world, seen), boundary)

    def _pictures(self, world: World, seen: torch.Tensor) -> Pictures | None:
        if self._counts is None:
            return None
        counts = world.sum(self._counts)
        ids = {row: sample_id for part in world.gather(self._ids) for row, sample_id in part.items()}
        return Pictures([ids[row] for row in sorted(ids)], counts[seen > 0].numpy())


def protocol(image_size: ImageSize, how: Recipe = PLAIN, part: str = "") -> str:
    """How the number was made, in words: two numbers with different protocols do not compare.

    `part` says which samples, where not all.
    """
    if image_size is None:
        size = "images at their own size"
    elif isinstance(image_size, int):
        size = f"images resized to a shorter side of {image_size} px"
    else:
        size = f"images resized to {image_size[0]}x{image_size[1]} px"
    return f"{size} / {how.words()} / fp32 / scored at the mask's own size{part and f' / {part}'}"


def report(result: Evaluation, names: list[str]) -> dict[str, Any]:
    """The evaluation as JSON-able data, per-class values by name."""
    s = result.scores
    tree: dict[str, Any] = {key: getattr(s, key) for key in _MEANS} | {"loss": result.loss}
    tree |= {key: dict(zip(names, getattr(s, key))) for key in _PER_CLASS}
    tree |= {"num_samples": result.num_samples, "confusion": s.confusion}
    if result.boundary is not None:
        iou = class_iou(result.boundary)
        tree["boundary_iou"] = dict(zip(names, iou.tolist()))
        tree["mean_boundary_iou"] = float(np.nanmean(iou)) if not np.isnan(iou).all() else math.nan
    if result.pictures is not None:
        counts = [_present(one) for one in result.pictures.counts]
        tree["pictures"] = {"sample_ids": result.pictures.sample_ids, "counts": counts}
        tree["miou_interval"] = asdict(bootstrap_miou(result.pictures.counts))
    return tree


def _present(counts: np.ndarray) -> dict[str, list[int]]:
    """{class number: [right, true, predicted] pixels} of int64 (3, K), for classes that have any."""
    present = np.flatnonzero(counts[1] + counts[2]).tolist()
    return {str(k): counts[:, k].tolist() for k in present}


def evaluate_checkpoint(
    uri: str,
    data: str | None,
    split: str,
    batch_size: int | None,
    device: str,
    changes: dict[str, Any] | None = None,
    pictures: bool = False,
    boundary: bool = False,
) -> dict[str, Any]:
    """What `segdist evaluate` prints: the report of a run's best checkpoint, or of one checkpoint, on a split.

    `changes` (and `batch_size`, when given) replace fields of the run's own `eval` section. Under torchrun, all its ranks
    take part and get the same. Raises LabelError when the data set's classes are not the checkpoint's.
    """
    with joined(device) as world:
        wanted = {**(changes or {}), **({"batch_size": batch_size} if batch_size else {})}
        chosen, cfg, address, index = world.from_first(lambda: look_up(uri, data, split, wanted))
        trained = checkpoint.load_resolved(chosen, world.device)
        how, size = recipe(cfg.eval, cfg.data.crop_size), cfg.data.image_size
        progress, advance = log.bar(f"evaluating {split}", index.split(split).num_samples)
        with progress if world.is_first else contextlib.nullcontext():
            result = evaluate(
                trained.model, address, index, split, size, cfg.io, cfg.eval.batch_size, world,
                lambda n: advance(n * world.num_ranks), how=how, pictures=pictures, boundary=boundary,
            )  # fmt: skip
    about = {
        "protocol": protocol(size, how),
        "checkpoint": trained.uri,
        "checkpoint_digest": checkpoint.digest(trained.uri),
        "data": address,
        "split": split,
        "data_digest": index.digest(split),
    }
    return report(result, trained.labels.names) | about


def look_up(uri: str, data: str | None, split: str, changes: dict[str, Any]) -> tuple[str, Config, str, Index]:
    """(checkpoint, config, address of the data, its index) of an evaluation that is asked for. Raises UserError."""
    chosen = checkpoint.resolve(uri)
    state = checkpoint.load_state(chosen)
    cfg = with_changes(checkpoint.config_of(chosen, state), changes)
    address = data or cfg.data.uri
    index = indices.load(address)
    index.split(split)
    check_classes(chosen, Labels.from_json(state["labels"]).names, address, index.labels.names)
    return chosen, cfg, address, index


def with_changes(cfg: Config, changes: dict[str, Any]) -> Config:
    """A run's config with other values in its `eval` section. Raises ConfigError when they are no valid ones."""
    tree = config.to_tree(cfg)
    own = {**tree["eval"], "window_size": None} if changes.get("mode") == "whole" else tree["eval"]
    return config.from_tree({**tree, "eval": {**own, **changes}}, "the options given")


def validate(cfg: Config, model: Segmenter, index: Index, world: World) -> dict[str, Any]:
    """The report of a model in training on its validation split, without the confusion matrix. All ranks must call it."""
    how, size, split = recipe(cfg.eval, cfg.data.crop_size), cfg.data.image_size, cfg.data.val_split
    result = evaluate(
        model, cfg.data.uri, index, split, size, cfg.io, cfg.eval.batch_size, world,
        how=how, num_samples=cfg.eval.num_samples,
    )  # fmt: skip
    scored = report(result, index.labels.names) | {"protocol": validation_protocol(cfg, index)}
    del scored["confusion"]
    return scored


def validation_protocol(cfg: Config, index: Index) -> str:
    """The protocol of a run's own evaluations."""
    num, wanted = index.split(cfg.data.val_split).num_samples, cfg.eval.num_samples
    part = f"{wanted} of {num} samples" if wanted is not None and wanted < num else ""
    return protocol(cfg.data.image_size, recipe(cfg.eval, cfg.data.crop_size), part)


def scored_on(cfg: Config, index: Index) -> str:
    """What two scores of a run must share to compete for its best: the split and, unless it is the plain one, the protocol."""
    digest, protocol_now = index.digest(cfg.data.val_split), validation_protocol(cfg, index)
    return digest if protocol_now == protocol(cfg.data.image_size) else f"{digest} / {protocol_now}"


def check_classes(checkpoint: str, ours: list[str], data: str, theirs: list[str]) -> None:
    """Raises LabelError, with the first difference, when a model and a data set do not speak of the same classes."""
    if ours == theirs:
        return
    pairs = zip([*ours, *[None] * len(theirs)], [*theirs, *[None] * len(ours)])
    i, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise LabelError(
        f"{checkpoint} knows {len(ours)} classes and {data} has {len(theirs)}; class {i} is {a!r} there and {b!r} here. "
        "Prepare the data with the same --names, or train on it first"
    )
