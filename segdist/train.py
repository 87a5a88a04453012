"""One run, top to bottom: `fit`. It knows nothing of who launched it.

`tell(metrics)` is called at evaluations only, equally often on every rank. `notice()` answers None, "checkpoint" or
"stop"; the ranks agree on it by votes that ride on the all-reduce of the step's pixel counts, which stays on the CPU, so that
no step waits for the device to answer.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import yaml

from segdist import checkpoint, config, health, log, loss, models, optim, record, storage
from segdist.alarm import DeadClasses
from segdist.config import Config
from segdist.data import index as indices
from segdist.data.index import Index
from segdist.data.order import VERSION, Order, key
from segdist.data.source import Source
from segdist.data.stream import TrainStream
from segdist.errors import CheckpointError, ConfigError, DataError, StorageError, UserError
from segdist.models.segmenter import Segmenter
from segdist.report import scored_on, validate
from segdist.strategy import Step, resolve
from segdist.world import World

SELF_TEST_BYTES = 1 << 29  # of one-hot logits: it costs a moment, or is left out

Tell = Callable[[dict[str, Any]], Any]
Notice = Callable[[], Literal["checkpoint", "stop"] | None]


def fit(cfg: Config, world: World, tell: Tell = lambda metrics: None, notice: Notice = lambda: None) -> dict[str, Any]:
    """Trains to the end, or as far as `notice` allows, from wherever the run stands; the summary of the run.

    Raises UserError before the first step when the run cannot be made. All ranks must call it.
    """
    run = world.from_first(lambda: open_run(cfg, world))
    if run.finished is not None:
        return run.finished
    num_steps = cfg.train.num_steps
    model = starting_model(cfg, run).to(world.device).train()
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix)
    start = checkpoint.restore(run.checkpoint, model, optimizer) if run.checkpoint else 0
    weights = loss.class_weights(cfg.loss, run.index.split(cfg.data.train_split).class_pixels)
    update = Step(model, optimizer, cfg.train, cfg.optim.clip_grad_norm, weights, world)
    stream = train_stream(cfg, run.index, world.share(cfg.train.num_groups), world)

    with (
        log.Logbook(cfg.run.uri, run.attempt, run.facts, num_steps, start, world.is_first) as book,
        contextlib.closing(stream.steps(start, num_steps)) as batches,
    ):
        keeper = checkpoint.Keeper(
            cfg.run.uri, run.attempt, cfg.checkpoint.keep_last, book.outbox, book.owns_run, run.checkpoint, run.best
        )
        meter = log.Meter(cfg.train.global_batch_size, num_steps)
        best: float | None = run.best["miou"] if run.best else None
        done, stop = start, False
        alarm = DeadClasses(cfg, run.index)
        book.say(describe(cfg, world, model, run, start))
        if run.unscored:  # the attempt before ended between its commit and its evaluation
            best = score(cfg, model, run, world, book, keeper, alarm, tell, done, best)
        while done < num_steps and not stop:
            with meter.waiting():
                batch = next(batches)
            wish = "stop" if book.superseded else notice()
            tally, saves, stop = agree(wish, loss.tally([group.masks for group in batch], weights), world)
            lr = optim.lr_at(cfg.optim, done, num_steps)
            optim.set_lr(optimizer, lr)
            meter.count(*update(done, batch, loss.denominator(tally, weights)))
            done += 1

            evaluates = done == num_steps or (done % cfg.eval.every_steps == 0 and not stop)
            commits = evaluates or stop or saves or done % cfg.checkpoint.every_steps == 0
            if done % cfg.log.every_steps == 0 or commits:  # all ranks; rank 0 speaks
                row = meter.row(done) | {"lr": lr}
                check_finite(row, done, keeper.newest)
                book.log(done, "train", row)
                book.show(done, num_steps, row, checkpoint.step_of(keeper.newest), best)
            if commits and world.is_first:  # before the evaluation, which may be long, or fail
                state = run.contract | {"step": done, "arch": model.arch}
                keeper.put(checkpoint.snapshot(model, optimizer, state))
                book.flush()
            if evaluates:  # all ranks
                with meter.paused():
                    best = score(cfg, model, run, world, book, keeper, alarm, tell, done, best)

        book.flush()
        lost = book.outbox.finish()
        if world.is_first and not book.superseded:
            check_written(keeper, done, lost)
        summary = summarise(cfg, run.attempt, done, keeper) | meter.summary()
        book.update(**summary)
        if world.is_first and not book.superseded:
            check_written(keeper, done, book.outbox.finish())
        book.say(farewell(summary, book.superseded))
    return summary


@dataclass(frozen=True)
class Opening:
    """What rank 0 found before the first step, and every rank needs."""

    index: Index
    attempt: int = 0
    checkpoint: str | None = None  # to continue from
    best: dict[str, Any] | None = None
    unscored: bool = False  # the checkpoint was due for an evaluation that never ended
    parent: str | None = None  # checkpoint whose weights begin a new run
    val_digest: str = ""  # of the split that scores are made on, and how
    contract: dict[str, Any] = field(default_factory=dict)  # into every checkpoint
    facts: dict[str, Any] = field(default_factory=dict)  # into run.json
    finished: dict[str, Any] | None = None  # the summary of a run that needs nothing more


@dataclass(frozen=True)
class Found:
    """What storage holds before an attempt begins."""

    index: Index
    identity: dict[str, Any]  # of the run as it is asked for
    known: dict[str, Any] | None  # run.json, where the run was begun before
    finished: dict[str, Any] | None  # the summary of a run that needs nothing more


def look(cfg: Config, num_ranks: int) -> Found:
    """Checks all that can be checked before the first step, and changes nothing. Raises UserError with the remedy."""
    index = indices.load(cfg.data.uri)
    for split in (cfg.data.train_split, cfg.data.val_split):
        Source(cfg.data.uri, index, split).check()
    training_order(cfg, index)
    loss.class_weights(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    if num_ranks > cfg.train.num_groups:
        raise ConfigError(
            f"{num_ranks} ranks share {cfg.train.num_groups} micro-batches per step; start at most {cfg.train.num_groups} "
            "rank(s) (scale.num_ranks, or torchrun's), or lower train.micro_batch_size or raise train.global_batch_size "
            "(another run: its weights change with them)"
        )
    storage.check_writable(cfg.run.uri)
    if storage.exists(storage.join(cfg.run.uri, indices.NAME)):
        raise ConfigError(f"run.uri {cfg.run.uri} holds a prepared data set; give the run a folder of its own")
    identity = config.identity_of(cfg) | {"data digest": index.digest(cfg.data.train_split), "order version": VERSION}
    known = record.load(cfg.run.uri)
    if known is None:
        check_weights(cfg)
        return Found(index, identity, None, None)
    refuse_changes(cfg.run.uri, known.get("identity", {}), identity)
    if known["state"] != record.SUCCEEDED:
        return Found(index, identity, known, None)
    log.say(f"{cfg.run.uri} is finished since step {known['step']}; nothing to do. For a new run give another run.uri")
    return Found(index, identity, known, {k: known.get(k) for k in SUMMARY})


def check_weights(cfg: Config) -> None:
    """Raises UserError when nothing is where a new run's weights should come from."""
    parent, weights = cfg.train.init_from, cfg.model.weights
    if parent and not storage.exists(parent):
        raise CheckpointError(f"train.init_from {parent!r}: there is nothing; give the run.uri of a training")
    if weights and "://" in weights and not storage.exists(weights):
        raise ConfigError(f"model.weights {weights!r}: there is nothing; give a folder with config.json and weights")


