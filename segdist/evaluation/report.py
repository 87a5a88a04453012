"""Evaluation reports: every score by name, with the protocol and the digests that say how it was made.

Two scores are comparable only if protocol and digests are equal. `segdist compare` and the choice of a run's best checkpoint
check this.
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
    """Evaluate a run's best checkpoint, or one checkpoint, on a split, and return the report.

    `data`: URI of the dataset; default is the run's own. `changes` (and `batch_size`, if given) override fields of the run's
    `eval` section. Under torchrun, all ranks take part and return the same report. `raw`: use the raw weights instead of the
    EMA weights. `previews`: path or URI of a PNG with `num_previews` samples, or with the samples `preview_ids`; IDs that the
    split lacks give a warning. Raises LabelError if the dataset's classes differ from the checkpoint's.
    """
    with joined(device) as world:
        overrides = {**(changes or {}), **({"batch_size": batch_size} if batch_size else {})}
        checkpoint, cfg, data_uri, index = world.from_first(lambda: _resolve(uri, data, split, overrides))
        trained = load_resolved(checkpoint, world.device, raw)
        settings, size = inference_settings(cfg.eval, cfg.data.crop_size), cfg.data.image_size
        samples = Previews(index.split(split).num_samples, num_previews if previews else 0, None, preview_ids)
        progress, advance = console.bar(f"evaluating {split}", index.split(split).num_samples)
        with progress if world.is_first else contextlib.nullcontext():
            result = evaluate(
                trained.model, data_uri, index, split, size, cfg.io, cfg.eval.batch_size, world,
                lambda n: advance(n * world.num_ranks), settings=settings, per_sample=per_sample, boundary=boundary,
                on_batch=samples.add,
            )  # fmt: skip
        drawn = samples.gather(world)
    origin = {
        "protocol": protocol(size, settings),
        "checkpoint": trained.uri,
        "checkpoint_digest": checkpoints.digest(trained.uri),
        "weights": trained.weights,
        "data": data_uri,
        "split": split,
        "data_digest": index.digest(split),
    }
    if previews and drawn and world.is_first:
        title = f"{index.name}, {split}: mIoU {result.scores.miou:.4f}"
        storage.write(previews, png(grid(drawn, trained.labels, title)))
        console.say(f"written: {previews}")
    return report(result, trained.labels.names) | origin


def _resolve(uri: str, data: str | None, split: str, changes: dict[str, Any]) -> tuple[str, Config, str, Index]:
    """Return (checkpoint, config, URI of the data, its index) of an evaluation. Raises UserError if one is invalid."""
    checkpoint = checkpoints.resolve(uri)
    state = checkpoints.load_state(checkpoint)
    cfg = override_eval(config_of(checkpoint, state), changes)
    data_uri = data or cfg.data.uri
    index = indices.load(data_uri)
    index.split(split)
    _check_classes(checkpoint, Labels.from_json(state["labels"]).names, data_uri, index.labels.names)
    return checkpoint, cfg, data_uri, index


def override_eval(cfg: Config, changes: dict[str, Any]) -> Config:
    """Return a run's config with some fields of its `eval` section replaced.

    Raises ConfigError if a value is invalid; the message names command-line options instead of config keys.
    """
    tree = config.to_tree(cfg)
    own = {**tree["eval"], "window_size": None} if changes.get("mode") == "whole" else tree["eval"]
    try:
        return config.from_tree({**tree, "eval": {**own, **changes}}, "the options given")
    except ConfigError as error:
        text = str(error).replace("eval.mode=sliding (--mode sliding)", "--mode sliding")
        for field in _OPTIONS.keys() & changes.keys():
            text = re.sub(rf"`?\beval\.{field}\b(\.\d+)?`?", _OPTIONS[field], text)
        raise ConfigError(text) from None


def _check_classes(checkpoint: str, ours: list[str], data: str, theirs: list[str]) -> None:
    """Raise LabelError, naming the first difference, if the model and the dataset have different classes."""
    if ours == theirs:
        return
    pairs = zip([*ours, *[None] * len(theirs)], [*theirs, *[None] * len(ours)])
    i, (a, b) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise LabelError(
        f"{checkpoint} has {len(ours)} classes and {data} has {len(theirs)}. Class {i} is {a!r} in the checkpoint and {b!r} in "
        "the dataset. Prepare the dataset with the same --names, or train on it first"
    )


def validate(cfg: Config, model: Segmenter, index: Index, world: World, samples: Previews) -> dict[str, Any]:
    """Evaluate a model in training on its validation split and return the report. All ranks must call it.

    `samples` receives every batch.
    """
    settings, size, split = inference_settings(cfg.eval, cfg.data.crop_size), cfg.data.image_size, cfg.data.val_split
    result = evaluate(
        model, cfg.data.uri, index, split, size, cfg.io, cfg.eval.batch_size, world,
        settings=settings, num_samples=cfg.eval.num_samples, on_batch=samples.add,
    )  # fmt: skip
    return report(result, index.labels.names) | {"protocol": _validation_protocol(cfg, index)}


def _validation_protocol(cfg: Config, index: Index) -> str:
    """Return the protocol of the evaluations that a run makes during training."""
    num, requested = index.split(cfg.data.val_split).num_samples, cfg.eval.num_samples
    subset = f"{requested} of {num} samples" if requested is not None and requested < num else ""
    return protocol(cfg.data.image_size, inference_settings(cfg.eval, cfg.data.crop_size), subset)


def scored_on(cfg: Config, index: Index) -> str:
    """Return a key that is equal for comparable scores of a run: the split's digest and any protocol other than the default.

    Only scores with the same key compete for the run's best checkpoint.
    """
    digest, protocol_now = index.digest(cfg.data.val_split), _validation_protocol(cfg, index)
    return digest if protocol_now == protocol(cfg.data.image_size) else f"{digest} / {protocol_now}"


def protocol(image_size: ImageSize, settings: InferenceSettings = PLAIN, subset: str = "") -> str:
    """Describe how a score was made. Scores with different protocols are not comparable.

    `subset` says which samples were scored, if not all.
    """
    if image_size is None:
        size = "images at their own size"
    elif isinstance(image_size, int):
        size = f"images resized to a shorter side of {image_size} px"
    else:
        size = f"images resized to {image_size[0]}x{image_size[1]} px"
    return f"{size} / {settings.describe()} / fp32 / scored at the mask's own size{subset and f' / {subset}'}"


def report(result: Evaluation, names: list[str]) -> dict[str, Any]:
    """Return the evaluation as JSON-compatible data, with per-class values by class name."""
    s = result.scores
    tree: dict[str, Any] = {key: getattr(s, key) for key in _MEANS} | {"loss": result.loss}
    tree |= {key: dict(zip(names, getattr(s, key))) for key in _PER_CLASS}
    tree |= {"num_samples": result.num_samples, "confusion": s.confusion}
    if result.boundary is not None:
        iou = class_iou(result.boundary)
        tree["boundary_iou"] = dict(zip(names, iou.tolist()))
        tree["mean_boundary_iou"] = float(np.nanmean(iou)) if not np.isnan(iou).all() else math.nan
    if result.per_sample is not None:
        counts = [_nonzero_counts(one) for one in result.per_sample.counts]
        tree["pictures"] = {"sample_ids": result.per_sample.sample_ids, "counts": counts}
        tree["miou_interval"] = asdict(bootstrap_miou(result.per_sample.counts))
    return tree


def _nonzero_counts(counts: np.ndarray) -> dict[str, list[int]]:
    """Return {class number: [correct, true, predicted] pixels} of int64 (3, K), for the classes with true or predicted ones."""
    present = np.flatnonzero(counts[1] + counts[2]).tolist()
    return {str(k): counts[:, k].tolist() for k in present}
