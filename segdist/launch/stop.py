"""The wish to end, as signals bring it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from segdist import console

STOPPING = "stopping: a checkpoint is committed after this step; Ctrl-C again stops at once"


class StopSignal:
    """A `notice` that says "stop" once the process was asked to end. Enter it as a context.

    Only Ctrl-C, the second time, means "at once": SIGTERM comes from machines, and more than once (KubeRay stops the job of a
    RayJob that is deleted, and then the pod's hook does; torchrun passes on the Ctrl-C that its ranks have heard themselves).
    """

    def __init__(self, told: str | None = STOPPING) -> None:
        self._told = told  # to whoever asks; None where others say it
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> Any:
        return "stop" if self._asked else None

    def _hear(self, number: int, frame: object) -> None:
        if self._asked:
            if number == signal.SIGINT:
                self.__exit__()
                raise KeyboardInterrupt
            return
        self._asked = True
        if self._told and os.environ.get("RANK", "0") == "0":
            console.say(self._told)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that nothing of it stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