def open_run(cfg: Config, world: World) -> Opening:
    """Looks at what is there, and claims the next attempt at the run. Rank 0 only."""
    found = look(cfg, world.num_ranks)
    index, known, identity = found.index, found.known, found.identity
    if found.finished:
        return Opening(index, finished=found.finished)
    newest = checkpoint.newest(cfg.run.uri, log.say)
    if newest is None and checkpoint.committed(cfg.run.uri):
        raise CheckpointError(
            f"{cfg.run.uri}: none of its checkpoints is whole (see the warnings above). Mend them, delete its folder "
            "`checkpoints` to begin at step 0, or give another run.uri"
        )
    if known is None and newest is not None:  # run.json was lost
        refuse_changes(cfg.run.uri, checkpoint.load_state(newest).get("identity", {}), identity)
    again = known is not None and world.launch != "" and known.get("launch") == world.launch  # it has ended the others
    if known and not again and known["state"] == record.RUNNING and (silent := time.time() - known["heartbeat"]) < 60:
        log.say(
            f"warning: attempt {known['attempt']} gave a sign of life {silent:.0f} s ago; if it still runs, it will stop now"
        )
    check_health(cfg, index)
    parent = checkpoint.resolve(cfg.train.init_from) if cfg.train.init_from and not newest else None
    attempt = record.claim_attempt(cfg.run.uri)
    facts = {"identity": identity, "parent": parent or (known or {}).get("parent"), "versions": record.versions()}
    facts["launch"] = world.launch
    text = f"# {record.to_json(facts['versions'])}\n" + yaml.safe_dump(config.to_tree(cfg), sort_keys=False)
    storage.write(storage.join(cfg.run.uri, "config.yaml"), text.encode())
    contract = {"identity": identity, "config": config.to_tree(cfg), "labels": index.contract, **facts}
    val_digest = scored_on(cfg, index)
    best = checkpoint.read_best(cfg.run.uri, val_digest)
    step = checkpoint.step_of(newest)
    due = step is not None and (step % cfg.eval.every_steps == 0 or step == cfg.train.num_steps)
    unscored = newest is not None and due and checkpoint.scores_of(newest) is None
    return Opening(index, attempt, newest, best, unscored, parent, val_digest, contract, facts)


