"""Evaluations as data to keep: every score by name, with the protocol, the digests and the rows that say how it was made.

Two scores compare when all of these are the same; `segdist compare` and the choice of a run's best checkpoint hold to that.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from segdist import config, console, storage
from segdist.config import Config
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.data.labels import Labels
from segdist.distributed import World, joined
from segdist.errors import ConfigError, LabelError
from segdist.evaluation.bootstrap import bootstrap_miou
from segdist.evaluation.evaluate import Evaluation, ImageSize, evaluate
from segdist.evaluation.figures import png
from segdist.evaluation.inference import PLAIN, InferenceSettings, inference_settings
from segdist.evaluation.previews import Previews, grid
from segdist.evaluation.scores import class_iou
from segdist.models.segmenter import Segmenter
from segdist.runs import checkpoints
from segdist.runs.restore import config_of, load_resolved

_MEANS = (
    "miou", "mean_accuracy", "overall_accuracy", "miou_all", "mean_dice", "mean_precision", "freq_weighted_iou", "kappa",
)  # fmt: skip
_PER_CLASS = ("iou", "accuracy", "dice", "precision")
_OPTIONS = {
    "batch_size": "--batch-size", "mode": "--mode", "window_size": "--window", "window_overlap": "--overlap",
    "scales": "--scales", "flip": "--flip",
}  # fmt: skip


def evaluate_checkpoint(
    uri: str,
    data: str | None,
    split: str,
    batch_size: int | None,
    device: str,
    changes: dict[str, Any] | None = None,
    per_sample: bool = False,
    boundary: bool = False,
    raw: bool = False,
    previews: str | None = None,
    num_previews: int = 4,
    preview_ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What `segdist evaluate` prints: the report of a run's best checkpoint, or of one checkpoint, on a split.

    `changes` (and `batch_size`, when given) replace fields of the run's own `eval` section. Under torchrun, all its ranks
    take part and get the same. `raw`: see checkpoint.load_model. `previews`: where to draw `num_previews` samples, or those of
    `preview_ids`, as a PNG; ids that are not in the split are warned of. Raises LabelError when the data set's classes are not
    the checkpoint's.
    """
    with joined(device) as world:
        wanted = {**(changes or {}), **({"batch_size": batch_size} if batch_size else {})}
        chosen, cfg, address, index = world.from_first(lambda: look_up(uri, data, split, wanted))
        trained = load_resolved(chosen, world.device, raw)
        how, size = inference_settings(cfg.eval, cfg.data.crop_size), cfg.data.image_size
        shown = Previews(index.split(split).num_samples, num_previews if previews else 0, None, preview_ids)
        progress, advance = console.bar(f"evaluating {split}", index.split(split).num_samples)
        with progress if world.is_first else contextlib.nullcontext():
            result = evaluate(
                trained.model, address, index, split, size, cfg.io, cfg.eval.batch_size, world,
                lambda n: advance(n * world.num_ranks), how=how, per_sample=per_sample, boundary=boundary, see=shown.see,
            )  # fmt: skip
        drawn = shown.gather(world)
    about = {
        "protocol": protocol(size, how),
        "checkpoint": trained.uri,
        "checkpoint_digest": checkpoints.digest(trained.uri),
        "weights": trained.weights,
        "data": address,
        "split": split,
        "data_digest": index.digest(split),
    }
    if previews and drawn and world.is_first:
        title = f"{index.name}, {split}: mIoU {result.scores.miou:.4f}"
        storage.write(previews, png(grid(drawn, trained.labels, title)))
        console.say(f"written: {previews}")
    return report(result, trained.labels.names) | about


def look_up(uri: str, data: str | None, split: str, changes: dict[str, Any]) -> tuple[str, Config, str, Index]:
    """(checkpoint, config, address of the data, its index) of an evaluation that is asked for. Raises UserError."""
    chosen = checkpoints.resolve(uri)
    state = checkpoints.load_state(chosen)
    cfg = with_changes(config_of(chosen, state), changes)
    address = data or cfg.data.uri
    index = indices.load(address)
    index.split(split)
    check_classes(chosen, Labels.from_json(state["labels"]).names, address, index.labels.names)
    return chosen, cfg, address, index


def with_changes(cfg: Config, changes: dict[str, Any]) -> Config:
    """A run's config with other values in its `eval` section. Raises ConfigError, in terms of options, when one is invalid."""
    tree = config.to_tree(cfg)
    own = {**tree["eval"], "window_size": None} if changes.get("mode") == "whole" else tree["eval"]
    try:
        return config.from_tree({**tree, "eval": {**own, **changes}}, "the options given")
    except ConfigError as error:
        text = str(error).replace("eval.mode=sliding (--mode sliding)", "--mode sliding")
        for field in _OPTIONS.keys() & changes.keys():
            text = re.sub(rf"`?\beval\.{field}\b(\.\d+)?`?", _OPTIONS[field], text)
        raise ConfigError(text) from None


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


def validate(cfg: Config, model: Segmenter, index: Index, world: World, shown: Previews) -> dict[str, Any]:
    """The report of a model in training on its validation split. All ranks must call it.

    `shown` sees its batches.
    """
    how, size, split = inference_settings(cfg.eval, cfg.data.crop_size), cfg.data.image_size, cfg.data.val_split
    result = evaluate(
        model, cfg.data.uri, index, split, size, cfg.io, cfg.eval.batch_size, world,
        how=how, num_samples=cfg.eval.num_samples, see=shown.see,
    )  # fmt: skip
    return report(result, index.labels.names) | {"protocol": validation_protocol(cfg, index)}


def validation_protocol(cfg: Config, index: Index) -> str:
    """The protocol of a run's own evaluations."""
    num, wanted = index.split(cfg.data.val_split).num_samples, cfg.eval.num_samples
    part = f"{wanted} of {num} samples" if wanted is not None and wanted < num else ""
    return protocol(cfg.data.image_size, inference_settings(cfg.eval, cfg.data.crop_size), part)


def scored_on(cfg: Config, index: Index) -> str:
    """What two scores of a run must share to compete for its best: the split and, unless it is the plain one, the protocol."""
    digest, protocol_now = index.digest(cfg.data.val_split), validation_protocol(cfg, index)
    return digest if protocol_now == protocol(cfg.data.image_size) else f"{digest} / {protocol_now}"


def protocol(image_size: ImageSize, how: InferenceSettings = PLAIN, part: str = "") -> str:
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
    if result.per_sample is not None:
        counts = [_present(one) for one in result.per_sample.counts]
        tree["pictures"] = {"sample_ids": result.per_sample.sample_ids, "counts": counts}
        tree["miou_interval"] = asdict(bootstrap_miou(result.per_sample.counts))
    return tree


def _present(counts: np.ndarray) -> dict[str, list[int]]:
    """{class number: [right, true, predicted] pixels} of int64 (3, K), for classes that have any."""
    present = np.flatnonzero(counts[1] + counts[2]).tolist()
    return {str(k): counts[:, k].tolist() for k in present}
