"""Writes on their way to storage: made in a thread, in order, retried, and never waited for by a step.

A job that is still waiting when a newer one of its name comes is replaced by it, so that dead storage fills no memory. What
was given up is kept, to be tried once more at the end, and to be known as lost then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from segdist.errors import StorageError

_PAUSES = (0.5, 1, 2, 4, 8, 16, 32)  # seconds before each retry


class BackgroundWriter:
    """Call `put`, and at the end `close`. `warn` is told of every failure, from the thread."""

    def __init__(self, warn: Callable[[str], None], pauses: tuple[float, ...] = _PAUSES) -> None:
        self._warn, self._pauses = warn, pauses
        self._jobs: dict[str, Callable[[], None]] = {}
        self._lost: dict[str, Callable[[], None]] = {}
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def put(self, name: str, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.pop(name, None)
            self._lost.pop(name, None)
            self._jobs[name] = job
            self._changed.notify_all()

    def flush(self) -> None:
        """Waits until everything put so far is written or given up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._busy)

    def finish(self) -> list[str]:
        """Waits for everything, tries once more what was given up, and names what is lost."""
        self.flush()
        with self._changed:
            self._jobs, self._lost = self._lost, {}
            self._changed.notify_all()
        self.flush()
        return sorted(self._lost)

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                name = next(iter(self._jobs))
                job = self._jobs.pop(name)
                self._busy = True
            try:
                self._try(name, job)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _try(self, name: str, job: Callable[[], None]) -> None:
        for pause in (*self._pauses, None):
            try:
                job()
                return
            except StorageError as error:
                if pause is None:
                    self._warn(f"{name}: given up after {len(self._pauses) + 1} tries: {error}")
                    self._lose(name, job)
                    return
                self._warn(f"{name}: {error}; trying again in {pause} s")
                time.sleep(pause)
            except Exception as error:  # a bug in a job must not end the thread that writes the next checkpoint
                self._warn(f"{name}: failed: {error!r}")
                self._lose(name, job)
                return

    def _lose(self, name: str, job: Callable[[], None]) -> None:
        with self._changed:
            if name not in self._jobs:  # a newer one will do
                self._lost[name] = job
