"""What happens before the first step: everything that can be checked is checked, and the next attempt at the run is claimed."""

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

AUTO = ("micro_batch_size", "precision")  # of `train`: settled once, and then part of the run
SELF_TEST_BYTES = 1 << 29  # of one-hot logits: it costs a moment, or is left out
SUMMARY = (
    "run_uri", "state", "step", "miou", "best_step", "best_checkpoint", "images_per_second", "wait_share", "restarts",
)  # fmt: skip


@dataclass(frozen=True)
class Opening:
    """What rank 0 found before the first step, and every rank needs."""

    cfg: Config  # without `auto` where that decides the weights
    index: Index
    attempt: int = 0
    checkpoint: str | None = None  # to continue from
    best: dict[str, Any] | None = None
    unscored: bool = False  # the checkpoint was due for an evaluation that never ended
    parent: str | None = None  # checkpoint whose weights begin a new run
    pinned: dict[str, str] = field(default_factory=dict)  # of `model`, in its stead: see trained.pinned
    val_digest: str = ""  # of the split that scores are made on, and how
    contract: dict[str, Any] = field(default_factory=dict)  # into every checkpoint
    facts: dict[str, Any] = field(default_factory=dict)  # into run.json


@dataclass(frozen=True)
class Found:
    """What storage holds before an attempt begins."""

    cfg: Config  # without `auto` where the run was begun before
    index: Index
    known: dict[str, Any] | None  # run.json, where the run was begun before
    finished: dict[str, Any] | None  # the summary of a run that needs nothing more


