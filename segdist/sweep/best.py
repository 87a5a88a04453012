"""Choose the best trial of a sweep, and write best.yaml, the config that trains its values at full length."""

from __future__ import annotations

import statistics
from typing import Any

import yaml

from segdist import config, storage
from segdist.runs import checkpoints, record
from segdist.sweep.ledger import SUCCEEDED, Ledger, Score, Trial, checkpoint_at, ranked
from segdist.sweep.plan import Plan
from segdist.sweep.space import format_values

YAML = "best.yaml"


def confirmations(plan: Plan, ledger: Ledger) -> list[Trial]:
    """Return the trials that repeat the best ones with other seeds, best first. Some may exist already."""
    confirm = plan.sweep.confirm
    if plan.sweep.scheduler.name == "pbt" or not confirm.num_best:
        return []  # PBT finds a schedule, which the final values alone do not reproduce
    known = {trial.id: trial for trial in ledger.trials}
    trials = []
    for trial in ranked(ledger.searched, plan.sweep.metric)[: confirm.num_best]:
        own = plan.config(trial.values, ledger.run_uri(trial)).train.seed
        for n in range(1, confirm.num_seeds + 1):
            name = f"{trial.id}-seed-{own + n}"
            repeat = Trial(name, trial.values, f"confirm/{name}", confirms=trial.id, seed=own + n)
            trials.append(known.get(name, repeat))
    return trials


def confirmed_scores(plan: Plan, ledger: Ledger, trial: Trial) -> list[float]:
    """Return the scores of the finished trials that repeat `trial` with other seeds."""
    repeats = [other for other in ledger.trials if other.confirms == trial.id and other.state == SUCCEEDED]
    return [score for repeat in repeats if (score := repeat.best(plan.sweep.metric)) is not None]


def name_best(plan: Plan, ledger: Ledger) -> dict[str, Any] | None:
    """Return the best trial as sweep.json records it, or None if no trial has a score.

    If leading trials were confirmed with every seed, the best mean over all seeds wins. A trial's own score counts only if it
    was made on the whole split, as the confirmations are. The reported score is the mean over the other seeds: the trial's own
    score was selected for being high.
    """
    metric, confirm = plan.sweep.metric, plan.sweep.confirm
    leaders = ranked(ledger.searched, metric)[: max(1, confirm.num_best)]
    if not leaders:
        return None
    seeds = {trial.id: confirmed_scores(plan, ledger, trial) for trial in leaders}
    is_partial = plan.config(leaders[0].values, ledger.run_uri(leaders[0])).eval.num_samples is not None
    sign = 1 if metric == "loss" else -1

    def mean(trial: Trial) -> float:
        own = trial.best(metric)
        assert own is not None
        return statistics.fmean(seeds[trial.id] if is_partial else [own, *seeds[trial.id]])

    confirmed = [t for t in leaders if 0 < confirm.num_seeds <= len(seeds[t.id])] if confirm.num_best else []
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
    """Return the checkpoint of a trial's best score, below the sweep's URI. A run keeps the one with its best mIoU, so for
    another metric it may be gone: then return None.
    """
    if metric == "miou":
        found = checkpoints.read_best(ledger.run_uri(trial))
        return f"{trial.run}/{found['checkpoint']}" if found else None
    uri = checkpoint_at(ledger.run_uri(trial), score.step - trial.offset)
    return f"{trial.run}/{checkpoints.below_run(uri)}" if uri else None


def write_config(plan: Plan, best: dict[str, Any]) -> str:
    """Write best.yaml, the config at its full length with the best values, and return its URI."""
    cfg = plan.full(best["values"], storage.join(plan.sweep.uri, "best"))
    address = storage.join(plan.sweep.uri, YAML)
    header = f"# trial {best['trial']} of {plan.sweep.uri}: {format_values(best['values'])}\n"
    seeds = "confirmed with other seeds" if best["confirmed"] else "not confirmed with other seeds"
    header += f"# {plan.sweep.metric} {best['score']:.4f} in a trial of the sweep's length, {seeds}\n"
    text = header + f"# {record.to_json(record.versions())}\n" + yaml.safe_dump(config.to_tree(cfg), sort_keys=False)
    storage.write(address, text.encode())
    return address
