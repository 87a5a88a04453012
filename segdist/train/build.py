"""The objects that a run trains with: its model, its stream, and their description."""

from __future__ import annotations

from collections.abc import Callable

import torch

from segdist import config, models
from segdist.config import Config
from segdist.data.augment import model_size
from segdist.data.cache import open_cache
from segdist.data.index import Index
from segdist.data.order import key
from segdist.data.source import Source
from segdist.data.stream import TrainStream
from segdist.distributed import World
from segdist.models.segmenter import Segmenter
from segdist.runs import restore
from segdist.runs.snapshot import Snapshot
from segdist.step.update import strategy_of
from segdist.train.setup import OpenedRun, training_order


def build_model(cfg: Config, run: OpenedRun, stored: Snapshot | None) -> Segmenter:
    """Return the model of the run's checkpoint, or a new one, with its parent's weights if the run has a parent."""
    torch.manual_seed(int(key(cfg.train.seed, 5) >> 1))
    if stored:
        model = models.rebuild(stored.state["arch"])
        model.load_state_dict(stored.model)
        model.notes, model.origin = [f"continues {run.checkpoint}"], restore.initial_of(stored.state)
        return model
    return restore.begin(config.update_section(cfg, "model", run.pinned), run.index.labels.names, run.parent)


def train_stream(
    cfg: Config, index: Index, groups: range, world: World, count: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> TrainStream:
    """Return the stream of the micro-batches `groups` (their numbers in the global batch)."""
    source = Source(cfg.data.uri, index, cfg.data.train_split, open_cache(cfg.data.uri, cfg.io))
    order, size = training_order(cfg, index), cfg.train.samples_per_micro_batch
    return TrainStream(source, order, index.labels, cfg.data, cfg.io, groups, size, world.device.type == "cuda", count)


def check_sizes(cfg: Config, index: Index, model: Segmenter) -> None:
    """Raise ConfigError if a model of fixed size would see larger images in training or in evaluation."""
    model.traits.check(*cfg.data.crop_size)
    largest = model_size(cfg.data.image_size, *index.split(cfg.data.val_split).largest)
    model.traits.check(*(largest if cfg.eval.mode == "whole" else cfg.eval.window_size or cfg.data.crop_size))


def describe(cfg: Config, world: World, model: Segmenter, run: OpenedRun, start: int, epoch_steps: int) -> str:
    """Return a few lines about the run for people, to be shown before the first step."""
    split = run.index.split(cfg.data.train_split)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    offload = ", offload" if cfg.train.zero_offload else ""
    strategy = strategy_of(cfg.train.strategy, world.device)
    strategy += f" (ZeRO-{cfg.train.zero_stage}{offload})" if cfg.train.strategy == "deepspeed" else ""
    return "\n".join(
        [
            f"run {cfg.run.uri}, attempt {run.attempt}: steps {start} to {cfg.train.num_steps}",
            f"data {run.index.name}: {split.num_samples} training samples, {epoch_steps} steps per epoch, "
            f"{run.index.labels.num_classes} classes",
            f"model {model.arch['name']}, {size:.1f} M parameters; " + "; ".join(model.notes),
            f"{world.num_ranks} rank(s) on {world.device.type}, strategy {strategy}, {cfg.train.precision}; "
            f"global batch {cfg.train.global_batch_size} = {cfg.train.num_micro_batches} x {cfg.train.samples_per_micro_batch}",
        ]
    )
