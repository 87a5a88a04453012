"""Whether GPUs may round the factors of fp32 products to TF32's ten bits: faster, and not for scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allows it, or not, to matrix products and to convolutions, for which torch allows it by itself."""
    cudnn: Any = torch.backends.cudnn  # its kinds must agree: torch's own code asks for them together
    places: tuple[Any, ...] = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for place, was in zip(places, before):
            place.fp32_precision = was
