"""One training run, top to bottom: `fit`. It does not depend on who launched it.

The caller passes two functions. `tell(metrics)` is called after each evaluation, equally often on every rank. `notice()`
returns None, "checkpoint" or "stop". The ranks agree on a notice with votes that ride on the all-reduce of each step's pixel
counts. That all-reduce runs on the CPU, so no step waits for the device.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from segdist import storage
from segdist.config import Config
from segdist.distributed import World
from segdist.errors import UnwrittenError, UserError
from segdist.runs import checkpoints, record, snapshot
from segdist.runs.checkpoint_manager import CheckpointManager
from segdist.runs.run_log import RunLogger
from segdist.step import loss, optim
from segdist.step.update import Step, determinism
from segdist.train.agreement import Notice, agree
from segdist.train.build import build_model, check_sizes, describe, train_stream
from segdist.train.meter import Meter
from segdist.train.setup import inspect_run, open_run, resolve_auto, training_order
from segdist.train.validation import Tell, Validation


def fit(cfg: Config, world: World, tell: Tell = lambda metrics: None, notice: Notice = lambda: None) -> dict[str, Any]:
    """Train from the latest checkpoint until the run is complete or a stop is requested, and return the run's summary.

    All ranks must call it. Raises UserError before the first step if the config, the data or the storage is unusable.
    """
    state = world.from_first(lambda: inspect_run(cfg, world.num_ranks))
    if state.summary is not None:  # the run is complete
        return state.summary
    cfg = resolve_auto(state.cfg, state.index, world)
    run, num_steps = world.from_first(lambda: open_run(cfg, state, world)), cfg.train.num_steps
    stored = snapshot.load(run.checkpoint) if run.checkpoint else None
    start = stored.state["step"] if stored else 0
    model = build_model(cfg, run, stored).to(world.device).train()
    epoch_steps = training_order(cfg, run.index).steps_per_epoch
    description = describe(cfg, world, model, run, start, epoch_steps)  # before ZeRO divides the weights
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = loss.Criterion(cfg.loss, run.index.split(cfg.data.train_split).class_pixels)
    check_sizes(cfg, run.index, model)
    train_step = Step(model, optimizer, cfg.train, cfg.optim, criterion, world, start)
    if stored:
        train_step.load(stored)
        del stored
    stream = train_stream(cfg, run.index, world.share(cfg.train.num_micro_batches), world, criterion.count)

    with (
        contextlib.closing(train_step),
        determinism(cfg.train, world.device),
        RunLogger(cfg.run.uri, run.attempt, run.facts, num_steps, start, world.is_first) as logger,
        contextlib.closing(stream.steps(start, num_steps)) as batches,
    ):
        manager = CheckpointManager(
            cfg.run.uri, run.attempt, cfg.checkpoint.keep_last, logger.writer, logger.owns_run, run.checkpoint, run.best
        )
        meter = Meter(cfg.train.global_batch_size, num_steps)
        validation = Validation(cfg, run, world, train_step, logger, manager, tell)
        done, stop = start, False
        logger.say(description)
        logger.begin(model.origin, model.tensors)
        if run.unscored:  # the previous attempt ended between a commit and its evaluation
            validation.score(done)
        while done < num_steps and not stop:
            with meter.waiting():
                batch = next(batches)
            wish = "stop" if logger.superseded else notice()
            tally, saves, stop = agree(wish, criterion.total([micro_batch.count for micro_batch in batch]), world)
            lr = optim.lr_at(cfg.optim, done, num_steps)
            optim.set_lr(optimizer, lr)
            meter.count(*train_step(done, batch, criterion.divisors(tally)))
            done += 1

            evaluates = done == num_steps or (done % cfg.eval.every_steps == 0 and not stop)
            commits = evaluates or stop or saves or done % cfg.checkpoint.every_steps == 0
            if done % cfg.log.every_steps == 0 or commits:  # all ranks; only rank 0 logs
                row = meter.row(done) | {"lr": lr, "epoch": done / epoch_steps}
                check_finite(row, done, manager.newest)
                logger.log(done, "train", row)
                logger.show(done, num_steps, row, checkpoints.step_of(manager.newest), validation.best)
            if commits:  # all ranks, since each may hold a part; before the evaluation, which may take long or fail
                taken = train_step.snapshot(run.contract | {"step": done, "arch": model.arch, "initial": model.origin})
                if world.is_first:
                    manager.put(taken.copied())
                    logger.flush()
            if evaluates:  # all ranks
                with meter.paused():
                    validation.score(done)
        return close(cfg, run.attempt, done, manager, meter, logger)


def close(
    cfg: Config, attempt: int, done: int, manager: CheckpointManager, meter: Meter, logger: RunLogger
) -> dict[str, Any]:
    """Wait until everything is written, record the summary in run.json, and return it. Raises UnwrittenError."""
    logger.flush()
    lost = logger.writer.finish()
    if logger.active and not logger.superseded:
        check_written(manager, done, lost)
    summary = summarise(cfg, attempt, done, manager) | meter.summary()
    logger.update(**summary)
    if logger.active and not logger.superseded:
        check_written(manager, done, logger.writer.finish())
    logger.say(closing_message(summary, logger.superseded))
    return summary


def check_finite(row: dict[str, Any], step: int, newest: str | None) -> None:
    """Raise UserError if the loss or the gradient norm is not finite."""
    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
        where = f"The newest checkpoint from before that is {newest}" if newest else "There is no checkpoint yet"
        raise UserError(
            f"Training diverged at step {step}: loss {row['loss']}, gradient norm {row['grad_norm']}. {where}. Lower optim.lr, "
            "set optim.clip_grad_norm=1, increase optim.warmup_steps, or use train.precision=fp32"
        )


def check_written(manager: CheckpointManager, step: int, lost: list[str]) -> None:
    """Raise UnwrittenError if the last checkpoint, or anything else of the run, could not be written."""
    if checkpoints.step_of(manager.newest) == step and not lost:
        return
    what = "its checkpoint" if checkpoints.step_of(manager.newest) != step else ", ".join(lost)
    raise UnwrittenError(
        f"Training reached step {step}, but {what} could not be written (see the warnings above). The newest committed "
        f"checkpoint is {manager.newest}. Fix the storage, then run the same command to continue from there"
    )


def summarise(cfg: Config, attempt: int, done: int, manager: CheckpointManager) -> dict[str, Any]:
    """Return what `segdist train --json` prints. `miou` is the score of the best checkpoint."""
    best = manager.best
    return {
        "run_uri": cfg.run.uri,
        "state": record.SUCCEEDED if done == cfg.train.num_steps else record.PREEMPTED,
        "step": done,
        "miou": best and best["miou"],
        "best_step": best and best["step"],
        "best_checkpoint": storage.join(cfg.run.uri, best["checkpoint"]) if best else None,
        "restarts": attempt - 1,
    }


def closing_message(summary: dict[str, Any], superseded: bool) -> str:
    """Return one line for people: how the attempt ended, and what to do next."""
    uri = summary["run_uri"]
    if superseded:
        return f"{uri}: a newer attempt owns this run now, so this attempt stops. Let the newer one finish."
    score = "" if summary["miou"] is None else f"; best mIoU {summary['miou']:.4f} at step {summary['best_step']}"
    again = "" if summary["state"] == record.SUCCEEDED else ". Stopped on request; run the same command to continue"
    return f"{uri}: {summary['state']} at step {summary['step']}{score}{again}"
