"""Scores a model on a split: every sample once, at its mask's own size, by one exact table of pixel pairs.

Ranks take whole units of the split and meet in one all-reduce at the end, so the table is the same, to the integer, on
any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from segdist import log
from segdist.checkpoint import load_trained
from segdist.config import Io
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.data.source import Source
from segdist.data.stream import eval_batches, eval_units
from segdist.errors import DataError, LabelError
from segdist.metric import Scores, pair_table, scores
from segdist.models.segmenter import Segmenter, infer
from segdist.ops import IGNORE
from segdist.ops.resize import cross_entropy_sum, predict
from segdist.world import World, choose_device

ImageSize = int | tuple[int, int] | None


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split; `table` is the exact int64 (256, 256) count of [mask, pred] pixels."""

    scores: Scores
    loss: float  # mean cross-entropy over valid pixels
    num_samples: int
    table: torch.Tensor


def evaluate(
    model: Segmenter,
    uri: str,
    index: Index,
    split: str,
    image_size: ImageSize,
    io: Io,
    batch_size: int,
    world: World,
    advance: Callable[[int], None] = lambda n: None,
) -> Evaluation:
    """The evaluation of `model` on a split; all ranks must call it and get the same. `advance` hears of done samples.

    Raises DataError when not every sample of the split was seen once.
    """
    source = Source(uri, index, split)
    units = eval_units(source.sizes, batch_size)
    mine = [units[i] for i in world.share(len(units))]
    table = torch.zeros(256, 256, dtype=torch.int64, device=world.device)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss, samples
    was_training = model.training
    model.eval()
    try:
        for batch in eval_batches(source, index.labels, image_size, io, mine):
            images, masks = batch.images.to(world.device), batch.masks.to(world.device)
            logits = infer(model, images)
            table += pair_table(predict(logits, (masks.shape[1], masks.shape[2]), model.traits.align_corners), masks)
            sums += torch.stack(
                [cross_entropy_sum(logits, masks, model.traits.align_corners), sums.new_tensor(len(masks))]
            )
            advance(len(masks))
    finally:
        model.train(was_training)
    world.sum(table)
    world.sum(sums)
    table = table.cpu()
    loss, seen = sums.tolist()
    if int(seen) != index.split(split).num_samples:
        raise DataError(f"split {split!r} has {index.split(split).num_samples} samples, but {int(seen)} were seen")
    valid = int(table[:IGNORE].sum())
    return Evaluation(scores(table, index.labels.num_classes), loss / max(valid, 1), int(seen), table)


def protocol(image_size: ImageSize) -> str:
    """How the number was made, in words: two numbers with different protocols do not compare."""
    if image_size is None:
        size = "images at their own size"
    elif isinstance(image_size, int):
        size = f"images resized to a shorter side of {image_size} px"
    else:
        size = f"images resized to {image_size[0]}x{image_size[1]} px"
    return f"{size} / whole / single-scale / fp32 / scored at the mask's own size"


def report(result: Evaluation, names: list[str]) -> dict[str, Any]:
    """The evaluation as JSON-able data, per-class values by name."""
    s = result.scores
    return {
        "miou": s.miou,
        "mean_accuracy": s.mean_accuracy,
        "overall_accuracy": s.overall_accuracy,
        "loss": result.loss,
        "iou": dict(zip(names, s.iou)),
        "accuracy": dict(zip(names, s.accuracy)),
        "num_samples": result.num_samples,
        "confusion": s.confusion,
    }


def evaluate_checkpoint(uri: str, data: str | None, split: str, batch_size: int, device: str) -> dict[str, Any]:
    """What `segdist evaluate` prints: the report of a run's best checkpoint, or of one checkpoint, on a split.

    Raises LabelError when the data set's classes are not the checkpoint's.
    """
    trained = load_trained(uri, choose_device(device))
    address = data or trained.cfg.data.uri
    index = indices.load(address)
    check_classes(trained.uri, trained.labels.names, address, index.labels.names)
    world = World(0, 1, choose_device(device))
    size = trained.cfg.data.image_size
    progress, advance = log.bar(f"evaluating {split}", index.split(split).num_samples)
    with progress:
        result = evaluate(trained.model, address, index, split, size, trained.cfg.io, batch_size, world, advance)
    about = {"protocol": protocol(size), "checkpoint": trained.uri, "data": address, "split": split}
    return report(result, trained.labels.names) | about


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
