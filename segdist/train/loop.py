"""One run, top to bottom: `fit`. It knows nothing of who launched it.

`tell(metrics)` is called at evaluations only, equally often on every rank. `notice()` answers None, "checkpoint" or
"stop"; the ranks agree on it by votes that ride on the all-reduce of the step's pixel counts, which stays on the CPU, so that
no step waits for the device to answer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch

from segdist import config, console, models, storage
from segdist.config import Config
from segdist.data.augment import model_size
from segdist.data.cache import cache_of
from segdist.data.index import Index
from segdist.data.order import key
from segdist.data.source import Source
from segdist.data.stream import TrainStream
from segdist.distributed import World
from segdist.errors import UnwrittenError, UserError
from segdist.evaluation import figures, previews
from segdist.evaluation.previews import Previews
from segdist.evaluation.report import validate
from segdist.models.segmenter import Segmenter
from segdist.runs import checkpoints, record, snapshot
from segdist.runs.checkpoint_manager import CheckpointManager
from segdist.runs.restore import begin, initial_of
from segdist.runs.run_log import RunLogger
from segdist.step import loss, optim
from segdist.step.update import Step, kernels, strategy_of
from segdist.train.dead_classes import DeadClasses
from segdist.train.meter import Meter
from segdist.train.setup import Opening, look, open_run, settle, training_order

Tell = Callable[[dict[str, Any]], Any]
Notice = Callable[[], Literal["checkpoint", "stop"] | None]


def fit(cfg: Config, world: World, tell: Tell = lambda metrics: None, notice: Notice = lambda: None) -> dict[str, Any]:
    """Trains to the end, or as far as `notice` allows, from wherever the run stands; the summary of the run.

    Raises UserError before the first step when the run cannot be made. All ranks must call it.
    """
    found = world.from_first(lambda: look(cfg, world.num_ranks))
    if found.finished is not None:
        return found.finished
    cfg = settle(found.cfg, found.index, world)
    run, num_steps = world.from_first(lambda: open_run(cfg, found, world)), cfg.train.num_steps
    before = snapshot.load(run.checkpoint) if run.checkpoint else None
    start = before.state["step"] if before else 0
    model = starting_model(cfg, run, before).to(world.device).train()
    epoch_steps = training_order(cfg, run.index).steps_per_epoch
    about = describe(cfg, world, model, run, start, epoch_steps)  # of whole weights, which ZeRO divides
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = loss.Criterion(cfg.loss, run.index.split(cfg.data.train_split).class_pixels)
    check_sizes(cfg, run.index, model)
    update = Step(model, optimizer, cfg.train, cfg.optim, criterion, world, start)
    if before:
        update.load(before)
        del before
    stream = train_stream(cfg, run.index, world.share(cfg.train.num_groups), world, criterion.count)

    with (
        contextlib.closing(update),
        kernels(cfg.train, world.device),
        RunLogger(cfg.run.uri, run.attempt, run.facts, num_steps, start, world.is_first) as book,
        contextlib.closing(stream.steps(start, num_steps)) as batches,
    ):
        keeper = CheckpointManager(
            cfg.run.uri, run.attempt, cfg.checkpoint.keep_last, book.writer, book.owns_run, run.checkpoint, run.best
        )
        meter = Meter(cfg.train.global_batch_size, num_steps)
        best: float | None = run.best["miou"] if run.best else None
        done, stop = start, False
        alarm = DeadClasses(cfg, run.index)
        book.say(about)
        book.begin(model.origin, model.tensors)
        if run.unscored:  # the attempt before ended between its commit and its evaluation
            best = score(cfg, update, run, world, book, keeper, alarm, tell, done, best)
        while done < num_steps and not stop:
            with meter.waiting():
                batch = next(batches)
            wish = "stop" if book.superseded else notice()
            tally, saves, stop = agree(wish, criterion.total([group.count for group in batch]), world)
            lr = optim.lr_at(cfg.optim, done, num_steps)
            optim.set_lr(optimizer, lr)
            meter.count(*update(done, batch, criterion.divisors(tally)))
            done += 1

            evaluates = done == num_steps or (done % cfg.eval.every_steps == 0 and not stop)
            commits = evaluates or stop or saves or done % cfg.checkpoint.every_steps == 0
            if done % cfg.log.every_steps == 0 or commits:  # all ranks; rank 0 speaks
                row = meter.row(done) | {"lr": lr, "epoch": done / epoch_steps}
                check_finite(row, done, keeper.newest)
                book.log(done, "train", row)
                book.show(done, num_steps, row, checkpoints.step_of(keeper.newest), best)
            if commits:  # all ranks, for they may hold parts of it; before the evaluation, which may be long, or fail
                taken = update.snapshot(run.contract | {"step": done, "arch": model.arch, "initial": model.origin})
                if world.is_first:
                    keeper.put(taken.copied())
                    book.flush()
            if evaluates:  # all ranks
                with meter.paused():
                    best = score(cfg, update, run, world, book, keeper, alarm, tell, done, best)

        book.flush()
        lost = book.writer.finish()
        if world.is_first and not book.superseded:
            check_written(keeper, done, lost)
        summary = summarise(cfg, run.attempt, done, keeper) | meter.summary()
        book.update(**summary)
        if world.is_first and not book.superseded:
            check_written(keeper, done, book.writer.finish())
        book.say(closing_message(summary, book.superseded))
    return summary


def train_stream(
    cfg: Config, index: Index, groups: range, world: World, count: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> TrainStream:
    """The stream of this rank's micro-batches."""
    source = Source(cfg.data.uri, index, cfg.data.train_split, cache_of(cfg.data.uri, cfg.io))
    order, size = training_order(cfg, index), cfg.train.group_size
    return TrainStream(source, order, index.labels, cfg.data, cfg.io, groups, size, world.device.type == "cuda", count)


