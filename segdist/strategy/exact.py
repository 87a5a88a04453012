"""Gradients added in float64 on a fixed grid and reduced in float64: the same bits on any number of ranks."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import nn

from segdist.models.segmenter import Segmenter
from segdist.strategy.base import Strategy
from segdist.world import World

# Adding C and taking it away rounds a float64 to multiples of 2**-40, far below Adam's eps. Sums of such numbers are
# exact, hence independent of their order, as long as each is below 2**11 and the sum below 2**13; a gradient beyond that
# (a run about to diverge) is still added rightly, but the last bits may then depend on the number of ranks.
GRID = 1.5 * 2.0**12
BUCKET_BYTES = 32 << 20  # of sums that are reduced while the backward pass works on the next ones


class Exact(Strategy):
    """Costs 8 bytes per parameter. Needs the same kernels and number of threads on every rank."""

    def __init__(
        self, model: Segmenter, forward: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, world: World
    ) -> None:
        super().__init__(model, forward, optimizer, clip, world)
        # backward comes to the last parameters first, so theirs is the first bucket that is full
        self._parameters = [p for p in reversed(list(model.parameters())) if p.requires_grad]
        sizes = [p.numel() for p in self._parameters]
        self._sum = torch.zeros(sum(sizes), dtype=torch.float64, device=world.device)
        self._parts = [part.view(p.shape) for part, p in zip(self._sum.split(sizes), self._parameters)]
        starts = torch.tensor([0, *sizes]).cumsum(0)[:-1]
        self._bucket_of = (starts * 8 // BUCKET_BYTES).unique(return_inverse=True)[1].tolist()
        self._members = torch.bincount(torch.tensor(self._bucket_of)).tolist()
        borders = [self._bucket_of.index(b) for b in range(1, len(self._members))]
        self._buckets = self._sum.tensor_split([int(starts[b]) for b in borders])
        self._overlaps, self._sent = False, list[Any]()
        self.clear()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._move, number))
            for number, parameter in enumerate(self._parameters)
        ]

    def group(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        self._overlaps = is_last and self._world.num_ranks > 1
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _move(self, number: int, parameter: torch.Tensor) -> None:
        """Adds a group's gradient of a parameter to the sum; after the last group, lets full buckets go."""
        assert parameter.grad is not None
        self._parts[number].add_(parameter.grad.double().add_(GRID).sub_(GRID))
        parameter.grad = None
        if self._overlaps:
            self._missing[self._bucket_of[number]] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

    def _send(self) -> None:
        self._sent.append(self._world.begin_sum(self._buckets[len(self._sent)]))  # in one order on all ranks

    def clear(self) -> bool:
        if self._sent:
            return False
        self._sum.zero_()
        self._optimizer.zero_grad()  # of a parameter whose turn it was when memory ran out
        self._missing = list(self._members)
        return True

    def update(self) -> torch.Tensor:
        while len(self._sent) < len(self._buckets):
            self._send()
        for handle in self._sent:
            handle.wait()
        for parameter, part in zip(self._parameters, self._parts):
            parameter.grad = torch.empty_like(parameter).copy_(part)  # in the parameter's own memory format
        norm = self._clipped_norm()
        self._optimizer.step()
        self._sent = []
        self.clear()
        return norm

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
