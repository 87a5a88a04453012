"""Gradients added in float64 on a fixed grid and reduced in float64: the same bits on any number of ranks."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import nn

from segdist.distributed import World
from segdist.models.segmenter import Segmenter
from segdist.step.base import Strategy

# Adding C and taking it away rounds a float64 to multiples of 2**-40, far below Adam's eps. Sums of such numbers are
# exact, hence independent of their order, as long as each is below 2**11 and the sum below 2**13; a gradient beyond that
# (a run about to diverge) is still added rightly, but the last bits may then depend on the number of ranks.
GRID = 1.5 * 2.0**12


class Exact(Strategy):
    """Costs 8 bytes per parameter. Needs the same kernels and number of threads on every rank.

    One reduction, after the last backward: in buckets beside it, it took CPU ranks longer (benchmarks/results/strategies.md).
    """

    def __init__(
        self, model: Segmenter, forward: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, world: World
    ) -> None:
        super().__init__(model, forward, optimizer, clip, world)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        sizes = [p.numel() for p in self._parameters]
        self._sum = torch.zeros(sum(sizes), dtype=torch.float64, device=world.device)
        self._parts = [part.view(p.shape) for part, p in zip(self._sum.split(sizes), self._parameters)]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._move, part))
            for parameter, part in zip(self._parameters, self._parts)
        ]

    def group(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    @staticmethod
    def _move(part: torch.Tensor, parameter: torch.Tensor) -> None:
        """Adds a micro-batch's gradient of a parameter to its part of the sum."""
        assert parameter.grad is not None
        part.add_(parameter.grad.double().add_(GRID).sub_(GRID))
        parameter.grad = None

    def clear(self) -> bool:
        self._sum.zero_()
        self._optimizer.zero_grad()  # of a parameter whose turn it was when memory ran out
        return True

    def update(self) -> torch.Tensor:
        self._world.sum(self._sum)
        for parameter, part in zip(self._parameters, self._parts):
            parameter.grad = torch.empty_like(parameter).copy_(part)  # in the parameter's own memory format
        norm = self._clipped_norm()
        self._optimizer.step()
        self.clear()
        return norm

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
