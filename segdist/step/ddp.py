"""DistributedDataParallel: its reduction overlaps the last group's backward. Held to a band of the loss curve."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdist.distributed import World
from segdist.models.segmenter import Segmenter
from segdist.step.base import Strategy


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
        self._is_last = self._sent = False
        if world.num_ranks > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            # 1x1 kernels that are channels_last: their strides differ from a bucket's in dimensions of size 1 alone
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # its new name is unknown to torch 2.9
                self.forward = DistributedDataParallel(
                    forward, devices, broadcast_buffers=False, gradient_as_bucket_view=True
                )

    def group(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        self._is_last = is_last
        if is_last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()  # around forward too: a forward outside of it arms the reduction

    def backward(self, loss: torch.Tensor) -> None:
        self._sent = self._is_last
        # DDP averages over ranks; the loss is divided already
        self._scaler.scale(loss * self._world.num_ranks).backward()

    def clear(self) -> bool:
        self._optimizer.zero_grad()
        return self._world.num_ranks == 1 or not self._sent

    def update(self) -> torch.Tensor:
        self._scaler.unscale_(self._optimizer)
        norm = self._clipped_norm()
        self._scaler.step(self._optimizer)  # or not, where fp16 overflowed: the next scale is lower
        self._scaler.update()
        self._optimizer.zero_grad()
        self._sent = False
        if self._scaler.is_enabled() and self._scaler.get_scale() >= 1:
            return torch.where(norm.isfinite(), norm, 0.0)
        return norm  # where no scale helps, infinite: the training has diverged

    def scaler_state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_scaler_state(self, stored: dict[str, Any]) -> None:
        if stored and self._scaler.is_enabled():
            self._scaler.load_state_dict(stored)

    def close(self) -> None:
        self.forward = self._model  # DDP's hooks end with its wrapper
