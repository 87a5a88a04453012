"""PyTorch DistributedDataParallel. All-reduce overlaps the last micro-batch's backward pass.

Weights are not bit-identical between numbers of ranks; the loss curve stays within a tested tolerance.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdist.distributed import World
from segdist.models.segmenter import Segmenter
from segdist.step.strategy import Strategy


class Ddp(Strategy):
    def __init__(
        self,
        model: Segmenter,
        forward: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip: float | None,
        world: World,
        precision: str,
    ) -> None:
        super().__init__(model, forward, optimizer, clip, world)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self._is_last = self._reduced = False
        if world.num_ranks > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            # strides of 1x1 channels_last kernels differ from those of a bucket only in dimensions of size 1
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # torch 2.9 lacks the new name
                self.forward = DistributedDataParallel(
                    forward, devices, broadcast_buffers=False, gradient_as_bucket_view=True
                )

    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        self._is_last = is_last
        if is_last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()  # around forward too: a forward outside no_sync starts the reduction

    def backward(self, loss: torch.Tensor) -> None:
        self._reduced = self._is_last
        # DDP averages over ranks, but the loss is already divided
        self._scaler.scale(loss * self._world.num_ranks).backward()

    def clear(self) -> bool:
        self._optimizer.zero_grad()
        return self._world.num_ranks == 1 or not self._reduced

    def update(self) -> torch.Tensor:
        self._scaler.unscale_(self._optimizer)
        norm = self._clip_gradients()
        self._scaler.step(self._optimizer)  # skipped if fp16 overflowed; the next scale is lower
        self._scaler.update()
        self._optimizer.zero_grad()
        self._reduced = False
        if self._scaler.is_enabled() and self._scaler.get_scale() >= 1:
            return torch.where(norm.isfinite(), norm, 0.0)
        return norm  # infinite if no scale helps: training has diverged

    def scaler_state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_scaler_state(self, stored: dict[str, Any]) -> None:
        if stored and self._scaler.is_enabled():
            self._scaler.load_state_dict(stored)

    def close(self) -> None:
        self.forward = self._model  # DDP removes its hooks when the wrapper is freed
