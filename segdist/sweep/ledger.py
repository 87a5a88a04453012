"""What a sweep leaves behind about itself: sweep.json, the truth of which trials there are and what came of them.

One driver writes it, and whoever launches the sweep again reads it there. A trial stands in it before it starts, so no number
is given twice; what a trial did after the last word of a driver that died, its own run tells.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from segdist import log, record, storage
from segdist.errors import ConfigError, StorageError
from segdist.sweep.space import Point

NAME = "sweep.json"
WAITING, RUNNING, STOPPED, FAILED, SUCCEEDED = "WAITING", "RUNNING", "STOPPED", "FAILED", "SUCCEEDED"
ENDED = (STOPPED, FAILED, SUCCEEDED)
_SAVE_SECONDS = 5.0


@dataclass
class Score:
    """One evaluation of a trial. `step` counts from the trial's beginning, over all of its runs."""

    step: int
    miou: float | None
    loss: float | None
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
        self.scores.append(Score(step, miou, loss, time.time()))

    def best(self, metric: str) -> float | None:
        """Its best score so far; None where there is none."""
        found = [value for score in self.scores if (value := getattr(score, metric)) is not None]
        return (min if metric == "loss" else max)(found, default=None)

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
        self._saved = 0.0
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
            self.save()

    def save(self) -> None:
        """Raises StorageError when a newer driver owns the sweep."""
        if (newest := record.newest_attempt(self.uri)) > self.attempt:
            raise StorageError(f"{self.uri}: a newer launch ({newest}) has taken this sweep over, so this one stops")
        self._saved = time.monotonic()
        tree = {**self.facts, "attempt": self.attempt, "heartbeat": time.time(), "exploits": self.exploits}
        tree["trials"] = [asdict(trial) for trial in self.trials]
        text = record.to_json(tree, indent=1).encode()
        storage.patiently(lambda: storage.write(storage.join(self.uri, NAME), text), log.say)


def load(uri: str) -> dict[str, Any] | None:
    """sweep.json as a tree; None when there is no sweep. Raises StorageError when it is damaged."""
    address = storage.join(uri, NAME)
    if not storage.exists(address):
        return None
    try:
        tree = json.loads(storage.read(address))
        trials_of(tree)
        return dict(tree)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{address}: not a sweep's record ({error}); mend it, or give another uri") from None


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
    """Trials with a score, the best first; those that went to their end before those that were stopped."""
    found = [
        (best if metric == "loss" else -best, trial) for trial in trials if (best := trial.best(metric)) is not None
    ]
    return [trial for _, trial in sorted(found, key=lambda one: (one[1].state != SUCCEEDED, one[0], one[1].id))]
