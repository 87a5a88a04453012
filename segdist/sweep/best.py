"""Which trial a sweep names as its best, and what it hands on: best.yaml and a picture."""

from __future__ import annotations

import statistics
from typing import Any

import yaml

from segdist import checkpoint, config, record, storage
from segdist.sweep.ledger import FAILED, Ledger, Trial, ranked
from segdist.sweep.plan import Plan, shown

YAML = "best.yaml"


def confirmations(plan: Plan, ledger: Ledger) -> list[Trial]:
    """The trials that repeat the best ones with other seeds, in the order of their making; those that exist already first."""
    asked = plan.sweep.confirm
    if plan.sweep.scheduler.name == "pbt" or not asked.num_best:
        return []  # a member of a population is a history, which its last values do not repeat
    chosen = {trial.confirms: None for trial in ledger.trials if trial.confirms}
    for trial in ranked(ledger.searched, plan.sweep.metric):
        if len(chosen) < asked.num_best:
            chosen.setdefault(trial.id)
    known = {trial.id: trial for trial in ledger.trials}
    made = []
    for id in filter(None, chosen):
        own = plan.config(known[id].values, storage.join(plan.sweep.uri, known[id].run)).train.seed
        for n in range(1, asked.num_seeds + 1):
            name = f"{id}-seed-{own + n}"
            again = Trial(name, known[id].values, f"confirm/{name}", confirms=id, seed=own + n)
            made.append(known.get(name, again))
    return made


def scores_of(plan: Plan, ledger: Ledger, trial: Trial) -> list[float]:
    """A trial's score, and those of its confirmations: all made on the same samples."""
    found = [other.best(plan.sweep.metric) for other in ledger.trials if other.confirms == trial.id]
    scores = [score for score in found if score is not None]
    own = trial.best(plan.sweep.metric)
    part = plan.config(trial.values, storage.join(plan.sweep.uri, trial.run)).eval.num_samples is not None
    return scores if own is None or (part and scores) else [own, *scores]


def name_best(plan: Plan, ledger: Ledger) -> dict[str, Any] | None:
    """What sweep.json says of the best trial, by the mean over its seeds; None where no trial has a score."""
    candidates = ranked(ledger.searched, plan.sweep.metric)
    confirmed = {trial.confirms for trial in ledger.trials if trial.confirms and trial.state != FAILED}
    candidates = [trial for trial in candidates if trial.id in confirmed] or candidates[:1]
    if not candidates:
        return None
    sign = 1 if plan.sweep.metric == "loss" else -1
    scores = {trial.id: scores_of(plan, ledger, trial) for trial in candidates}
    best = min(candidates, key=lambda trial: sign * statistics.fmean(scores[trial.id]))
    found = checkpoint.read_best(ledger.address(best))
    return {
        "trial": best.id,
        "values": best.values,
        "score": statistics.fmean(scores[best.id]),
        "scores": scores[best.id],
        "run": best.run,
        "checkpoint": found and f"{best.run}/{found['checkpoint']}",
    }


def write_config(plan: Plan, best: dict[str, Any]) -> str:
    """Writes best.yaml, which `segdist train` takes as it is: the config at its full length with the best values."""
    cfg = plan.full(best["values"], storage.join(plan.sweep.uri, "best"))
    address = storage.join(plan.sweep.uri, YAML)
    about = f"# trial {best['trial']} of {plan.sweep.uri}: {shown(best['values'])}\n"
    about += f"# {plan.sweep.metric} {best['score']:.4f} over {len(best['scores'])} seed(s), in trials as long as the sweep's\n"
    text = about + f"# {record.to_json(record.versions())}\n" + yaml.safe_dump(config.to_tree(cfg), sort_keys=False)
    storage.write(address, text.encode())
    return address
