"""A sweep, from the first look at what is there to the best values: `tune`."""

from __future__ import annotations

import itertools
import time
from typing import Any

from segdist import config, console, storage
from segdist.config import Config
from segdist.errors import ConfigError, UnavailableError, UserError
from segdist.runs import record, segments
from segdist.sweep import best, ledger
from segdist.sweep.ledger import FAILED, RUNNING, STOPPED, SUCCEEDED, WAITING, Ledger, Trial, told
from segdist.sweep.plan import Plan, budget_spent, check, shown
from segdist.sweep.search import known_beforehand, num_trials, propose

PICTURE = "sweep.png"
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our runs have records of their own
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a wish to stop is ours to hear
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has no score
    "TUNE_WARN_THRESHOLD_S": "60",  # our ledger may wait for storage
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tune(plan: Plan, retry_failed: bool = False) -> dict[str, Any]:
    """Runs a sweep to its end, or as far as it is let, from wherever it stands; its summary.

    Raises UserError before the first trial when one of those known beforehand could not run, and when all fail alike.
    """
    from segdist.launch.ray_cluster import connect

    uri = plan.sweep.uri
    found = ledger.load(uri)
    if found:
        refuse_changes(uri, found["identity"], identity_of(plan))
    if found and found["state"] == SUCCEEDED and not _wants_more(plan, found, retry_failed):
        why = f" ({found['reason']})" if found["reason"] else ""
        console.say(f"{uri} is finished{why}; nothing to do. More trials: a greater budget. A new sweep: another uri")
        return summary(uri, found)
    index = check(plan)
    cfg = plan.config(known_beforehand(plan.sweep, 1)[0], uri)  # what trials share hangs on none of their values
    storage.check_absolute(uri, cfg.data.uri)
    data = {split: index.digest(split) for split in (cfg.data.train_split, cfg.data.val_split)}
    if found:
        refuse_changes(uri, {"data": found["data"]}, {"data": data})
    connect(_SETTINGS)
    import ray

    try:
        from segdist.sweep.room import check_room

        check_room(plan, cfg.scale)
        book = open_ledger(plan, data, retry_failed)
        state, reason = _run(plan, book, cfg)
    finally:
        ray.shutdown()
    named = best.name_best(plan, book)
    if named:
        console.say(f"written: {best.write_config(plan, named)}")
    put_picture(uri, book, named)
    if plan.sweep.scheduler.name == "pbt" and not book.exploits:
        console.say("warning: no member of the population went on from another's weights, so this was a random search")
    if named:
        console.say(f"best: trial {named['trial']}, {told(named, plan.sweep.metric)}: {shown(named['values'])}")
    if state == SUCCEEDED and named:
        console.say(f"at full length: segdist train --from-sweep {uri}")
    if state == record.PREEMPTED:
        console.say(f"{uri} is not finished; the same command goes on")
    book.facts |= {"state": state, "reason": reason, "best": named}
    book.save()  # when all else is written: a kill before leaves the sweep unfinished
    if state == FAILED:
        raise UserError(f"{uri}: {reason}")
    tree = ledger.load(uri)
    assert tree is not None
    return summary(uri, tree)


def _run(plan: Plan, book: Ledger, cfg: Config) -> tuple[str, str | None]:
    """(the state of the sweep afterwards, why) of all its trials and then of those that confirm the best."""
    from segdist.sweep.driver import Rounds
    from segdist.sweep.room import slots

    rounds = Rounds(plan, book, cfg.scale, cfg.train.num_steps, cfg.eval.every_steps)
    console.say(
        f"sweep {plan.sweep.uri}, launch {book.attempt}: {len(book.searched)} of {num_trials(plan.sweep)} trials known, "
        f"{slots(plan, cfg.scale, rounds.need)} at a time; searcher {plan.sweep.searcher}, "
        f"scheduler {plan.sweep.scheduler.name}"
    )

    def following() -> Trial | None:
        point = propose(plan.sweep, book.searched)
        if point is None:
            if len(book.searched) < num_trials(plan.sweep):
                console.say(f"every point of the space has been tried: {len(book.searched)} trials")
            return None
        id = f"{len(book.searched):04d}"
        trial = Trial(id, point, f"trials/{id}")
        book.trials.append(trial)
        try:
            book.save()  # before it begins, so that nobody gives its number again
        except UnavailableError:
            book.trials.remove(trial)
            raise
        return trial

    rounds.run(following)
    if rounds.stopping is None:
        again = best.confirmations(plan, book)
        for trial in book.trials:
            if trial.confirms and trial.state == WAITING and trial not in again:
                trial.state, trial.reason = STOPPED, "what it confirms is no longer among the best"
        fresh = [trial for trial in again if trial not in book.trials]
        if fresh:
            console.say(f"the best {len({trial.confirms for trial in again})} are trained again with another seed")
            book.trials += fresh
            book.save()
        if any(trial.state == WAITING for trial in again):
            rounds.run(lambda: None, judged=False)
    if rounds.stopping is None and any(trial.state == WAITING for trial in book.trials):
        return record.PREEMPTED, "some trials ended before their time"
    if rounds.stopping is None:
        return (SUCCEEDED, None) if any(trial.scores for trial in book.trials) else (FAILED, "no trial has a score")
    kind, why = rounds.stopping
    if kind == "asked":
        return record.PREEMPTED, "it was asked to stop; the same command goes on"
    return (SUCCEEDED if kind == "budget" else FAILED), why


