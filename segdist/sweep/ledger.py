"""sweep.json: which trials a sweep has, and the result of each.

One driver writes the file, and a later launch of the sweep continues from it. A trial is saved before it starts, so no trial
number is given twice. What a trial did after its driver died is read from the trial's own run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from segdist import console, storage
from segdist.errors import ConfigError, StorageError, UnavailableError
from segdist.runs import checkpoints, record
from segdist.sweep.space import Point

NAME = record.SWEEP
WAITING, RUNNING, STOPPED, FAILED, SUCCEEDED = "WAITING", "RUNNING", "STOPPED", "FAILED", "SUCCEEDED"
ENDED = (STOPPED, FAILED, SUCCEEDED)
_SAVE_SECONDS, _WARN_SECONDS = 5.0, 60.0
_REQUIRED = {
    "state", "reason", "metric", "scheduler", "num_trials", "num_ranks", "dollars_per_hour", "identity", "began", "seconds",
    "exploits", "best", "data",
}  # fmt: skip


@dataclass
class Score:
    """One evaluation of a trial. `step` counts from the start of the trial, over all of its runs."""

    step: int
    miou: float | None
    loss: float | None
    run: str  # below the sweep's URI; a PBT trial may have continued in another run since
    time: float  # when the driver received the score, in seconds since 1970


@dataclass
class Trial:
    """One trial: its values, its run, and its result."""

    id: str  # four digits; a confirmation also has its seed
    values: Point
    run: str  # below the sweep's URI
    state: str = WAITING
    reason: str | None = None  # why it failed or was stopped
    offset: int = 0  # steps of the trial before its current run
    parent: str | None = None  # checkpoint that its current run started from
    seconds: float = 0.0  # running time over all launches
    scores: list[Score] = field(default_factory=list)
    confirms: str | None = None  # id of the trial that this one repeats with another seed
    seed: int | None = None

    def add_score(self, step: int, miou: float | None, loss: float | None) -> None:
        """Add an evaluation. It replaces earlier scores of the same and of later steps. NaN and inf count as no score."""
        self.scores = [score for score in self.scores if score.step < step]
        miou, loss = (value if value is not None and math.isfinite(value) else None for value in (miou, loss))
        self.scores.append(Score(step, miou, loss, self.run, time.time()))

    def best_score(self, metric: str) -> Score | None:
        """Return the best evaluation of the current run, or None. Scores from before a PBT exploit do not count."""
        found = [score for score in self.scores if score.run == self.run and getattr(score, metric) is not None]
        return (min if metric == "loss" else max)(found, key=lambda score: getattr(score, metric), default=None)

    def best(self, metric: str) -> float | None:
        """Return the value of the best evaluation of the current run, or None."""
        found = self.best_score(metric)
        return None if found is None else float(getattr(found, metric))

    @property
    def step(self) -> int:
        """The step of the latest evaluation."""
        return self.scores[-1].step if self.scores else self.offset


class Ledger:
    """sweep.json in memory. Call `save` before an action that a later launch must know about."""

    def __init__(self, uri: str, tree: dict[str, Any], attempt: int) -> None:
        self.uri, self.attempt = uri, attempt
        self.trials = trials_of(tree)
        self.exploits: list[dict[str, Any]] = tree["exploits"]
        self.facts = {key: value for key, value in tree.items() if key not in ("trials", "exploits")}
        self._saved_at = self._warned_at = -_WARN_SECONDS
        self._ticked_at = time.monotonic()

    def trial(self, id: str) -> Trial:
        return next(trial for trial in self.trials if trial.id == id)

    def run_uri(self, trial: Trial) -> str:
        """Return the URI of a trial's run."""
        return storage.join(self.uri, trial.run)

    @property
    def searched(self) -> list[Trial]:
        """The trials that are not confirmations of another one."""
        return [trial for trial in self.trials if trial.confirms is None]

    def tick(self, running: set[str]) -> None:
        """Count the time since the last call, and save every few seconds.

        Raises StorageError if a newer driver owns the sweep.
        """
        now = time.monotonic()
        passed, self._ticked_at = now - self._ticked_at, now
        self.facts["seconds"] += passed
        for trial in self.trials:
            trial.seconds += passed * (trial.id in running)
        if now - self._saved_at > _SAVE_SECONDS:
            self.try_save()

    def try_save(self) -> None:
        """Save once. If storage does not answer, warn and leave the change to the next save."""
        try:
            self._save()
        except UnavailableError as error:
            if time.monotonic() - self._warned_at > _WARN_SECONDS:
                self._warned_at = time.monotonic()
                console.say(f"warning: {error}. The sweep continues, and {NAME} is written once storage answers")
        self._saved_at = time.monotonic()

    def save(self) -> None:
        """Save with retries. Raises StorageError if a newer driver owns the sweep, UnavailableError if storage is away."""
        storage.with_retries(self._save, console.say)
        self._saved_at = time.monotonic()

    def _save(self) -> None:
        if (newest := record.newest_attempt(self.uri)) > self.attempt:
            raise StorageError(
                f"{self.uri}: a newer launch ({newest}) has taken this sweep over. This launch ({self.attempt}) stops. "
                f"Follow the newer one with `segdist status {self.uri} --follow`"
            )
        tree = {**self.facts, "attempt": self.attempt, "heartbeat": time.time(), "exploits": self.exploits}
        tree["trials"] = [asdict(trial) for trial in self.trials]
        storage.write(storage.join(self.uri, NAME), record.to_json(tree, indent=1).encode())


