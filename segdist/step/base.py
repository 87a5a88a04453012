"""How gradients of micro-batches become one update: what every strategy can do, and does where ranks keep whole weights."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from segdist.distributed import World
from segdist.models.segmenter import Segmenter
from segdist.step import optim

Tensors = dict[str, torch.Tensor]


class Strategy:
    """`forward` is what training passes go through: the model, or what is wrapped around it.

    `least_passes`: forward passes that every rank must make in a step, if it has fewer micro-batches; 0: it does not matter.
    """

    least_passes = 0

    def __init__(
        self, model: Segmenter, forward: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, world: World
    ) -> None:
        self.forward = forward
        self._model, self._optimizer, self._clip, self._world = model, optimizer, clip, world

    def group(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """What surrounds forward and backward of a micro-batch."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a micro-batch's part of the loss."""
        raise NotImplementedError

    def clear(self) -> bool:
        """Forgets the gradients so far; whether that can be: other ranks may have some of them already."""
        raise NotImplementedError

    def update(self) -> torch.Tensor:
        """Moves the weights by the gradient of the global batch; its norm. All ranks must call it."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets the model and the other ranks go."""

    def full_model(self) -> Segmenter:
        """The model with all its weights. All ranks must call it."""
        return self._model

    def optimizer_state(self) -> Tensors:
        """As `optim.tensors` names it. All ranks must call it."""
        return optim.tensors(self._model, self._optimizer)

    def load_optimizer_state(self, stored: Tensors) -> None:
        """Puts that back, before the first update. All ranks must call it."""
        optim.load_tensors(self._model, self._optimizer, stored)

    def scaler_state(self) -> dict[str, Any]:
        """What fp16's loss scale must remember; JSON-able."""
        return {}

    def load_scaler_state(self, stored: dict[str, Any]) -> None:
        """Puts that back."""

    def _clipped_norm(self) -> torch.Tensor:
        """The norm of all gradients together, which are then scaled down to the limit where they exceed it."""
        moved = [p for p in self._model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(moved, self._clip, norm)
        return norm
