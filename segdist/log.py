"""What a person and a machine learn of a run while it goes: one live line, metrics and log in segments, and run.json.

Only rank 0 speaks; on other ranks a Logbook is silent. Everything written goes through the outbox.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from segdist import record
from segdist.outbox import Outbox

_SEGMENT_SECONDS = 30.0
_HEARTBEAT_SECONDS = 15.0
_LINE_SECONDS = 30.0  # between lines of progress in a log
_IN_FULL = 3  # warnings of a kind

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Screen(Protocol):
    """Where people look."""

    def say(self, text: str) -> None:
        """One lasting message."""

    def show(self, done: int, total: int, line: str) -> None:
        """How far the run is."""

    def close(self) -> None:
        """Nothing more moves."""


class Terminal:
    """stderr: messages, and below them one live line; on something that is no terminal, a plain line each time."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        console.print(text, markup=False)

    def show(self, done: int, total: int, line: str) -> None:
        if not console.is_terminal:
            self.say(f"step {done}/{total}  {line}")
            return
        if self._progress is None:
            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[line]}", markup=False))
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task("", total=total, line=line)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, line=line)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


_screen: Screen = Terminal()
_listeners: list[Callable[[str], None]] = []


def use(screen: Screen) -> None:
    """Everything said in this process from now on goes there."""
    global _screen
    _screen = screen


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        return

    def show(self, done: int, total: int, line: str) -> None:
        return

    def close(self) -> None:
        return


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Nothing is shown while it is open."""
    global _screen
    before, _screen = _screen, Silent()
    try:
        yield
    finally:
        _screen = before


def say(text: str) -> None:
    """One message for people."""
    _screen.say(text)
    for listener in _listeners:
        listener(text)


_warned: Counter[str] | None = None  # by kind, while `tallied` is open
_counting = threading.Lock()


@contextlib.contextmanager
def tallied() -> Iterator[None]:
    """While it is open, `warn` says the first few of each kind in full; how many there were is said at its end."""
    global _warned
    before, _warned = _warned, Counter()
    try:
        yield
    finally:
        warned, _warned = _warned, before
        for kind, num in warned.items():
            if num > _IN_FULL:
                say(f"warning: {num - _IN_FULL} more {kind}, {num} in all")


def warn(kind: str, text: str) -> None:
    """A message that may come for each of thousands of files; `kind` names those it is about. From any thread."""
    with _counting:
        if _warned is not None:
            _warned[kind] += 1
            if _warned[kind] > _IN_FULL:
                return
    say(text)


def show(done: int, total: int, line: str) -> None:
    """The progress of the run, for people."""
    _screen.show(done, total, line)
    for listener in _listeners:
        listener(f"step {done}/{total}  {line}")


def close() -> None:
    """The live line ends here."""
    _screen.close()


def bar(what: str, total: int | None, done: int = 0) -> tuple[Progress, Callable[[int], None]]:
    """A progress bar (use it as a context) and the function that advances it, from `done` on.

    Where stderr is no terminal, a line of progress every half minute instead.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = progress.add_task(what, total=total, completed=done)
    told, told_at = done, time.monotonic()

    def advance(num: int) -> None:
        nonlocal done, told, told_at
        progress.advance(task, num)
        done, now = done + num, time.monotonic()
        if not console.is_terminal and now - told_at > _LINE_SECONDS:
            rate = (done - told) / (now - told_at)
            told, told_at = done, now
            say(f"{what} {done}{'' if total is None else f'/{total}'}, {rate:.3g} per second")

    return progress, advance


class Diary:
    """What is said in this process while it is open; `flush` puts it on its way to `<run_uri>/logs/<name>-<part>.txt`."""

    def __init__(self, run_uri: str, name: str, outbox: Outbox) -> None:
        self._run_uri, self._name, self._outbox = run_uri, name, outbox
        self._lines: list[str] = []
        self._part = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> Diary:
        _listeners.append(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        _listeners.remove(self.note)
        self.flush()

    def note(self, text: str) -> None:
        """Keeps a line that nobody said."""
        self._lines.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}")

    def flush(self, every_seconds: float = 0.0) -> None:
        """At most so often."""
        now = time.monotonic()
        if not self._lines or now - self._flushed < every_seconds:
            return
        lines, self._lines, self._flushed = self._lines, [], now
        self._part += 1
        address = (self._run_uri, f"{self._name}-{self._part:05d}")
        self._outbox.put(f"log {self._part}", lambda: record.write_log(*address, lines))


