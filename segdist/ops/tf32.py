"""Whether GPUs may round the factors of fp32 products to TF32's ten bits: faster, and not for scores."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_open: list[
    list[str]
] = []  # precisions that open contexts ask for, of all threads, for torch's flags are the process's
_before: list[str] = []  # what held before the first of them


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows it, or not, to matrix products and to convolutions, for which torch allows it by itself.

    Contexts may be nested, and several threads may hold one; what held before comes back when the last one ends.
    """
    wish = ["tf32" if allowed else "ieee"] * len(_places())
    with _lock:
        if not _open:
            _before[:] = [place.fp32_precision for place in _places()]
        _open.append(wish)
        _put(wish)
    try:
        yield
    finally:
        with _lock:
            del _open[next(i for i, other in enumerate(_open) if other is wish)]
            _put(_open[-1] if _open else _before)


def _places() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn  # its two kinds must agree: torch's own code asks for them together
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _put(precisions: list[str]) -> None:
    for place, precision in zip(_places(), precisions):
        place.fp32_precision = precision
