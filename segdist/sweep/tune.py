"""Run a sweep from its checks to its best values: `tune`."""

from __future__ import annotations

import itertools
import time
from typing import Any

from segdist import config, console, storage
from segdist.config import Config
from segdist.errors import ConfigError, UnavailableError, UserError
from segdist.runs import record, segments
from segdist.sweep import best
from segdist.sweep import ledger as ledgers
from segdist.sweep.ledger import FAILED, RUNNING, STOPPED, SUCCEEDED, WAITING, Ledger, Trial, describe_score
from segdist.sweep.plan import Plan, check, spent_budget
from segdist.sweep.search import num_trials, points_to_check, propose
from segdist.sweep.space import format_values

PLOT = "sweep.png"
_RAY_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our runs have their own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # we handle Ctrl-C ourselves
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no score
    "TUNE_WARN_THRESHOLD_S": "60",  # the ledger may wait for storage
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tune(plan: Plan, retry_failed: bool = False) -> dict[str, Any]:
    """Run a sweep from where it stands until it is finished or a stop is requested, and return its summary.

    Raises UserError before the first trial if a trial that is known in advance could not run, and when all trials fail for
    the same reason.
    """
    from segdist.launch.ray_cluster import connect

    uri = plan.sweep.uri
    found = ledgers.load(uri)
    if found:
        check_unchanged(uri, found["identity"], identity_of(plan))
    if found and found["state"] == SUCCEEDED and not _has_work_left(plan, found, retry_failed):
        why = f" ({found['reason']})" if found["reason"] else ""
        console.say(
            f"{uri} is finished{why}. Nothing to do. For more trials, raise the budget. For a new sweep, use another uri"
        )
        return summary(uri, found)
    index = check(plan)
    cfg = plan.config(points_to_check(plan.sweep, 1)[0], uri)  # used only for fields that all trials share
    storage.check_absolute(uri, cfg.data.uri)
    data = {split: index.digest(split) for split in (cfg.data.train_split, cfg.data.val_split)}
    if found:
        check_unchanged(uri, {"data": found["data"]}, {"data": data})
    connect(_RAY_SETTINGS)
    import ray

    try:
        from segdist.sweep.capacity import check_capacity

        check_capacity(plan, cfg.scale)
        ledger = open_ledger(plan, data, retry_failed)
        state, reason = _run(plan, ledger, cfg)
    finally:
        ray.shutdown()
    return _finish(plan, ledger, state, reason)


def _run(plan: Plan, ledger: Ledger, cfg: Config) -> tuple[str, str | None]:
    """Run all trials, then the confirmations of the best ones. Return (the sweep's state, the reason for it)."""
    from segdist.sweep.capacity import max_running_trials
    from segdist.sweep.driver import TrialRunner

    runner = TrialRunner(plan, ledger, cfg.scale, cfg.train.num_steps, cfg.eval.every_steps)
    console.say(
        f"sweep {plan.sweep.uri}, launch {ledger.attempt}: {len(ledger.searched)} of {num_trials(plan.sweep)} trials "
        f"started before, {max_running_trials(plan, cfg.scale, runner.need)} at a time, searcher {plan.sweep.searcher}, "
        f"scheduler {plan.sweep.scheduler.name}"
    )
    runner.run(lambda: _next_trial(plan, ledger))
    if runner.stopping is None:
        confirmations = _add_confirmations(plan, ledger)
        if any(trial.state == WAITING for trial in confirmations):
            runner.run(lambda: None, scheduled=False)
    if runner.stopping is None and any(trial.state == WAITING for trial in ledger.trials):
        return record.PREEMPTED, "some trials were interrupted"
    if runner.stopping is None:
        return (SUCCEEDED, None) if any(trial.scores for trial in ledger.trials) else (FAILED, "no trial has a score")
    kind, reason = runner.stopping
    if kind == "asked":
        return record.PREEMPTED, "a stop was requested. Run the same command to continue"
    return (SUCCEEDED if kind == "budget" else FAILED), reason


def _next_trial(plan: Plan, ledger: Ledger) -> Trial | None:
    """Propose a trial and save it, so that no later launch gives its number again. None if there are no more."""
    point = propose(plan.sweep, ledger.searched)
    if point is None:
        if len(ledger.searched) < num_trials(plan.sweep):
            console.say(f"every point of the space has been tried: {len(ledger.searched)} trials")
        return None
    id = f"{len(ledger.searched):04d}"
    trial = Trial(id, point, f"trials/{id}")
    ledger.trials.append(trial)
    try:
        ledger.save()
    except UnavailableError:
        ledger.trials.remove(trial)
        raise
    return trial


def _add_confirmations(plan: Plan, ledger: Ledger) -> list[Trial]:
    """Add the trials that repeat the best ones with other seeds, and stop those that are no longer needed."""
    confirmations = best.confirmations(plan, ledger)
    for trial in ledger.trials:
        if trial.confirms and trial.state == WAITING and trial not in confirmations:
            trial.state, trial.reason = STOPPED, "the trial that it confirms is no longer among the best"
    fresh = [trial for trial in confirmations if trial not in ledger.trials]
    if fresh:
        num = len({trial.confirms for trial in confirmations})
        console.say(f"confirming the best {num} trial(s) with other seeds")
        ledger.trials += fresh
        ledger.save()
    return confirmations


