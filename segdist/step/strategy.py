"""The interface of a strategy: how the gradients of micro-batches become one update."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from segdist.distributed import World
from segdist.models.segmenter import Segmenter, Tensors
from segdist.step import optim


class Strategy:
    """Base class. Its implementations are for strategies where every rank keeps all weights.

    `forward` is the module for training passes: the model or a wrapper around it. `min_passes` is the number of forward
    passes that every rank must make in a step, even with fewer micro-batches; 0 means no minimum.
    """

    min_passes = 0

    def __init__(
        self, model: Segmenter, forward: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None, world: World
    ) -> None:
        self.forward = forward
        self._model, self._optimizer, self._clip, self._world = model, optimizer, clip, world

    def micro_batch(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context for forward and backward of a micro-batch."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's part of the loss."""
        raise NotImplementedError

    def clear(self) -> bool:
        """Discard the gradients of this step; return False if that is impossible because other ranks may have received some."""
        raise NotImplementedError

    def update(self) -> torch.Tensor:
        """Update the weights with the gradient of the global batch; return its norm. All ranks must call it."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the model and the process group."""

    def full_model(self) -> Segmenter:
        """Return the model with all its weights. All ranks must call it."""
        return self._model

    def optimizer_state(self) -> Tensors:
        """Return the optimizer's state, with the names of `optim.tensors`. All ranks must call it."""
        return optim.tensors(self._model, self._optimizer)

    def load_optimizer_state(self, stored: Tensors) -> None:
        """Restore what `optimizer_state` returned, before the first update. All ranks must call it."""
        optim.load_tensors(self._model, self._optimizer, stored)

    def scaler_state(self) -> dict[str, Any]:
        """Return the JSON-able state of fp16's loss scaler."""
        return {}

    def load_scaler_state(self, stored: dict[str, Any]) -> None:
        """Restore what `scaler_state` returned."""

    def _clip_gradients(self) -> torch.Tensor:
        """Scale all gradients down to the norm limit, if there is one; return their norm before that."""
        moved = [p for p in self._model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in moved if p.grad is not None])
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(moved, self._clip, norm)
        return norm
