"""What strategies have alike that keep whole weights and optimizer states on every rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segdist import optim
from segdist.models.segmenter import Segmenter
from segdist.world import World

Tensors = dict[str, torch.Tensor]


class Plain:
    passes = 0

    def __init__(
        self, model: Segmenter, forward: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, world: World
    ) -> None:
        self.forward = forward
        self._model, self._optimizer, self._clip, self._world = model, optimizer, clip, world

    def whole(self) -> Segmenter:
        """The model with all its weights. All ranks must call it."""
        return self._model

    def moments(self) -> Tensors:
        """The optimizer's states, as `optim.tensors` names them. All ranks must call it."""
        return optim.tensors(self._model, self._optimizer)

    def load_moments(self, stored: Tensors) -> None:
        optim.load_tensors(self._model, self._optimizer, stored)

    def scaler(self) -> dict[str, Any]:
        """What fp16's loss scale must remember; JSON-able."""
        return {}

    def load_scaler(self, stored: dict[str, Any]) -> None:
        pass

    def _clipped_norm(self) -> torch.Tensor:
        """The norm of all gradients together, which are then scaled down to the limit where they exceed it."""
        moved = [p for p in self._model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(moved, self._clip, norm)
        return norm
