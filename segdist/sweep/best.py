"""Which trial a sweep names as its best, and what it hands on: best.yaml and a picture."""

from __future__ import annotations

import statistics
from typing import Any

import yaml

from segdist import config, storage
from segdist.runs import checkpoints, record
from segdist.sweep.ledger import SUCCEEDED, Ledger, Score, Trial, ranked
from segdist.sweep.plan import Plan, shown

YAML = "best.yaml"


def confirmations(plan: Plan, ledger: Ledger) -> list[Trial]:
    """The trials that repeat the best ones with other seeds, best first; some may exist already."""
    asked = plan.sweep.confirm
    if plan.sweep.scheduler.name == "pbt" or not asked.num_best:
        return []  # a member of a population is a history, which its last values do not repeat
    known = {trial.id: trial for trial in ledger.trials}
    made = []
    for trial in ranked(ledger.searched, plan.sweep.metric)[: asked.num_best]:
        own = plan.config(trial.values, ledger.address(trial)).train.seed
        for n in range(1, asked.num_seeds + 1):
            name = f"{trial.id}-seed-{own + n}"
            again = Trial(name, trial.values, f"confirm/{name}", confirms=trial.id, seed=own + n)
            made.append(known.get(name, again))
    return made


def seeds_of(plan: Plan, ledger: Ledger, trial: Trial) -> list[float]:
    """The scores of a trial's values with other seeds, of those that went to their end."""
    again = [other for other in ledger.trials if other.confirms == trial.id and other.state == SUCCEEDED]
    return [score for other in again if (score := other.best(plan.sweep.metric)) is not None]


def name_best(plan: Plan, ledger: Ledger) -> dict[str, Any] | None:
    """What sweep.json says of the best trial; None where no trial has a score.

    Among the best that were confirmed with every seed, the one with the best mean over all seeds, its own among them where that
    was scored on the same samples. The score that is told is of the other seeds alone: its own was chosen for being high.
    """
    metric, asked = plan.sweep.metric, plan.sweep.confirm
    leaders = ranked(ledger.searched, metric)[: max(1, asked.num_best)]
    if not leaders:
        return None
    seeds = {trial.id: seeds_of(plan, ledger, trial) for trial in leaders}
    part = plan.config(leaders[0].values, ledger.address(leaders[0])).eval.num_samples is not None
    sign = 1 if metric == "loss" else -1

    def mean(trial: Trial) -> float:
        own = trial.best(metric)
        assert own is not None
        return statistics.fmean(seeds[trial.id] if part else [own, *seeds[trial.id]])

    confirmed = [trial for trial in leaders if 0 < asked.num_seeds <= len(seeds[trial.id])] if asked.num_best else []
    best = min(confirmed, key=lambda trial: sign * mean(trial)) if confirmed else leaders[0]
    own = best.best_score(metric)
    assert own is not None
    scores = seeds[best.id] or [getattr(own, metric)]
    return {
        "trial": best.id,
        "values": best.values,
        "score": statistics.fmean(scores),
        "scores": scores,
        "own": getattr(own, metric),
        "confirmed": bool(confirmed),
        "run": best.run,
        "checkpoint": _checkpoint_of(ledger, best, own, metric),
    }


def _checkpoint_of(ledger: Ledger, trial: Trial, score: Score, metric: str) -> str | None:
    """The checkpoint of a trial's best score, below the sweep; None where it is gone (a run keeps that of its best mIoU)."""
    if metric == "miou":
        found = checkpoints.read_best(ledger.address(trial))
        return f"{trial.run}/{found['checkpoint']}" if found else None
    kept = [
        one
        for one in checkpoints.committed(ledger.address(trial))
        if checkpoints.step_of(one) == score.step - trial.offset
    ]
    return f"{trial.run}/checkpoints/{kept[0].rsplit('/', 1)[-1]}" if kept else None


def write_config(plan: Plan, best: dict[str, Any]) -> str:
    """Writes best.yaml, which `segdist train` takes as it is: the config at its full length with the best values."""
    cfg = plan.full(best["values"], storage.join(plan.sweep.uri, "best"))
    address = storage.join(plan.sweep.uri, YAML)
    about = f"# trial {best['trial']} of {plan.sweep.uri}: {shown(best['values'])}\n"
    how = "with" if best["confirmed"] else "without"
    about += f"# {plan.sweep.metric} {best['score']:.4f}, {how} other seeds, in trials as long as the sweep's\n"
    text = about + f"# {record.to_json(record.versions())}\n" + yaml.safe_dump(config.to_tree(cfg), sort_keys=False)
    storage.write(address, text.encode())
    return address