class Logbook:
    """The diary of one attempt. Enter it as a context; an exception inside is recorded as the run's failure."""

    def __init__(
        self, run_uri: str, attempt: int, facts: dict[str, Any], num_steps: int, start: int, active: bool
    ) -> None:
        self._run_uri, self._attempt = run_uri, attempt
        self.active = active  # whether this rank speaks and writes
        self._record = {**facts, "num_steps": num_steps, "step": start, "attempt": attempt}
        self._rows: list[dict[str, Any]] = []
        self._part = 0
        self._flushed = self._beaten = time.monotonic()
        self.superseded = False  # a newer attempt owns the run
        self.outbox = Outbox(lambda text: say(f"warning: {text}"))
        self._diary = Diary(run_uri, f"{attempt:04d}", self.outbox) if active else None

    def __enter__(self) -> Logbook:
        if self._diary:
            self._diary.__enter__()
        self.update(state=record.RUNNING)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.active:
            close()
        if error is not None:
            self.update(state=record.FAILED, error=f"{type(error).__name__}: {error}")
            if self._diary:
                self._diary.note(f"failed: {type(error).__name__}: {error}")
        self.flush()
        if self._diary:
            self._diary.__exit__()
        self.outbox.close()

    def say(self, text: str) -> None:
        if self.active:
            say(text)

    def begin(self, origin: dict[str, Any], tensors: dict[str, list[str]]) -> None:
        """Where the initial weights come from, for run.json, and what became of each tensor, for the log alone."""
        self.update(initial=origin)
        for what, names in tensors.items():
            if self._diary:
                self._diary.note(f"tensors {what} ({len(names)}): {', '.join(names) or 'none'}")

    def log(self, step: int, kind: str, row: dict[str, Any]) -> None:
        """Keeps a row of metrics: kind `train` or `eval`, after `step` updates."""
        self._rows.append({"step": step, "kind": kind, "attempt": self._attempt, "time": time.time(), **row})
        if time.monotonic() - self._flushed > _SEGMENT_SECONDS:
            self.flush()

    def show(self, step: int, num_steps: int, row: dict[str, Any], commit: int | None, miou: float | None) -> None:
        """The live line, and a sign of life in run.json."""
        line = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['images_per_second']:.1f} img/s  "
            f"wait {row['wait_share']:.0%}  commit {commit if commit is not None else '-'}  "
            f"mIoU {'-' if miou is None else format(miou, '.4f')}  eta {clock(row['eta_seconds'])}"
        )
        if self.active:
            show(step, num_steps, line)
        self._record["step"] = step
        if time.monotonic() - self._beaten > _HEARTBEAT_SECONDS:
            self.update()

    def update(self, **fields: Any) -> None:
        """Puts fields into run.json."""
        self._beaten = time.monotonic()
        self._record |= fields
        tree = {**self._record, "heartbeat": time.time()}
        if self.active:
            self.outbox.put("run.json", lambda: self._save(tree))

    def owns_run(self) -> bool:
        """Whether no newer attempt has taken the run over; asks storage."""
        self.superseded = record.newest_attempt(self._run_uri) > self._attempt
        return not self.superseded

    def _save(self, tree: dict[str, Any]) -> None:
        if self.owns_run():
            record.save(self._run_uri, tree)

    def flush(self) -> None:
        """Puts the rows and lines so far on their way to storage."""
        rows, self._rows, self._flushed = self._rows, [], time.monotonic()
        if rows and self.active:
            self._part += 1
            at = (self._run_uri, self._attempt, self._part)
            self.outbox.put(f"metrics {self._part}", lambda: record.write_metrics(*at, rows))
        if self._diary:
            self._diary.flush()


class Meter:
    """Means and speeds between two looks, and over the whole attempt. Evaluation does not count as training time."""

    def __init__(self, global_batch_size: int, num_steps: int) -> None:
        self._batch, self._num_steps = global_batch_size, num_steps
        self._losses: list[Any] = []
        self._norm: Any = 0.0
        self._since = time.perf_counter()
        self._waited = 0.0
        self._total_seconds = self._total_waited = 0.0
        self._total_steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Surrounds the wait for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Surrounds what is no training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def count(self, loss: Any, norm: Any) -> None:
        """A step was made; its loss and gradient norm stay on the device until somebody looks."""
        self._losses.append(loss)
        self._norm = norm

    def row(self, done: int) -> dict[str, Any]:
        """The metrics since the last look."""
        losses = [float(loss) for loss in self._losses]
        seconds, waited = time.perf_counter() - self._since, self._waited
        self._total_seconds += seconds
        self._total_waited += waited
        self._total_steps += len(losses)
        self._losses, self._waited, self._since = [], 0.0, time.perf_counter()
        return {
            "loss": sum(losses) / max(len(losses), 1),
            "grad_norm": float(self._norm),
            "images_per_second": len(losses) * self._batch / max(seconds, 1e-9),
            "wait_share": waited / max(seconds, 1e-9),
            "eta_seconds": (self._num_steps - done) * self._total_seconds / max(self._total_steps, 1),
        }

    def summary(self) -> dict[str, Any]:
        """Over the attempt; None where it made no step."""
        if not self._total_steps:
            return {"images_per_second": None, "wait_share": None}
        return {
            "images_per_second": self._total_steps * self._batch / self._total_seconds,
            "wait_share": self._total_waited / self._total_seconds,
        }


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