def load(uri: str) -> dict[str, Any] | None:
    """Return sweep.json as a tree, or None if there is no sweep. Raises StorageError if the file is damaged."""
    address = storage.join(uri, NAME)
    if not storage.exists(address):
        return None
    try:
        tree = json.loads(storage.read(address))
        if missing := _REQUIRED - tree.keys():
            raise KeyError(f"{', '.join(sorted(missing))} missing")
        for trial in trials_of(tree):
            if unknown := trial.values.keys() - tree["identity"]["space"].keys():
                raise KeyError(f"trial {trial.id} has values for {', '.join(unknown)}, which the space does not have")
        return dict(tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{address}: not a sweep's record ({error}). Restore the file from a copy, or use another uri"
        ) from None


def read(uri: str) -> tuple[dict[str, Any], list[Trial]]:
    """Return (the facts, the trials) of a sweep without claiming it. Raises ConfigError if there is no sweep."""
    tree = load(uri)
    if tree is None:
        raise ConfigError(
            f"{uri}: there is no sweep (no {NAME}). Give the `uri` of a sweep that `segdist tune` started"
        )
    return tree, trials_of(tree)


def trials_of(tree: dict[str, Any]) -> list[Trial]:
    """Return the trials in a sweep.json."""
    return [Trial(**{**one, "scores": [Score(**score) for score in one["scores"]]}) for one in tree["trials"]]


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """Return the trials that have a score, best first. Failed and stopped trials come after all others."""
    found = [
        (best if metric == "loss" else -best, trial) for trial in trials if (best := trial.best(metric)) is not None
    ]
    return [trial for _, trial in sorted(found, key=lambda one: (one[1].state in (STOPPED, FAILED), one[0], one[1].id))]


def best_so_far(facts: dict[str, Any], trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Return the best trial: the one the sweep named, or the current leader while it runs. None without a score."""
    if facts["best"] and facts["state"] != RUNNING:
        return dict(facts["best"])
    leader = next(iter(ranked([trial for trial in trials if not trial.confirms], facts["metric"])), None)
    if leader is None:
        return None
    score = leader.best(facts["metric"])
    return {"trial": leader.id, "values": leader.values, "score": score, "scores": [score], "run": leader.run}


def describe_score(best: dict[str, Any], metric: str) -> str:
    """Describe the score of the best trial in words."""
    score = f"{metric_name(metric)} {best['score']:.4f}"
    if not best.get("confirmed"):
        return score
    seeds = len(best["scores"])
    how = "with another seed" if seeds == 1 else f"over {seeds} other seeds"
    return f"{score} {how} ({best['own']:.4f} with its own)"


def metric_name(metric: str) -> str:
    """Return the metric's name as it is written for people."""
    return "mIoU" if metric == "miou" else metric


def cost_dollars(trials: Sequence[Trial], num_ranks: int, dollars_per_hour: float) -> float:
    """Return what the trials have cost so far, at a price per rank and hour."""
    return sum(trial.seconds for trial in trials) / 3600 * num_ranks * dollars_per_hour


def checkpoint_at(run_uri: str, step: int) -> str | None:
    """Return the URI of the committed checkpoint of a step of a run, or None."""
    return next((uri for uri in checkpoints.committed(run_uri) if checkpoints.step_of(uri) == step), None)
