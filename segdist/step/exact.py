"""Gradients summed in float64 on a fixed grid and reduced in float64: bit-identical on any number of ranks."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import nn

from segdist.distributed import World
from segdist.models.segmenter import Segmenter
from segdist.step.strategy import Strategy

# Adding and subtracting GRID rounds a float64 to a multiple of 2**-40, far below Adam's eps. Sums of such numbers are exact,
# and so independent of their order, as long as each is below 2**11 and the sum below 2**13. A larger gradient (of a run that
# is about to diverge) is still added correctly, but its last bits may depend on the number of ranks.
GRID = 1.5 * 2.0**12


class Exact(Strategy):
    """Takes 8 bytes per parameter. All ranks must use the same kernels and the same number of threads.

    There is one reduction, after the last backward pass. Bucketed reductions that overlap it were slower on CPU ranks
    (benchmarks/results/strategies.md).
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
            parameter.register_post_accumulate_grad_hook(functools.partial(self._add_gradient, part))
            for parameter, part in zip(self._parameters, self._parts)
        ]

    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    @staticmethod
    def _add_gradient(part: torch.Tensor, parameter: torch.Tensor) -> None:
        """Move a parameter's gradient of one micro-batch into its part of the sum."""
        assert parameter.grad is not None
        part.add_(parameter.grad.double().add_(GRID).sub_(GRID))
        parameter.grad = None

    def clear(self) -> bool:
        self._sum.zero_()
        self._optimizer.zero_grad()  # of the parameter at which memory ran out
        return True

    def update(self) -> torch.Tensor:
        self._world.sum(self._sum)
        for parameter, part in zip(self._parameters, self._parts):
            parameter.grad = torch.empty_like(parameter).copy_(part)  # in the parameter's own memory format
        norm = self._clip_gradients()
        self._optimizer.step()
        self.clear()
        return norm

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
