"""Writes to storage in a background thread: in order, with retries, and without delaying a step.

A waiting job is replaced by a newer job of the same name, so unavailable storage does not fill memory. A job that was given up
is kept and tried once more at the end; if that fails too, it counts as lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from segdist.errors import StorageError

_PAUSES = (0.5, 1, 2, 4, 8, 16, 32)  # seconds before each retry


class BackgroundWriter:
    """Call `put`, and `close` at the end. `warn` is called with every failure, from the thread."""

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
        """Run a job in the background. It replaces a waiting job of the same name."""
        with self._changed:
            self._jobs.pop(name, None)
            self._lost.pop(name, None)
            self._jobs[name] = job
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until every job so far is done or given up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._busy)

    def finish(self) -> list[str]:
        """Wait for all jobs, retry once what was given up, and return the names of the jobs that are lost."""
        self.flush()
        with self._changed:
            self._jobs, self._lost = self._lost, {}
            self._changed.notify_all()
        self.flush()
        return sorted(self._lost)

    def close(self) -> None:
        """Wait for all jobs and end the thread."""
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
                    self._warn(f"{name}: gave up after {len(self._pauses) + 1} attempts: {error}")
                    self._lose(name, job)
                    return
                self._warn(f"{name}: {error}; trying again in {pause} s")
                time.sleep(pause)
            except Exception as error:  # a bug in one job must not end the thread that writes the next checkpoint
                self._warn(f"{name}: failed: {error!r}")
                self._lose(name, job)
                return

    def _lose(self, name: str, job: Callable[[], None]) -> None:
        with self._changed:
            if name not in self._jobs:  # a newer job of this name replaces it
                self._lost[name] = job
