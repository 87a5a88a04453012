"""DistributedDataParallel: its reduction overlaps the last group's backward. Held to a band of the loss curve."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdist.models.segmenter import Segmenter
from segdist.strategy.plain import Plain
from segdist.world import World


class Ddp(Plain):
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
        self._in_last = False
        if world.num_ranks > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(
                forward, devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def group(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """What surrounds forward and backward of a group."""
        self._in_last = is_last
        if is_last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()  # around forward too: a forward outside of it arms the reduction

    def backward(self, loss: torch.Tensor) -> None:
        self._scaler.scale(
            loss * self._world.num_ranks
        ).backward()  # DDP averages over ranks; the loss is divided already

    def clear(self) -> bool:
        """Forgets the gradients so far; whether that can be: other ranks may have some of them already."""
        self._optimizer.zero_grad()
        return self._world.num_ranks == 1 or not self._in_last

    def update(self) -> torch.Tensor:
        """Moves the weights by the gradient of the global batch; its norm. All ranks must call it."""
        self._scaler.unscale_(self._optimizer)
        norm = self._clipped_norm()
        self._scaler.step(self._optimizer)  # or not, where fp16 overflowed: the next scale is lower
        self._scaler.update()
        self._optimizer.zero_grad()
        return torch.where(norm.isfinite(), norm, 0.0) if self._scaler.is_enabled() else norm

    def scaler(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_scaler(self, stored: dict[str, Any]) -> None:
        if stored and self._scaler.is_enabled():
            self._scaler.load_state_dict(stored)

    def close(self) -> None:
        """Lets the model go."""
        self.forward = self._model  # DDP's hooks end with its wrapper