def check_health(cfg: Config, index: Index) -> None:
    """Says what may spoil the run. Raises DataError when its scores could not be trusted."""
    for finding in health.from_index(index, cfg.data.train_split):
        if finding.severity in ("warning", "error"):
            log.say(f"warning: {finding.text} ({finding.remedy}; more by `segdist doctor`)")
    tested = health.self_test(cfg.data.uri, index, cfg.data.val_split, cfg.io, 1, SELF_TEST_BYTES)
    if tested.severity == "note":
        log.say(f"self-test {tested.text}; {tested.remedy}")
    if tested.severity == "error":
        raise DataError(f"{cfg.data.uri}: {tested.text}; {tested.remedy}")


def refuse_changes(run_uri: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError, with the differences, when a run would go on as another run."""
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


def train_stream(cfg: Config, index: Index, groups: range, world: World) -> TrainStream:
    """The stream of this rank's micro-batches."""
    source = Source(cfg.data.uri, index, cfg.data.train_split)
    order, size = training_order(cfg, index), cfg.train.micro_batch_size
    return TrainStream(source, order, index.labels, cfg.data, cfg.io, groups, size, pin=world.device.type == "cuda")


def starting_model(cfg: Config, run: Opening) -> Segmenter:
    """The model of a run: rebuilt for its checkpoint, or new, with its parent's weights if it has one."""
    torch.manual_seed(int(key(cfg.train.seed, 5) >> 1))
    if run.checkpoint:
        model = models.rebuild(checkpoint.load_state(run.checkpoint)["arch"])
        model.notes = [f"continues {run.checkpoint}"]
        return model
    model = models.build(cfg.model, run.index.labels.names)
    if run.parent:
        model.notes = checkpoint.load_fitting(run.parent, model)
    return model


def agree(wish: str | None, tally: torch.Tensor, world: World) -> tuple[torch.Tensor, bool, bool]:
    """(the sum of all ranks' tallies, whether any wishes for a checkpoint, for a stop), by one small all-reduce on the CPU."""
    votes = torch.tensor([wish == "checkpoint", wish == "stop"], dtype=torch.int64)
    total = world.sum(torch.cat([votes, tally]))
    return total[2:], bool(total[0]), bool(total[1])


def score(
    cfg: Config,
    model: Segmenter,
    run: Opening,
    world: World,
    book: log.Logbook,
    keeper: checkpoint.Keeper,
    alarm: DeadClasses,
    tell: Tell,
    step: int,
    best: float | None,
) -> float | None:
    """Evaluates the weights after `step`, which are committed or about to be; the best mIoU so far. All ranks must call it."""
    scored = validate(cfg, model, run.index, world)
    book.log(step, "eval", scored)
    book.say(f"step {step}/{cfg.train.num_steps}  val mIoU {scored['miou']:.4f}")
    for warning in alarm.hear(scored["accuracy"]):
        book.say(warning)
    if world.is_first:
        keeper.mark_best(step, scored["miou"], run.val_digest)
    if checkpoint.is_better(scored["miou"], best):
        best = scored["miou"]
        book.update(miou=best, best_step=step)
    book.flush()
    tell({"step": step, "miou": scored["miou"], "loss": scored["loss"]})
    return best


def check_finite(row: dict[str, Any], step: int, newest: str | None) -> None:
    """Raises UserError when the training has diverged."""
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        where = f"the newest checkpoint, {newest}, is from before" if newest else "there is no checkpoint yet"
        raise UserError(
            f"loss {row['loss']}, gradient norm {row['grad_norm']} at step {step}: the training has diverged; {where}. "
            "Lower optim.lr, set optim.clip_grad_norm=1, lengthen optim.warmup_steps, or use train.precision=fp32"
        )


def check_written(keeper: checkpoint.Keeper, step: int, lost: list[str]) -> None:
    """Raises StorageError when the last checkpoint, or anything else of the run, could not be written."""
    if checkpoint.step_of(keeper.newest) == step and not lost:
        return
    what = "its checkpoint" if checkpoint.step_of(keeper.newest) != step else ", ".join(lost)
    raise StorageError(
        f"training reached step {step}, but {what} could not be written (see the warnings above); the newest committed "
        f"checkpoint is {keeper.newest}. Mend the storage and give the same command: the run goes on from there"
    )


SUMMARY = (
    "run_uri", "state", "step", "miou", "best_step", "best_checkpoint", "images_per_second", "wait_share", "restarts",
)  # fmt: skip


def summarise(cfg: Config, attempt: int, done: int, keeper: checkpoint.Keeper) -> dict[str, Any]:
    """What `segdist train --json` prints; `miou` is that of the best checkpoint."""
    kept = keeper.best
    return {
        "run_uri": cfg.run.uri,
        "state": record.SUCCEEDED if done == cfg.train.num_steps else record.PREEMPTED,
        "step": done,
        "miou": kept and kept["miou"],
        "best_step": kept and kept["step"],
        "best_checkpoint": storage.join(cfg.run.uri, kept["checkpoint"]) if kept else None,
        "restarts": attempt - 1,
    }


def farewell(summary: dict[str, Any], superseded: bool) -> str:
    """How an attempt ends, and what to do next, for a person."""
    if superseded:
        return f"{summary['run_uri']}: a newer attempt has taken this run over, so this one stops; leave it to that one"
    score = "" if summary["miou"] is None else f"; best mIoU {summary['miou']:.4f}, after step {summary['best_step']}"
    more = "" if summary["state"] == record.SUCCEEDED else ", as asked. The same command goes on from here"
    return f"{summary['run_uri']}: {summary['state']} at step {summary['step']}{score}{more}"


def describe(cfg: Config, world: World, model: Segmenter, run: Opening, start: int) -> str:
    """What a person wants to know before the first step."""
    split = run.index.split(cfg.data.train_split)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return "\n".join(
        [
            f"run {cfg.run.uri}, attempt {run.attempt}: steps {start} to {cfg.train.num_steps}",
            f"data {run.index.name}: {split.num_samples} samples to train on, {run.index.labels.num_classes} classes",
            f"model {model.arch['name']}, {size:.1f} M parameters; " + "; ".join(model.notes),
            f"{world.num_ranks} rank(s) on {world.device.type}, strategy {resolve(cfg.train.strategy, world.device)}, "
            f"{cfg.train.precision}; batch {cfg.train.global_batch_size} = {cfg.train.num_groups} x "
            f"{cfg.train.micro_batch_size}",
        ]
    )