def look(cfg: Config, num_ranks: int) -> Found:
    """Checks all that can be checked before the first step, and changes nothing. Raises UserError with the remedy."""
    index = indices.load(cfg.data.uri)
    for split in (cfg.data.train_split, cfg.data.val_split):
        Source(cfg.data.uri, index, split).check()
    training_order(cfg, index)
    class_weights.class_weights(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    storage.check_writable(cfg.run.uri)
    known = record.load(cfg.run.uri)
    before = known.get("identity", {}) if known else identity_of_checkpoints(cfg.run.uri)
    cfg = remembered(cfg, before or {})
    check_groups(cfg, num_ranks)
    if storage.exists(storage.join(cfg.run.uri, indices.NAME)):
        raise ConfigError(f"run.uri {cfg.run.uri} holds a prepared data set; give the run a folder of its own")
    if before is None:
        check_weights(cfg)
    else:
        refuse_changes(cfg.run.uri, before, identity_of(cfg, index))
    if known is None or known["state"] != record.SUCCEEDED:
        return Found(cfg, index, known, None)
    console.say(
        f"{cfg.run.uri} is finished since step {known['step']}; nothing to do. For a new run give another run.uri"
    )
    return Found(cfg, index, known, {k: known.get(k) for k in SUMMARY})


def check_recipe(cfg: Config, index: Index, num_ranks: int) -> None:
    """Raises UserError when a new run of this config could not be made of this data set by so many ranks; opens no shard."""
    training_order(cfg, index)
    index.split(cfg.data.val_split)
    class_weights.class_weights(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    check_groups(cfg, num_ranks)
    check_weights(cfg)


def identity_of(cfg: Config, index: Index) -> dict[str, Any]:
    """All that decides a run's weights."""
    return config.identity_of(cfg) | {"data digest": index.digest(cfg.data.train_split), "order version": VERSION}


def newest_of(run_uri: str) -> str | None:
    """The newest checkpoint that is whole; None for a run that has none. Raises CheckpointError when all are damaged."""
    newest = checkpoints.newest(run_uri, console.say)
    if newest is None and checkpoints.committed(run_uri):
        raise CheckpointError(
            f"{run_uri}: none of its checkpoints is whole (see the warnings above). Mend them, delete its folder "
            "`checkpoints` to begin at step 0, or give another run.uri"
        )
    return newest


def identity_of_checkpoints(run_uri: str) -> dict[str, Any] | None:
    """The identity of a run whose run.json was lost; None where there is no checkpoint either, so no run."""
    newest = newest_of(run_uri)
    return None if newest is None else checkpoints.load_state(newest).get("identity", {})


def remembered(cfg: Config, identity: dict[str, Any]) -> Config:
    """The config with each `auto` as it was settled when the run began, if it was."""
    wishes = {key: identity.get(f"train.{key}", "auto") for key in AUTO if getattr(cfg.train, key) == "auto"}
    return config.changed(cfg, "train", wishes)


def settle(cfg: Config, index: Index, world: World) -> Config:
    """The config with what each `auto` means on the devices of these ranks. All of them must call it."""
    if cfg.train.precision == "auto":
        found = world.gather(precision_of("auto", world.device))
        cfg = config.changed(cfg, "train", {"precision": next(p for p in ("fp32", "fp16", "bf16") if p in found)})
    if cfg.train.micro_batch_size == "auto":
        size = auto_batch.group_size(cfg, index, world)
        if world.is_first:
            most = cfg.train.global_batch_size // size
            how = (
                "the largest that fits"
                if world.device.type != "cpu"
                else f"of a CPU: a divisor up to {auto_batch.CPU_SIZE}"
            )
            console.say(
                f"train.micro_batch_size=auto is {size} ({how}) from here on; at most {most} rank(s) can share this run"
            )
            if size == 1:
                console.say(
                    "warning: batch statistics of single images are poor; give a train.global_batch_size with more divisors"
                )
        cfg = config.changed(cfg, "train", {"micro_batch_size": size})
    return cfg


def check_groups(cfg: Config, num_ranks: int) -> None:
    """Raises ConfigError when there are fewer micro-batches than ranks."""
    auto = cfg.train.micro_batch_size == "auto"
    most = cfg.train.global_batch_size if auto else cfg.train.num_groups
    if num_ranks > most:
        raise ConfigError(
            f"{num_ranks} ranks share {most} micro-batches per step; start at most {most} rank(s) (scale.num_ranks, or "
            "torchrun's), or lower train.micro_batch_size or raise train.global_batch_size (another run: its weights change "
            "with them)"
        )


def check_weights(cfg: Config) -> None:
    """Raises UserError when nothing is where a new run's weights should come from."""
    parent, weights = cfg.train.init_from, cfg.model.weights
    if parent and not storage.exists(parent):
        raise CheckpointError(f"train.init_from {parent!r}: there is nothing; give the run.uri of a training")
    if weights and config.is_place(weights) and not storage.exists(weights):
        raise ConfigError(
            f"model.weights {weights!r}: there is nothing; give a folder with config.json and weights, or a run"
        )


def open_run(cfg: Config, found: Found, world: World) -> Opening:
    """Claims the next attempt at the run, whose config is settled. Rank 0 only."""
    index, known = found.index, found.known
    newest = newest_of(cfg.run.uri)
    again = known is not None and world.launch != "" and known.get("launch") == world.launch  # it has ended the others
    if known and not again and known["state"] == record.RUNNING and (silent := time.time() - known["heartbeat"]) < 60:
        console.say(
            f"warning: attempt {known['attempt']} gave a sign of life {silent:.0f} s ago; if it still runs, it will stop now"
        )
    check_health(cfg, index)
    identity = identity_of(cfg, index)
    before = known or {}
    parent, pinned = (None, {}) if newest else begins_from(cfg, before)
    attempt = record.claim_attempt(cfg.run.uri)
    facts = {"identity": identity, "parent": parent or before.get("parent"), "versions": record.versions()}
    facts |= {"pinned": pinned or before.get("pinned", {})}
    facts |= {"launch": world.launch, "data": about_data(cfg, index)}
    text = f"# {record.to_json(facts['versions'])}\n" + yaml.safe_dump(config.to_tree(cfg), sort_keys=False)
    storage.write(storage.join(cfg.run.uri, "config.yaml"), text.encode())
    contract = {"identity": identity, "config": config.to_tree(cfg), "labels": index.contract, **facts}
    val_digest = scored_on(cfg, index)
    best = checkpoints.read_best(cfg.run.uri, val_digest)
    step = checkpoints.step_of(newest)
    due = step is not None and (step % cfg.eval.every_steps == 0 or step == cfg.train.num_steps)
    unscored = newest is not None and due and checkpoints.scores_of(newest) is None
    return Opening(cfg, index, attempt, newest, best, unscored, parent, pinned, val_digest, contract, facts)


def begins_from(cfg: Config, before: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    """(the checkpoint of train.init_from, see trained.pinned for model.weights) at step 0, settled once for all ranks.

    `before`: run.json; an earlier attempt, whose steps were lost, had settled it for all that follow.
    """
    parent, pinned = before.get("parent"), before.get("pinned") or {}
    try:
        for uri in filter(None, (parent, pinned.get("weights"))):
            checkpoints.resolve(uri)
    except CheckpointError as error:
        console.say(f"warning: {error}; this run began from it, and begins anew from what is there now")
        parent, pinned = None, {}
    if cfg.train.init_from and not parent:
        parent = checkpoints.resolve(cfg.train.init_from)
    return parent, pinned or restore.pinned(cfg.model)


def about_data(cfg: Config, index: Index) -> dict[str, Any]:
    """What a run's record says of its data."""
    samples = {split: index.split(split).num_samples for split in (cfg.data.train_split, cfg.data.val_split)}
    uri = storage.redacted(cfg.data.uri)
    return {
        "uri": uri,
        "name": index.name,
        "source": index.source,
        "licence": index.licence,
        "samples": samples,
        "digest": {split: index.digest(split)[:16] for split in samples},
    }


def check_health(cfg: Config, index: Index) -> None:
    """Says what may spoil the run. Raises DataError when its scores could not be trusted."""
    for finding in health.from_index(index, cfg.data.train_split):
        if finding.severity in ("warning", "error"):
            console.say(f"warning: {finding.text} ({finding.remedy}; more by `segdist doctor`)")
    tested = self_test.self_test(cfg.data.uri, index, cfg.data.val_split, cfg.io, 1, SELF_TEST_BYTES)
    if tested.severity == "note":
        console.say(f"self-test {tested.text}; {tested.remedy}")
    if tested.severity == "error":
        raise DataError(f"{cfg.data.uri}: {tested.text}; {tested.remedy}")


def refuse_changes(run_uri: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError, with the differences, when a run would go on as another run."""
    before = {k: v for k, v in config.DEFAULTS.items() if k in now} | before  # of fields younger than the run
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    if changed:
        lines = "".join(
            "\n  data: the training split at data.uri is another one than this run was begun with"
            if k == "data digest"
            else f"\n  {k}: {before.get(k)!r} -> {now.get(k)!r}"
            for k in changed
        )
        raise ConfigError(
            f"{run_uri} was begun with other settings, and going on would make neither run:{lines}\n"
            f"Undo these to continue it, or begin a new one: another run.uri, and train.init_from={run_uri} for its weights"
        )


def training_order(cfg: Config, index: Index) -> Order:
    """The order of the training split. Raises DataError when it is too small for one batch."""
    split = index.split(cfg.data.train_split)
    lanes = cfg.data.lanes_per_slot or (8 if split.shuffle_seed is None else 1)
    return Order(split.group_sizes(), cfg.train.seed, cfg.train.global_batch_size, lanes)
