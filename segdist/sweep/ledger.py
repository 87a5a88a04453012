"""What a sweep leaves behind about itself: sweep.json, the truth of which trials there are and what came of them.

One driver writes it, and whoever launches the sweep again reads it there. A trial stands in it before it starts, so no number
is given twice; what a trial did after the last word of a driver that died, its own run tells.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from segdist import console, storage
from segdist.errors import ConfigError, StorageError, UnavailableError
from segdist.runs import record
from segdist.sweep.space import Point

NAME = record.SWEEP
WAITING, RUNNING, STOPPED, FAILED, SUCCEEDED = "WAITING", "RUNNING", "STOPPED", "FAILED", "SUCCEEDED"
ENDED = (STOPPED, FAILED, SUCCEEDED)
_SAVE_SECONDS, _WARN_SECONDS = 5.0, 60.0
_FACTS = {
    "state", "reason", "metric", "scheduler", "num_trials", "num_ranks", "dollars_per_hour", "identity", "began", "seconds",
    "exploits", "best", "data",
}  # fmt: skip


@dataclass
class Score:
    """One evaluation of a trial. `step` counts from the trial's beginning, over all of its runs."""

    step: int
    miou: float | None
    loss: float | None
    run: str  # below the sweep; of a member of a population, it may have been another than now
    time: float  # when it was told, seconds since 1970


@dataclass
class Trial:
    """One trial: what it tries, where its run is, and what came of it."""

    id: str  # four digits; of a confirmation, with its seed behind
    values: Point
    run: str  # its run, below the sweep
    state: str = WAITING
    reason: str | None = None  # why it failed or was stopped
    offset: int = 0  # steps that its run began after
    parent: str | None = None  # the checkpoint its run began from
    seconds: float = 0.0  # that it ran, over all launches
    scores: list[Score] = field(default_factory=list)
    confirms: str | None = None  # id of the trial that it repeats with another seed
    seed: int | None = None

    def hear(self, step: int, miou: float | None, loss: float | None) -> None:
        """One evaluation, which replaces what was heard of this step and later ones."""
        self.scores = [score for score in self.scores if score.step < step]
        miou, loss = (value if value is not None and math.isfinite(value) else None for value in (miou, loss))
        self.scores.append(Score(step, miou, loss, self.run, time.time()))

    def best_score(self, metric: str) -> Score | None:
        """The best evaluation of its run; None where there is none. What it was before it took another's weights is gone."""
        found = [score for score in self.scores if score.run == self.run and getattr(score, metric) is not None]
        return (min if metric == "loss" else max)(found, key=lambda score: getattr(score, metric), default=None)

    def best(self, metric: str) -> float | None:
        """Its best score so far; None where there is none."""
        found = self.best_score(metric)
        return None if found is None else float(getattr(found, metric))

    @property
    def step(self) -> int:
        return self.scores[-1].step if self.scores else self.offset


class Ledger:
    """sweep.json in memory. `save` writes it; what must not be forgotten is saved before it is done."""

    def __init__(self, uri: str, tree: dict[str, Any], attempt: int) -> None:
        self.uri, self.attempt = uri, attempt
        self.trials = trials_of(tree)
        self.exploits: list[dict[str, Any]] = tree["exploits"]
        self.facts = {key: value for key, value in tree.items() if key not in ("trials", "exploits")}
        self._saved = self._warned = -_WARN_SECONDS
        self._ticked = time.monotonic()

    def trial(self, id: str) -> Trial:
        return next(trial for trial in self.trials if trial.id == id)

    def address(self, trial: Trial) -> str:
        """Where a trial's run is."""
        return storage.join(self.uri, trial.run)

    @property
    def searched(self) -> list[Trial]:
        """The trials, without those that confirm others."""
        return [trial for trial in self.trials if trial.confirms is None]

    def tick(self, running: set[str]) -> None:
        """Counts the time since the last tick, and saves now and then. Raises StorageError when another driver took over."""
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        self.facts["seconds"] += passed
        for trial in self.trials:
            trial.seconds += passed * (trial.id in running)
        if now - self._saved > _SAVE_SECONDS:
            self.note()

    def note(self) -> None:
        """As `save`, where storage that is away may be told later."""
        try:
            self._save()
        except UnavailableError as error:
            if time.monotonic() - self._warned > _WARN_SECONDS:
                self._warned = time.monotonic()
                console.say(f"warning: {error}; the sweep goes on, and its record is written when storage answers")
        self._saved = time.monotonic()

    def save(self) -> None:
        """Waits for storage a while. Raises StorageError when a newer driver owns the sweep, and UnavailableError."""
        storage.with_retries(self._save, console.say)
        self._saved = time.monotonic()

    def _save(self) -> None:
        if (newest := record.newest_attempt(self.uri)) > self.attempt:
            raise StorageError(f"{self.uri}: a newer launch ({newest}) has taken this sweep over, so this one stops")
        tree = {**self.facts, "attempt": self.attempt, "heartbeat": time.time(), "exploits": self.exploits}
        tree["trials"] = [asdict(trial) for trial in self.trials]
        storage.write(storage.join(self.uri, NAME), record.to_json(tree, indent=1).encode())


def load(uri: str) -> dict[str, Any] | None:
    """sweep.json as a tree; None when there is no sweep. Raises StorageError when it is damaged."""
    address = storage.join(uri, NAME)
    if not storage.exists(address):
        return None
    try:
        tree = json.loads(storage.read(address))
        if lost := _FACTS - tree.keys():
            raise KeyError(f"{', '.join(sorted(lost))} missing")
        for trial in trials_of(tree):
            if strange := trial.values.keys() - tree["identity"]["space"].keys():
                raise KeyError(f"trial {trial.id} has values of {', '.join(strange)}, which are not in its space")
        return dict(tree)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{address}: not a sweep's record ({error}); mend it, or give another uri") from None


def told(best: dict[str, Any], metric: str) -> str:
    """The score of a named best, for people."""
    name = "mIoU" if metric == "miou" else metric
    if not best.get("confirmed"):
        return f"{name} {best['score']:.4f}"
    seeds = len(best["scores"])
    how = "with another seed" if seeds == 1 else f"over {seeds} other seeds"
    return f"{name} {best['score']:.4f} {how} ({best['own']:.4f} with its own)"


def read(uri: str) -> tuple[dict[str, Any], list[Trial]]:
    """(the facts, the trials) of a sweep, for those who only look. Raises ConfigError when there is none."""
    tree = load(uri)
    if tree is None:
        raise ConfigError(f"{uri}: there is no sweep (no {NAME}); give the `uri` of one, which `segdist tune` made")
    return tree, trials_of(tree)


def trials_of(tree: dict[str, Any]) -> list[Trial]:
    """The trials in a sweep.json."""
    return [Trial(**{**one, "scores": [Score(**score) for score in one["scores"]]}) for one in tree["trials"]]


def ranked(trials: list[Trial], metric: str) -> list[Trial]:
    """Trials with a score, the best first; those that failed or were stopped as weak stand behind all others."""
    found = [
        (best if metric == "loss" else -best, trial) for trial in trials if (best := trial.best(metric)) is not None
    ]
    return [trial for _, trial in sorted(found, key=lambda one: (one[1].state in (STOPPED, FAILED), one[0], one[1].id))]
