"""The checkpoints of one attempt: commit them in the background, mark the scored ones, keep the best, delete the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segdist import storage
from segdist.runs import checkpoints, record, snapshot
from segdist.runs.snapshot import Snapshot
from segdist.runs.writer import BackgroundWriter


class CheckpointManager:
    """Writes checkpoints through a background writer.

    `owns()` returns whether this attempt still owns the run. If it does not, nothing is written.
    """

    def __init__(
        self,
        run_uri: str,
        attempt: int,
        keep_last: int,
        writer: BackgroundWriter,
        owns: Callable[[], bool],
        newest: str | None,
        best: dict[str, Any] | None,
    ) -> None:
        self._run_uri, self._attempt, self._keep_last = run_uri, attempt, keep_last
        self._writer, self._owns = writer, owns
        self.newest = newest  # URI of the newest committed checkpoint
        self.best = best  # contents of best.json

    def put(self, taken: Snapshot) -> None:
        """Commit a snapshot in the background."""
        self._writer.put("checkpoint", lambda: self._commit(taken))

    def mark_scored(self, step: int, report: dict[str, Any], scored_on: str) -> None:
        """Add an evaluation to the checkpoint of `step` if that is the newest one, and update best.json if it is the best.

        `scored_on` identifies the split and the protocol.
        """
        self._writer.put(f"scores {step}", lambda: self._mark_scored(step, report, scored_on))

    def _commit(self, taken: Snapshot) -> None:
        if self._owns():
            self.newest = snapshot.commit(self._run_uri, self._attempt, taken)
            self._writer.put("prune", self._prune)

    def _mark_scored(self, step: int, report: dict[str, Any], scored_on: str) -> None:
        if self.newest is None or checkpoints.step_of(self.newest) != step or not self._owns():
            return
        storage.write(storage.join(self.newest, checkpoints.EVALUATION), record.to_json(report).encode())
        miou = report["miou"]
        if self.best is None or checkpoints.is_better(miou, self.best["miou"]):
            name = f"checkpoints/{self.newest.rsplit('/', 1)[1]}"
            best = {"step": step, "miou": miou, "checkpoint": name, "scored_on": scored_on}
            storage.write(storage.join(self._run_uri, checkpoints.BEST), record.to_json(best, indent=1).encode())
            self.best = best
            self._writer.put("prune", self._prune)

    def _prune(self) -> None:
        checkpoints.prune(self._run_uri, self._attempt, self._keep_last, self.best["checkpoint"] if self.best else None)
