"""The exponential moving average of a model's weights, which often scores better than the weights themselves."""

from __future__ import annotations

import copy

import torch

from segdist.models.segmenter import Segmenter


class Ema:
    """The average of a model's weights and running statistics over its updates; `model` is ready to be scored.

    The decay of update t (from 0) is min(decay, (1 + t) / (10 + t)), so that the average forgets random initial weights
    (as tf.train.ExponentialMovingAverage has it, and EfficientNet's recipe). Costs a copy of the model.
    """

    def __init__(self, model: Segmenter, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._own = list(self.model.state_dict().values())  # views of its memory
        self._source = model

    def update(self, step: int) -> None:
        """Takes in the weights after update `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        pairs = list(zip(self._own, self._source.state_dict().values()))  # asked anew: ZeRO moves weights in memory
        averages = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in averages], [b for _, b in averages], 1 - decay)
        for count, current in pairs:
            if not count.is_floating_point():
                count.copy_(current)