def _finish(plan: Plan, ledger: Ledger, state: str, reason: str | None) -> dict[str, Any]:
    """Name the best trial, write best.yaml, the plot and the end of the sweep, and return the summary."""
    uri, named = plan.sweep.uri, best.name_best(plan, ledger)
    if named:
        console.say(f"written: {best.write_config(plan, named)}")
    write_plot(uri, ledger, named)
    if plan.sweep.scheduler.name == "pbt" and not ledger.exploits:
        console.say("warning: no trial continued from another trial's weights, so PBT was only a random search")
    if named:
        score = describe_score(named, plan.sweep.metric)
        console.say(f"best: trial {named['trial']}, {score}: {format_values(named['values'])}")
    if state == SUCCEEDED and named:
        console.say(f"to train these values at full length: segdist train --from-sweep {uri}")
    if state == record.PREEMPTED:
        console.say(f"{uri} is not finished. Run the same command to continue")
    ledger.facts |= {"state": state, "reason": reason, "best": named}
    ledger.save()  # last, so that a kill before this leaves the sweep unfinished
    if state == FAILED:
        raise UserError(f"{uri}: {reason}")
    tree = ledgers.load(uri)
    assert tree is not None
    return summary(uri, tree)


def write_plot(uri: str, ledger: Ledger, named: dict[str, Any] | None) -> None:
    """Write the sweep's plot. Only warn if it cannot be drawn or written."""
    from segdist.sweep.plot import plot_png

    address = storage.join(uri, PLOT)
    try:
        storage.write(address, plot_png({**ledger.facts, "best": named}, ledger.trials, uri))
        console.say(f"written: {address}")
    except Exception as error:
        console.say(f"warning: {address} could not be written: {error}")


def open_ledger(plan: Plan, data: dict[str, str], retry_failed: bool) -> Ledger:
    """Claim the sweep for a new launch, and return its ledger.

    Interrupted trials wait again, with the scores that their runs have recorded. Raises ConfigError if the URI holds a run.
    """
    uri = plan.sweep.uri
    storage.check_writable(uri)
    if storage.exists(storage.join(uri, record.NAME)):
        raise ConfigError(f"uri {uri}: this folder holds a run. Use another folder for the sweep")
    attempt = record.claim_attempt(uri)
    found = ledgers.load(uri)  # after the claim, when no older launch writes it any more
    if found is None:
        found = {"version": 1, "metric": plan.sweep.metric, "began": time.time(), "seconds": 0.0, "data": data}
        found |= {"trials": [], "exploits": [], "best": None}
    found |= {"state": RUNNING, "reason": None, "num_trials": num_trials(plan.sweep), "identity": identity_of(plan)}
    found |= {"dollars_per_hour": plan.sweep.budget.dollars_per_hour, "scheduler": plan.sweep.scheduler.name}
    found |= {"num_ranks": plan.num_ranks}  # of one trial
    ledger = Ledger(uri, found, attempt)
    for trial in ledger.trials:
        if trial.state in (RUNNING, WAITING) or (retry_failed and trial.state == FAILED):
            _read_run(ledger, trial)
    ledger.save()
    return ledger


def _read_run(ledger: Ledger, trial: Trial) -> None:
    """Let an unfinished trial wait again, and add the scores that its run recorded after the ledger's last save."""
    run = ledger.run_uri(trial)
    trial.state, trial.reason = WAITING, None
    known = record.load(run)
    if known is None:
        return
    for row in segments.read_metrics(run):
        if row["kind"] == "eval" and trial.offset + row["step"] > trial.step:
            trial.add_score(trial.offset + row["step"], row["miou"], row["loss"])
    if known["state"] == record.SUCCEEDED:
        trial.state = SUCCEEDED
        console.say(
            f"trial {trial.id} finished after the previous driver last saved its state: {format_values(trial.values)}"
        )


def identity_of(plan: Plan) -> dict[str, Any]:
    """Return the settings that decide which trials a sweep has and how they are scored."""
    tree = config.to_tree(plan.sweep)
    return {key: tree[key] for key in ("space", "metric", "searcher", "scheduler", "seed")} | {
        "config": plan.identity()
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def check_unchanged(uri: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError that lists the differences if a sweep would continue with other settings or data."""
    before, now = _flat(before), _flat(now)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {before.get(key)} -> {now.get(key)}" for key in changed)
        raise ConfigError(
            f"{uri} was started with other settings or data, so its trials would not be comparable:{lines}\n"
            "Undo these changes to continue the sweep, or use another uri"
        )


def _has_work_left(plan: Plan, found: dict[str, Any], retry_failed: bool) -> bool:
    """Return whether a finished sweep has something left to do."""
    if found["best"] and not storage.exists(storage.join(plan.sweep.uri, best.YAML)):
        return True
    trials = ledgers.trials_of(found)
    if spent_budget(plan, found["seconds"], trials):
        return False
    searched = [trial for trial in trials if trial.confirms is None]
    more = num_trials(plan.sweep) > max(len(searched), found["num_trials"]) or found["reason"] is not None
    return more or any(trial.state == WAITING or (retry_failed and trial.state == FAILED) for trial in trials)


def summary(uri: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Return what `segdist tune --json` prints."""
    states = [one["state"] for one in tree["trials"] if one["confirms"] is None]
    named = tree["best"] or {}
    return {
        "sweep_uri": uri,
        "state": tree["state"],
        "trials": {state: len(list(same)) for state, same in itertools.groupby(sorted(states))},
        "metric": tree["metric"],
        "best_trial": named.get("trial"),
        "best_score": named.get("score"),
        "best_values": named.get("values"),
        "best_config": storage.join(uri, best.YAML) if named else None,
        "best_checkpoint": storage.join(uri, named["checkpoint"]) if named.get("checkpoint") else None,
        "seconds": tree["seconds"],
    }
