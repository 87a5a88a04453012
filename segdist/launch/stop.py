"""The wish to end, as signals bring it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from segdist import log


class StopSignal:
    """A `notice` that says "stop" once the process was asked to end. Enter it as a context."""

    def __init__(self) -> None:
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
            self.__exit__()
            raise KeyboardInterrupt
        self._asked = True
        if os.environ.get("RANK", "0") == "0":
            log.say("stopping: a checkpoint is committed after this step; ask again to stop at once")


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