def put_picture(uri: str, book: Ledger, named: dict[str, Any] | None) -> None:
    """Writes the sweep's picture. One that cannot be drawn or written is a warning."""
    from segdist.evaluation.figures import png
    from segdist.sweep.picture import picture

    address = storage.join(uri, PICTURE)
    try:
        storage.write(address, png(picture({**book.facts, "best": named}, book.trials, uri)))
        console.say(f"written: {address}")
    except Exception as error:
        console.say(f"warning: {address} is missing: {error}")


def open_ledger(plan: Plan, data: dict[str, str], retry_failed: bool) -> Ledger:
    """The ledger of a new launch, which owns the sweep from then on. Trials that were cut off wait again, with what their runs
    tell of them.
    """
    uri = plan.sweep.uri
    storage.check_writable(uri)
    if storage.exists(storage.join(uri, record.NAME)):
        raise ConfigError(f"uri {uri} holds a run; give the sweep a folder of its own")
    attempt = record.claim_attempt(uri)
    found = ledger.load(uri)  # now that no older launch writes it
    if found is None:
        found = {"version": 1, "metric": plan.sweep.metric, "began": time.time(), "seconds": 0.0, "data": data}
        found |= {"trials": [], "exploits": [], "best": None}
    found |= {"state": RUNNING, "reason": None, "num_trials": num_trials(plan.sweep), "identity": identity_of(plan)}
    found |= {"dollars_per_hour": plan.sweep.budget.dollars_per_hour, "scheduler": plan.sweep.scheduler.name}
    found |= {"num_ranks": plan.num_ranks}  # of a trial; with the price of one, what the sweep costs
    book = Ledger(uri, found, attempt)
    for trial in book.trials:
        if trial.state in (RUNNING, WAITING) or (retry_failed and trial.state == FAILED):
            _look_up(book, trial)
    book.save()
    return book


def _look_up(book: Ledger, trial: Trial) -> None:
    """Takes over what the run of a trial that did not end tells of it."""
    run = book.address(trial)
    trial.state, trial.reason = WAITING, None
    known = record.load(run)
    if known is None:
        return
    for row in segments.read_metrics(run):
        if row["kind"] == "eval" and trial.offset + row["step"] > trial.step:
            trial.hear(trial.offset + row["step"], row["miou"], row["loss"])
    if known["state"] == record.SUCCEEDED:
        trial.state = SUCCEEDED
        console.say(f"trial {trial.id} had ended after the last word of the launch before: {shown(trial.values)}")


def identity_of(plan: Plan) -> dict[str, Any]:
    """All that decides which trials a sweep has, and how they are judged."""
    tree = config.to_tree(plan.sweep)
    return {key: tree[key] for key in ("space", "metric", "searcher", "scheduler", "seed")} | {
        "config": plan.identity()
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def refuse_changes(uri: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError, with the differences, when a sweep would go on as another one."""
    before, now = _flat(before), _flat(now)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {before.get(key)} -> {now.get(key)}" for key in changed)
        raise ConfigError(
            f"{uri} was begun with other settings or data, and its trials would not compare:{lines}\n"
            "Undo these to continue it, or give another uri"
        )


def _wants_more(plan: Plan, found: dict[str, Any], retry_failed: bool) -> bool:
    """Whether a finished sweep has something left to do."""
    if found["best"] and not storage.exists(storage.join(plan.sweep.uri, best.YAML)):
        return True
    trials = ledger.trials_of(found)
    if budget_spent(plan, found["seconds"], trials):
        return False
    searched = [trial for trial in trials if trial.confirms is None]
    more = num_trials(plan.sweep) > max(len(searched), found["num_trials"]) or found["reason"] is not None
    return more or any(trial.state == WAITING or (retry_failed and trial.state == FAILED) for trial in trials)


def summary(uri: str, tree: dict[str, Any]) -> dict[str, Any]:
    """What `segdist tune --json` prints."""
    states = [one["state"] for one in tree["trials"] if one["confirms"] is None]
    named = tree["best"] or {}
    return {
        "sweep_uri": uri,
        "state": tree["state"],
        "trials": {state: len(list(group)) for state, group in itertools.groupby(sorted(states))},
        "metric": tree["metric"],
        "best_trial": named.get("trial"),
        "best_score": named.get("score"),
        "best_values": named.get("values"),
        "best_config": storage.join(uri, best.YAML) if named else None,
        "best_checkpoint": storage.join(uri, named["checkpoint"]) if named.get("checkpoint") else None,
        "seconds": tree["seconds"],
    }
