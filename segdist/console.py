"""Messages and progress for people, on stderr."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_LINE_SECONDS = 30.0  # between lines of progress in a log
_IN_FULL = 3  # warnings of a kind

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Screen(Protocol):
    """Shows messages and progress to a person."""

    def say(self, text: str) -> None:
        """Print a message that stays."""

    def show(self, done: int, total: int, line: str) -> None:
        """Update the progress line."""

    def close(self) -> None:
        """End the progress line."""


class Terminal:
    """Prints to stderr: messages, with one live line below them. If stderr is not a terminal, a plain line each time."""

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


def listen(listener: Callable[[str], None]) -> None:
    """Also passes everything said in this process to `listener`, until `unlisten`."""
    _listeners.append(listener)


def unlisten(listener: Callable[[str], None]) -> None:
    """Undo `listen`."""
    _listeners.remove(listener)


def use(screen: Screen) -> None:
    """Replace the screen of this process."""
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
def quiet() -> Iterator[None]:
    """Show nothing while the context is open."""
    global _screen
    before, _screen = _screen, Silent()
    try:
        yield
    finally:
        _screen = before


def say(text: str) -> None:
    """Print one message."""
    _screen.say(text)
    for listener in _listeners:
        listener(text)


_warned: Counter[str] | None = None  # by kind, while `tallied` is open
_counting = threading.Lock()


@contextlib.contextmanager
def limit_warnings() -> Iterator[None]:
    """Limit `warn` to the first few messages of each kind, and print how many there were at the end."""
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
    """Print a warning that may be repeated for thousands of files. `kind` names what is counted. Thread-safe."""
    with _counting:
        if _warned is not None:
            _warned[kind] += 1
            if _warned[kind] > _IN_FULL:
                return
    say(text)


def show(done: int, total: int, line: str) -> None:
    """Show the progress of the run."""
    _screen.show(done, total, line)
    for listener in _listeners:
        listener(f"step {done}/{total}  {line}")


def close() -> None:
    """End the progress line."""
    _screen.close()


def bar(what: str, total: int | None, done: int = 0) -> tuple[Progress, Callable[[int], None]]:
    """Return a progress bar (a context manager that starts at `done`) and the function that advances it.

    If stderr is not a terminal, a line of progress is printed every half minute instead.
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


def duration(seconds: float) -> str:
    """Return m:ss, or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
