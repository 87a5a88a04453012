"""The exponential moving average of a model's weights, which often scores better than the weights themselves."""

from __future__ import annotations

import copy

import torch

from segdist.models.segmenter import Segmenter

Tensors = dict[str, torch.Tensor]


class Ema:
    """The average of a model's weights and running statistics over its updates; `model` is ready to be scored.

    The decay of update t (from 0) is min(decay, (1 + t) / (10 + t)), so that the average forgets random initial weights
    (as tf.train.ExponentialMovingAverage has it, and EfficientNet's recipe). Costs a copy of the model.
    """

    def __init__(self, model: Segmenter, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))  # views of the same memory
        self._averages = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._counts = [(a, b) for a, b in pairs if not a.is_floating_point()]

    def update(self, step: int) -> None:
        """Takes in the weights after update `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([a for a, _ in self._averages], [b for _, b in self._averages], 1 - decay)
        for average, current in self._counts:
            average.copy_(current)
