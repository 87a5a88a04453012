"""Exponential moving average (EMA) of a model's weights, which often scores better than the raw weights."""

from __future__ import annotations

import copy

import torch

from segdist.models.segmenter import Segmenter


class Ema:
    """EMA weights and running statistics. `model` holds them, in evaluation mode.

    The decay of update t (from 0) is min(decay, (1 + t) / (10 + t)), so the EMA forgets random initial weights quickly (as in
    tf.train.ExponentialMovingAverage and EfficientNet). Takes the memory of one more model.
    """

    def __init__(self, model: Segmenter, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._own = list(self.model.state_dict().values())  # views of the EMA model's memory
        self._source = model

    def update(self, step: int) -> None:
        """Add the weights after update `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        pairs = list(zip(self._own, self._source.state_dict().values()))  # read each time: ZeRO moves weights in memory
        floats = [(ema, raw) for ema, raw in pairs if ema.is_floating_point()]
        torch._foreach_lerp_([ema for ema, _ in floats], [raw for _, raw in floats], 1 - decay)
        for count, current in pairs:
            if not count.is_floating_point():
                count.copy_(current)
