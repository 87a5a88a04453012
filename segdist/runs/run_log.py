"""What an attempt writes while it runs: log and metrics in segments, and run.json with its heartbeat.

Only rank 0 logs; on other ranks a `RunLogger` does nothing. Everything is written through the background writer.
"""

from __future__ import annotations

import time
from typing import Any

from segdist import console
from segdist.runs import record, segments
from segdist.runs.writer import BackgroundWriter

_SEGMENT_SECONDS = 30.0
_HEARTBEAT_SECONDS = 15.0


class LogFile:
    """Collects everything that this process prints while the context is open, for `<run_uri>/logs/<name>-<part>.txt`."""

    def __init__(self, run_uri: str, name: str, writer: BackgroundWriter) -> None:
        self._run_uri, self._name, self._writer = run_uri, name, writer
        self._lines: list[str] = []
        self._part = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> LogFile:
        console.listen(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        console.unlisten(self.note)
        self.flush()

    def note(self, text: str) -> None:
        """Add a line that is not printed."""
        self._lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}")

    def flush(self, every_seconds: float = 0.0) -> None:
        """Write the lines so far in the background, unless the last flush was less than `every_seconds` ago."""
        now = time.monotonic()
        if not self._lines or now - self._flushed < every_seconds:
            return
        lines, self._lines, self._flushed = self._lines, [], now
        self._part += 1
        address = (self._run_uri, f"{self._name}-{self._part:05d}")
        self._writer.put(f"log {self._part}", lambda: segments.write_log(*address, lines))


class RunLogger:
    """Logs one attempt. Use it as a context manager: an exception inside is recorded as the run's failure."""

    def __init__(
        self, run_uri: str, attempt: int, facts: dict[str, Any], num_steps: int, start: int, active: bool
    ) -> None:
        self._run_uri, self._attempt = run_uri, attempt
        self.active = active  # whether this rank logs
        self._record = {**facts, "num_steps": num_steps, "step": start, "attempt": attempt}
        self._rows: list[dict[str, Any]] = []
        self._part = 0
        self._flushed = self._heartbeat = time.monotonic()
        self.superseded = False  # a newer attempt owns the run
        self.writer = BackgroundWriter(lambda text: console.say(f"warning: {text}"))
        self._log_file = LogFile(run_uri, f"{attempt:04d}", self.writer) if active else None

    def __enter__(self) -> RunLogger:
        if self._log_file:
            self._log_file.__enter__()
        self.update(state=record.RUNNING)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.active:
            console.close()
        if error is not None:
            self.update(state=record.FAILED, error=f"{type(error).__name__}: {error}")
            if self._log_file:
                self._log_file.note(f"failed: {type(error).__name__}: {error}")
        self.flush()
        if self._log_file:
            self._log_file.__exit__()
        self.writer.close()

    def say(self, text: str) -> None:
        """Print a message, on rank 0 only."""
        if self.active:
            console.say(text)

    def begin(self, origin: dict[str, Any], tensors: dict[str, list[str]]) -> None:
        """Record where the initial weights come from in run.json, and in the log only, what happened to each tensor."""
        self.update(initial=origin)
        for what, names in tensors.items():
            if self._log_file:
                self._log_file.note(f"tensors {what} ({len(names)}): {', '.join(names) or 'none'}")

    def log(self, step: int, kind: str, row: dict[str, Any]) -> None:
        """Add a row of metrics. `kind` is `train` or `eval`; `step` is the number of updates so far."""
        self._rows.append({"step": step, "kind": kind, "attempt": self._attempt, "time": time.time(), **row})
        if time.monotonic() - self._flushed > _SEGMENT_SECONDS:
            self.flush()

    def show(self, step: int, num_steps: int, row: dict[str, Any], commit: int | None, miou: float | None) -> None:
        """Show the live progress line, and renew the heartbeat in run.json."""
        line = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['images_per_second']:.1f} img/s  "
            f"wait {row['wait_share']:.0%}  commit {commit if commit is not None else '-'}  "
            f"mIoU {'-' if miou is None else format(miou, '.4f')}  eta {console.duration(row['eta_seconds'])}"
        )
        if self.active:
            console.show(step, num_steps, line)
        self._record["step"] = step
        if time.monotonic() - self._heartbeat > _HEARTBEAT_SECONDS:
            self.update()

    def update(self, **fields: Any) -> None:
        """Set fields of run.json."""
        self._heartbeat = time.monotonic()
        self._record |= fields
        tree = {**self._record, "heartbeat": time.time()}
        if self.active:
            self.writer.put("run.json", lambda: self._save(tree))

    def owns_run(self) -> bool:
        """Return whether this attempt still owns the run. Reads storage."""
        self.superseded = record.newest_attempt(self._run_uri) > self._attempt
        return not self.superseded

    def _save(self, tree: dict[str, Any]) -> None:
        if self.owns_run():
            record.save(self._run_uri, tree)

    def flush(self) -> None:
        """Write the rows and log lines so far in the background."""
        rows, self._rows, self._flushed = self._rows, [], time.monotonic()
        if rows and self.active:
            self._part += 1
            at = (self._run_uri, self._attempt, self._part)
            self.writer.put(f"metrics {self._part}", lambda: segments.write_metrics(*at, rows))
        if self._log_file:
            self._log_file.flush()