def check_sizes(cfg: Config, index: Index, model: Segmenter) -> None:
    """Raises ConfigError when a model of one size would see larger images, in training or in evaluation."""
    model.traits.check(*cfg.data.crop_size)
    largest = model_size(cfg.data.image_size, *index.split(cfg.data.val_split).largest)
    model.traits.check(*(largest if cfg.eval.mode == "whole" else cfg.eval.window_size or cfg.data.crop_size))


def starting_model(cfg: Config, run: Opening, before: snapshot.Snapshot | None) -> Segmenter:
    """The model of a run: as it was in its checkpoint, or new, with its parent's weights if it has one."""
    torch.manual_seed(int(key(cfg.train.seed, 5) >> 1))
    if before:
        model = models.rebuild(before.state["arch"])
        model.load_state_dict(before.model)
        model.notes, model.origin = [f"continues {run.checkpoint}"], initial_of(before.state)
        return model
    return begin(config.changed(cfg, "model", run.pinned), run.index.labels.names, run.parent)


def agree(wish: str | None, tally: torch.Tensor, world: World) -> tuple[torch.Tensor, bool, bool]:
    """(the sum of all ranks' tallies, whether any wishes for a checkpoint, for a stop), by one small all-reduce on the CPU."""
    votes = torch.tensor([wish == "checkpoint", wish == "stop"], dtype=torch.int64)
    total = world.sum(torch.cat([votes, tally]))
    return total[2:], bool(total[0]), bool(total[1])


def score(
    cfg: Config,
    update: Step,
    run: Opening,
    world: World,
    book: RunLogger,
    keeper: CheckpointManager,
    alarm: DeadClasses,
    tell: Tell,
    step: int,
    best: float | None,
) -> float | None:
    """Evaluates the weights after `step`, which are committed or about to be; the best mIoU so far. All ranks must call it."""
    shown = Previews(run.index.split(cfg.data.val_split).num_samples, cfg.eval.num_previews, cfg.eval.num_samples)
    scored = validate(cfg, update.eval_model(), run.index, world, shown)
    if drawn := shown.gather(world):
        put_previews(cfg.run.uri, book, drawn, run.index, step, scored["miou"])
    book.log(step, "eval", {key: value for key, value in scored.items() if key != "confusion"})
    book.say(f"step {step}/{cfg.train.num_steps}  val mIoU {scored['miou']:.4f}")
    for warning in alarm.update(scored["accuracy"]):
        book.say(warning)
    if world.is_first:
        keeper.mark_scored(step, scored, run.val_digest)
    if checkpoints.is_better(scored["miou"], best):
        best = scored["miou"]
        book.update(miou=best, best_step=step)
    book.flush()
    tell({"step": step, "miou": scored["miou"], "loss": scored["loss"]})
    return best


