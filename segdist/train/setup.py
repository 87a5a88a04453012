"""Everything before the first step: check whatever can be checked, then claim the next attempt at the run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import yaml

from segdist import config, console, storage
from segdist.config import Config
from segdist.data import class_weights, health
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.data.order import VERSION, Order
from segdist.data.source import Source
from segdist.distributed import World
from segdist.errors import CheckpointError, ConfigError, DataError
from segdist.evaluation import self_test
from segdist.evaluation.report import scored_on
from segdist.runs import checkpoints, record, restore
from segdist.step.update import precision_of
from segdist.train import auto_batch

AUTO = ("micro_batch_size", "precision")  # fields of `train` that are resolved once and then belong to the run
SELF_TEST_BYTES = 1 << 29  # of one-hot logits; a larger self-test is skipped
SUMMARY = (
    "run_uri", "state", "step", "miou", "best_step", "best_checkpoint", "images_per_second", "wait_share", "restarts",
)  # fmt: skip
HEARTBEAT_SECONDS = 60  # a run with a younger heartbeat may still be alive


@dataclass(frozen=True)
class OpenedRun:
    """What rank 0 found out before the first step and every rank needs."""

    cfg: Config  # every `auto` that affects the weights is resolved
    index: Index
    attempt: int = 0
    checkpoint: str | None = None  # to continue from
    best: dict[str, Any] | None = None
    unscored: bool = False  # the checkpoint was due for an evaluation that did not finish
    parent: str | None = None  # the checkpoint whose weights a new run starts from
    pinned: dict[str, str] = field(default_factory=dict)  # replaces fields of `model`: see restore.pinned
    val_digest: str = ""  # identifies the validation split and the evaluation protocol
    contract: dict[str, Any] = field(default_factory=dict)  # stored in every checkpoint
    facts: dict[str, Any] = field(default_factory=dict)  # stored in run.json


@dataclass(frozen=True)
class RunState:
    """What storage holds before an attempt starts."""

    cfg: Config  # `auto` fields as the run's first attempt resolved them
    index: Index
    record: dict[str, Any] | None  # run.json; None for a new run
    summary: dict[str, Any] | None  # of a complete run; None if there is work left


def inspect_run(cfg: Config, num_ranks: int) -> RunState:
    """Check everything that can be checked before the first step, without changing anything.

    Raises UserError, with a remedy, for whatever would stop the run later.
    """
    index = indices.load(cfg.data.uri)
    for split in (cfg.data.train_split, cfg.data.val_split):
        Source(cfg.data.uri, index, split).check()
    training_order(cfg, index)
    class_weights.class_weights(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    storage.check_writable(cfg.run.uri)
    found = record.load(cfg.run.uri)
    identity = found.get("identity", {}) if found else identity_of_checkpoints(cfg.run.uri)
    cfg = restore_auto(cfg, identity or {})
    check_num_ranks(cfg, num_ranks)
    if storage.exists(storage.join(cfg.run.uri, indices.NAME)):
        raise ConfigError(f"run.uri {cfg.run.uri} contains a prepared dataset. Choose another folder for the run")
    if identity is None:
        check_weights(cfg)
    else:
        check_identity(cfg.run.uri, identity, identity_of(cfg, index))
    if found is None or found["state"] != record.SUCCEEDED:
        return RunState(cfg, index, found, None)
    console.say(
        f"{cfg.run.uri} is complete (step {found['step']}). There is nothing to do. To start a new run, set another run.uri."
    )
    return RunState(cfg, index, found, {k: found.get(k) for k in SUMMARY})


def check_new_run(cfg: Config, index: Index, num_ranks: int) -> None:
    """Raise UserError if this config cannot start a new run on this dataset and this many ranks. Reads no shard."""
    training_order(cfg, index)
    index.split(cfg.data.val_split)
    class_weights.class_weights(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    check_num_ranks(cfg, num_ranks)
    check_weights(cfg)


def identity_of(cfg: Config, index: Index) -> dict[str, Any]:
    """Return everything that determines a run's weights."""
    return config.identity_of(cfg) | {"data digest": index.digest(cfg.data.train_split), "order version": VERSION}


