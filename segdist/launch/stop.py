"""Stop requests by signal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from segdist import console

STOPPING = "stopping: committing a checkpoint after this step. Press Ctrl-C again to stop at once."


class StopSignal:
    """A `notice` that returns "stop" after SIGTERM or Ctrl-C. Use it as a context manager.

    Only a second Ctrl-C stops at once. SIGTERM may arrive more than once: KubeRay stops the job of a deleted RayJob and then
    the pod's hook does so again; torchrun passes on a Ctrl-C that its ranks have received themselves.
    """

    def __init__(self, message: str | None = STOPPING) -> None:
        self._message = message  # printed on the first signal; None if the caller prints it
        self._requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> Any:
        return "stop" if self._requested else None

    def _handle(self, number: int, frame: object) -> None:
        if self._requested:
            if number == signal.SIGINT:
                self.__exit__()
                raise KeyboardInterrupt
            return
        self._requested = True
        if self._message and os.environ.get("RANK", "0") == "0":
            console.say(self._message)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM exit this process like Ctrl-C does, so that its cleanup runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