def put_previews(
    run_uri: str, book: RunLogger, drawn: list[previews.Preview], index: Index, step: int, miou: float
) -> None:
    """Puts a picture of an evaluation on its way. One that cannot be drawn or written is a warning, and never ends a run."""

    def draw() -> None:
        try:
            grid = previews.grid(drawn, index.labels, f"step {step}: mIoU {miou:.4f}")
            if book.owns_run():
                storage.write(storage.join(run_uri, previews.FOLDER, f"step-{step:08d}.png"), figures.png(grid))
        except Exception as error:
            console.say(f"warning: the previews of step {step} are missing: {error}")

    if book.active:
        book.writer.put(f"previews of step {step}", draw)


def check_finite(row: dict[str, Any], step: int, newest: str | None) -> None:
    """Raises UserError when the training has diverged."""
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        where = f"the newest checkpoint, {newest}, is from before" if newest else "there is no checkpoint yet"
        raise UserError(
            f"loss {row['loss']}, gradient norm {row['grad_norm']} at step {step}: the training has diverged; {where}. "
            "Lower optim.lr, set optim.clip_grad_norm=1, lengthen optim.warmup_steps, or use train.precision=fp32"
        )


def check_written(keeper: CheckpointManager, step: int, lost: list[str]) -> None:
    """Raises UnwrittenError when the last checkpoint, or anything else of the run, could not be written."""
    if checkpoints.step_of(keeper.newest) == step and not lost:
        return
    what = "its checkpoint" if checkpoints.step_of(keeper.newest) != step else ", ".join(lost)
    raise UnwrittenError(
        f"training reached step {step}, but {what} could not be written (see the warnings above); the newest committed "
        f"checkpoint is {keeper.newest}. Mend the storage and give the same command: the run goes on from there"
    )


def summarise(cfg: Config, attempt: int, done: int, keeper: CheckpointManager) -> dict[str, Any]:
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


def closing_message(summary: dict[str, Any], superseded: bool) -> str:
    """How an attempt ends, and what to do next, for a person."""
    if superseded:
        return f"{summary['run_uri']}: a newer attempt has taken this run over, so this one stops; leave it to that one"
    score = "" if summary["miou"] is None else f"; best mIoU {summary['miou']:.4f}, after step {summary['best_step']}"
    more = "" if summary["state"] == record.SUCCEEDED else ", as asked. The same command goes on from here"
    return f"{summary['run_uri']}: {summary['state']} at step {summary['step']}{score}{more}"


def describe(cfg: Config, world: World, model: Segmenter, run: Opening, start: int, epoch_steps: int) -> str:
    """What a person wants to know before the first step."""
    split = run.index.split(cfg.data.train_split)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    offload = ", offload" if cfg.train.zero_offload else ""
    strategy = strategy_of(cfg.train.strategy, world.device)
    strategy += f" (ZeRO-{cfg.train.zero_stage}{offload})" if cfg.train.strategy == "deepspeed" else ""
    return "\n".join(
        [
            f"run {cfg.run.uri}, attempt {run.attempt}: steps {start} to {cfg.train.num_steps}",
            f"data {run.index.name}: {split.num_samples} samples to train on, {epoch_steps} steps an epoch, "
            f"{run.index.labels.num_classes} classes",
            f"model {model.arch['name']}, {size:.1f} M parameters; " + "; ".join(model.notes),
            f"{world.num_ranks} rank(s) on {world.device.type}, strategy {strategy}, {cfg.train.precision}; "
            f"batch {cfg.train.global_batch_size} = {cfg.train.num_groups} x {cfg.train.group_size}",
        ]
    )