def newest_checkpoint(run_uri: str) -> str | None:
    """Return the newest intact checkpoint, or None if the run has none. Raises CheckpointError if all are damaged."""
    newest = checkpoints.newest(run_uri, console.say)
    if newest is None and checkpoints.committed(run_uri):
        raise CheckpointError(
            f"{run_uri}: all checkpoints are damaged (see the warnings above). Restore one of them, or delete the folder "
            "`checkpoints` to start again at step 0, or set another run.uri"
        )
    return newest


def identity_of_checkpoints(run_uri: str) -> dict[str, Any] | None:
    """Return the identity of a run whose run.json is lost, or None if there is no checkpoint and so no run."""
    newest = newest_checkpoint(run_uri)
    return None if newest is None else checkpoints.load_state(newest).get("identity", {})


def restore_auto(cfg: Config, identity: dict[str, Any]) -> Config:
    """Return the config with each `auto` as the run's first attempt resolved it."""
    wishes = {key: identity.get(f"train.{key}", "auto") for key in AUTO if getattr(cfg.train, key) == "auto"}
    return config.update_section(cfg, "train", wishes)


def resolve_auto(cfg: Config, index: Index, world: World) -> Config:
    """Return the config with each `auto` resolved for the devices of these ranks. All ranks must call it."""
    if cfg.train.precision == "auto":
        found = world.gather(precision_of("auto", world.device))
        cfg = config.update_section(
            cfg, "train", {"precision": next(p for p in ("fp32", "fp16", "bf16") if p in found)}
        )
    if cfg.train.micro_batch_size == "auto":
        size = auto_batch.micro_batch_size(cfg, index, world)
        if world.is_first:
            _report_auto(size, cfg.train.global_batch_size // size, world.device.type == "cpu")
        cfg = config.update_section(cfg, "train", {"micro_batch_size": size})
    return cfg


def _report_auto(size: int, most_ranks: int, on_cpu: bool) -> None:
    reason = f"on a CPU, a divisor of at most {auto_batch.CPU_SIZE}" if on_cpu else "the largest that fits"
    console.say(
        f"train.micro_batch_size=auto is now fixed at {size} ({reason}). At most {most_ranks} rank(s) can share this run."
    )
    if size == 1:
        console.say(
            "warning: batch statistics of single images are poor. Set a train.global_batch_size that has more divisors."
        )


def check_num_ranks(cfg: Config, num_ranks: int) -> None:
    """Raise ConfigError if there are more ranks than micro-batches."""
    auto = cfg.train.micro_batch_size == "auto"
    most = cfg.train.global_batch_size if auto else cfg.train.num_micro_batches
    if num_ranks > most:
        raise ConfigError(
            f"{num_ranks} ranks cannot share {most} micro-batches per step. Start at most {most} rank(s) (scale.num_ranks, or "
            "torchrun's --nproc-per-node). Or lower train.micro_batch_size or raise train.global_batch_size; either makes a "
            "new run, because it changes the weights"
        )


def check_weights(cfg: Config) -> None:
    """Raise UserError if the weights of a new run do not exist."""
    parent, weights = cfg.train.init_from, cfg.model.weights
    if parent and not storage.exists(parent):
        raise CheckpointError(f"train.init_from {parent!r} does not exist. Give the run.uri of a training run")
    if weights and config.is_path_or_uri(weights) and not storage.exists(weights):
        raise ConfigError(
            f"model.weights {weights!r} does not exist. Give a folder with config.json and weights, or a run"
        )


def open_run(cfg: Config, state: RunState, world: World) -> OpenedRun:
    """Claim the next attempt at the run. Every `auto` in the config must be resolved. Rank 0 only."""
    index, before = state.index, state.record or {}
    newest = newest_checkpoint(cfg.run.uri)
    _warn_if_alive(before, world)
    check_health(cfg, index)
    identity = identity_of(cfg, index)
    parent, pinned = (None, {}) if newest else resolve_initial_weights(cfg, before)
    attempt = record.claim_attempt(cfg.run.uri)
    facts = {"identity": identity, "parent": parent or before.get("parent"), "versions": record.versions()}
    facts |= {"pinned": pinned or before.get("pinned", {})}
    facts |= {"launch": world.launch, "data": describe_data(cfg, index)}
    text = f"# {record.to_json(facts['versions'])}\n" + yaml.safe_dump(config.to_tree(cfg), sort_keys=False)
    storage.write(storage.join(cfg.run.uri, "config.yaml"), text.encode())
    contract = {"identity": identity, "config": config.to_tree(cfg), "labels": index.contract, **facts}
    val_digest = scored_on(cfg, index)
    best = checkpoints.read_best(cfg.run.uri, val_digest)
    step = checkpoints.step_of(newest)
    due = step is not None and (step % cfg.eval.every_steps == 0 or step == cfg.train.num_steps)
    unscored = newest is not None and due and checkpoints.scores_of(newest) is None
    return OpenedRun(cfg, index, attempt, newest, best, unscored, parent, pinned, val_digest, contract, facts)


def _warn_if_alive(before: dict[str, Any], world: World) -> None:
    """Warn if an attempt of another launch had a heartbeat a moment ago. A launcher ends its own ranks before it restarts."""
    same_launch = world.launch != "" and before.get("launch") == world.launch
    if before.get("state") != record.RUNNING or same_launch:
        return
    silent = time.time() - before["heartbeat"]
    if silent < HEARTBEAT_SECONDS:
        console.say(
            f"warning: attempt {before['attempt']} had a heartbeat {silent:.0f} s ago. If it still runs, it stops now."
        )


def resolve_initial_weights(cfg: Config, before: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    """Return (the checkpoint that train.init_from means, the pinned fields of `model`: see restore.pinned) for step 0.

    Both are decided once for all attempts. `before` is run.json: an earlier attempt whose steps were lost has decided them.
    """
    parent, pinned = before.get("parent"), before.get("pinned") or {}
    try:
        for uri in filter(None, (parent, pinned.get("weights"))):
            checkpoints.resolve(uri)
    except CheckpointError as error:
        console.say(
            f"warning: {error}. This run started from it, and now starts again from the weights that exist now."
        )
        parent, pinned = None, {}
    if cfg.train.init_from and not parent:
        parent = checkpoints.resolve(cfg.train.init_from)
    return parent, pinned or restore.pinned(cfg.model)


def describe_data(cfg: Config, index: Index) -> dict[str, Any]:
    """Return what run.json says about the run's data."""
    samples = {split: index.split(split).num_samples for split in (cfg.data.train_split, cfg.data.val_split)}
    return {
        "uri": storage.redacted(cfg.data.uri),
        "name": index.name,
        "source": index.source,
        "licence": index.licence,
        "samples": samples,
        "digest": {split: index.digest(split)[:16] for split in samples},
    }


def check_health(cfg: Config, index: Index) -> None:
    """Warn about whatever may spoil the run. Raises DataError if its scores could not be trusted."""
    for finding in health.check_index(index, cfg.data.train_split):
        if finding.severity in ("warning", "error"):
            console.say(f"warning: {finding.text} ({finding.remedy}; `segdist doctor` tells more)")
    tested = self_test.self_test(cfg.data.uri, index, cfg.data.val_split, cfg.io, 1, SELF_TEST_BYTES)
    if tested.severity == "note":
        console.say(f"self-test {tested.text}; {tested.remedy}")
    if tested.severity == "error":
        raise DataError(f"{cfg.data.uri}: {tested.text}. {tested.remedy}")


def check_identity(run_uri: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError, listing the differences, if the config would continue another run than the one at `run_uri`."""
    before = {k: v for k, v in config.DEFAULTS.items() if k in now} | before  # of fields that are younger than the run
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    if changed:
        lines = "".join(
            "\n  data: the training split at data.uri is not the one that this run started with"
            if k == "data digest"
            else f"\n  {k}: {before.get(k)!r} -> {now.get(k)!r}{'' if k in now else ' (this version has no such key)'}"
            for k in changed
        )
        undo = "Undo these changes to continue the run. Or start" if now.keys() >= set(changed) else "Start"
        raise ConfigError(
            f"{run_uri} was started with other settings, which decide its weights:{lines}\n"
            f"{undo} a new run: set another run.uri, and train.init_from={run_uri} "
            "to start from its weights"
        )


def training_order(cfg: Config, index: Index) -> Order:
    """Return the order of the training split. Raises DataError if the split is too small for one batch."""
    split = index.split(cfg.data.train_split)
    # a split in its source order is read in up to 8 lanes per slot, so that a batch mixes more of it
    lanes = 1 if split.shuffle_seed is not None else min(8, split.num_samples // cfg.train.global_batch_size) or 1
    return Order(split.row_group_sizes(), cfg.train.seed, cfg.train.global_batch_size, lanes)
