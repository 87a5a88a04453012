"""Read the status of a run or a sweep. Nothing is written, so this is safe while the run or sweep is at work."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from segdist import console, storage
from segdist.errors import UserError
from segdist.runs import checkpoints, record
from segdist.sweep import ledger


def read_status(uri: str) -> dict[str, Any]:
    """Return what `segdist status --json` prints: a run's run.json with derived values, or a sweep with its trials.

    Raises UserError if there is neither a run nor a sweep.
    """
    if (run := record.load(uri)) is not None:
        newest = checkpoints.newest_committed(uri)
        return {"kind": "run", **run, "run_uri": uri, "silent_seconds": _silence(run), "newest_checkpoint": newest}
    if ledger.load(uri) is None:
        raise UserError(
            f"{uri}: there is neither a run (no {record.NAME}) nor a sweep (no {ledger.NAME}). Give the run.uri of a "
            "`segdist train` or the uri of a `segdist tune` that has started"
        )
    return _read_sweep(uri)


def _read_sweep(uri: str) -> dict[str, Any]:
    """Return the sweep and its trials, each followed by the trials that confirm it."""
    from segdist.sweep.axes import varying_fields

    facts, trials = ledger.read(uri)
    steps = _live_steps(uri, [trial for trial in trials if trial.state == ledger.RUNNING])
    exploits = {one["trial"]: f"continued from {one['from']} after step {one['step']}" for one in facts["exploits"]}
    price = facts["dollars_per_hour"]
    rows = [
        {
            "trial": trial.id,
            "values": trial.values,
            "state": trial.state,
            "step": max(trial.step, steps.get(trial.id, 0)),
            "best": trial.best(facts["metric"]),
            "seconds": trial.seconds,
            "reason": trial.reason or exploits.get(trial.id),
            "run_uri": storage.join(uri, trial.run),
            "confirms": trial.confirms,
            "seed": trial.seed,
        }
        for trial in sorted(trials, key=lambda trial: (trial.confirms or trial.id, trial.id))
    ]
    return {
        "kind": "sweep",
        "sweep_uri": uri,
        **{key: facts[key] for key in ("state", "reason", "metric", "scheduler", "num_trials", "seconds")},
        "num_steps": facts["identity"]["config"]["train"]["num_steps"],
        "fields": varying_fields(facts, trials),
        "counts": dict(Counter(trial.state for trial in trials if not trial.confirms)),
        "dollars": None if price is None else ledger.cost_dollars(trials, facts["num_ranks"], price),
        "silent_seconds": _silence(facts),
        "best": ledger.best_so_far(facts, trials),
        "trials": rows,
    }


def find_best_config(uri: str) -> str:
    """Return the URI of a sweep's best.yaml. Raises UserError with the reason if the sweep has none."""
    from segdist.sweep import best

    facts, trials = ledger.read(uri)
    address = storage.join(uri, best.YAML)
    if storage.exists(address):
        if facts["state"] == record.RUNNING:
            console.say(f"warning: {uri} is not finished. These are the best values of its previous launch")
        if facts["scheduler"] == "pbt":
            named = facts["best"]
            console.say(
                "warning: PBT finds a schedule, and its final values alone will not reproduce the result. Its weights are in "
                f"{storage.join(uri, named['checkpoint'] or named['run'])}"
            )
        return address
    if facts["state"] == record.RUNNING:
        why = "it is not finished. `segdist status` shows its progress. If it was killed, run the same `segdist tune` again"
    elif reason := facts["reason"] or next((trial.reason for trial in trials if trial.reason), None):
        why = f"no trial has a score: {reason}"
    else:
        why = "no trial has a score. Run the same `segdist tune` to continue"
    raise UserError(f"{uri} has no best values ({best.YAML}): {why}")


def write_plot(uri: str, plot: str) -> None:
    """Plot a sweep into a PNG file."""
    from segdist.sweep.plot import plot_png

    storage.write(plot, plot_png(*ledger.read(uri), uri))


def _live_steps(uri: str, running: list[ledger.Trial]) -> dict[str, int]:
    """Return trial -> current step from the trials' own runs, which are more up to date than the sweep's record."""
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda trial: record.load(storage.join(uri, trial.run)), running)
    return {trial.id: trial.offset + run["step"] for trial, run in zip(running, runs) if run}


def _silence(tree: dict[str, Any]) -> float | None:
    """Return the seconds since the last heartbeat of a run or sweep that is running, otherwise None."""
    return max(0.0, time.time() - tree["heartbeat"]) if tree["state"] == record.RUNNING else None
