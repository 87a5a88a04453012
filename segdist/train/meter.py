"""Mean loss and throughput between two log lines, and over a whole attempt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


class Meter:
    """Mean loss and throughput since the last row, and over the whole attempt. Evaluation time does not count."""

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
        """Time a wait for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of everything that is not training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def count(self, loss: Any, norm: Any) -> None:
        """Count a step. Its loss and gradient norm stay on the device until the next `row`."""
        self._losses.append(loss)
        self._norm = norm

    def row(self, done: int) -> dict[str, Any]:
        """Return the metrics since the last row."""
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
        """Return the means over the attempt, or None values if it made no step."""
        if not self._total_steps:
            return {"images_per_second": None, "wait_share": None}
        return {
            "images_per_second": self._total_steps * self._batch / self._total_seconds,
            "wait_share": self._total_waited / self._total_seconds,
        }
