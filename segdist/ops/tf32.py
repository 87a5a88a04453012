"""Control of TF32, in which GPUs round the factors of fp32 products to ten bits: faster, but too coarse for scores."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_requests: list[list[str]] = []  # one entry per open context of any thread, since torch's flags are process-wide
_original: list[str] = []  # settings before the first context was opened


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions.

    Contexts may be nested and may be open in several threads. The original settings are restored when the last one closes.
    """
    wanted = ["tf32" if allowed else "ieee"] * len(_backends())
    with _lock:
        if not _requests:
            _original[:] = [backend.fp32_precision for backend in _backends()]
        _requests.append(wanted)
        _set_precisions(wanted)
    try:
        yield
    finally:
        with _lock:
            del _requests[next(i for i, other in enumerate(_requests) if other is wanted)]
            _set_precisions(_requests[-1] if _requests else _original)


def _backends() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn  # conv and rnn must agree, because torch's own code reads them together
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _set_precisions(precisions: list[str]) -> None:
    for backend, precision in zip(_backends(), precisions):
        backend.fp32_precision = precision
