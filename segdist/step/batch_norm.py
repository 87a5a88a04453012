"""BatchNorm's running statistics, independent of the number of ranks that share a batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchStatistics:
    """Running statistics of all BatchNorm layers in training mode, updated once per step by the mean over its micro-batches."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
        self._stats = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self._counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.size = sum(t.numel() for t in self._stats)

    def begin(self) -> None:
        """Store the statistics at the start of a step."""
        self._start = [t.clone() for t in self._stats]
        self._start_counts = [t.clone() for t in self._counts]

    def rewind(self) -> None:
        """Restore the statistics of the start of the step, before each micro-batch."""
        for tensors, start in ((self._stats, self._start), (self._counts, self._start_counts)):
            if tensors:
                torch._foreach_copy_(tensors, start)

    def flat(self) -> torch.Tensor:
        """Return float64 (size,): the statistics after a micro-batch's forward pass.

        Must be called before its backward pass, which may run blocks again.
        """
        return torch.cat([t.flatten() for t in self._stats]).double() if self._stats else torch.zeros(0)

    def finish(self, rows: torch.Tensor) -> None:
        """Set the statistics to the mean of `rows`, float64 (micro-batches of the global batch, size)."""
        if not self._stats:
            return
        for tensor, value in zip(self._stats, rows.mean(0).split([t.numel() for t in self._stats])):
            tensor.copy_(value.view(tensor.shape))
        if self._counts:
            torch._foreach_copy_(self._counts, [t + 1 for t in self._start_counts])
