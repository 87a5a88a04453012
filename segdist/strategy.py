"""One optimizer update from the micro-batches of a global batch, whichever ranks hold them.

The loss is a sum over micro-batches; what the masks of the whole global batch say divides it once, before any
backward. A micro-batch is a fixed group of slots: its dropout is seeded by (seed, step, group), it starts from the step's
running statistics, and they move once per step by the mean over all groups. So what a step computes does not depend on
the ranks, only in which order gradients are added does; and `exact` takes that away too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from segdist.config import Train
from segdist.data.order import key
from segdist.data.stream import MicroBatch
from segdist.loss import Criterion
from segdist.models.segmenter import Segmenter
from segdist.ops.pixels import to_input
from segdist.world import World

# Adding C and taking it away rounds a float64 to multiples of 2**-40, far below Adam's eps. Sums of such numbers are
# exact, hence independent of their order, as long as each is below 2**11 and the sum below 2**13; a gradient beyond that
# (a run about to diverge) is still added rightly, but the last bits may then depend on the number of ranks.
_GRID = 1.5 * 2.0**12


class Exact:
    """Gradients added in float64 on a fixed grid and reduced once: the same bits on any number of ranks.

    Costs 8 bytes per parameter, and about a fifth of the step on a CPU. Needs the same kernels and thread count.
    """

    scale = 1.0  # of the loss, against what the reduction divides by

    def __init__(self, model: nn.Module, world: World) -> None:
        self._world, self.forward = world, model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._sum = torch.zeros(sum(p.numel() for p in self._parameters), dtype=torch.float64, device=world.device)
        parts = self._sum.split([p.numel() for p in self._parameters])
        self._parts = [part.view(p.shape) for part, p in zip(parts, self._parameters)]
        for parameter, part in zip(self._parameters, self._parts):
            parameter.register_post_accumulate_grad_hook(_move_grad_into(part))

    def last(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """What surrounds forward and backward of a group."""
        return contextlib.nullcontext()

    def reduce(self) -> None:
        """Gives every parameter the gradient of the global batch. All ranks must call it."""
        self._world.sum(self._sum)
        for parameter, part in zip(self._parameters, self._parts):
            parameter.grad = torch.empty_like(parameter).copy_(part)  # in the parameter's own memory format
        self._sum.zero_()


def _move_grad_into(part: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        part.add_(parameter.grad.double().add_(_GRID).sub_(_GRID))
        parameter.grad = None

    return hook


class Ddp:
    """DistributedDataParallel: reduction overlaps the last group's backward. Held to a band of the loss curve."""

    def __init__(self, model: nn.Module, world: World) -> None:
        self.scale = float(world.num_ranks)  # DDP averages over ranks; the loss is divided already
        self.forward: nn.Module = model
        if world.num_ranks > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(
                model, devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def last(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        if is_last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.forward.no_sync()  # around forward too: a forward outside of it arms the reduction

    def reduce(self) -> None:
        pass


class BatchStatistics:
    """The running statistics of all BatchNorm layers, moved once per step by the mean over the groups."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self._stats = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self._counts = [m.num_batches_tracked for m in norms if m.num_batches_tracked is not None]
        self.size = sum(t.numel() for t in self._stats)

    def begin(self) -> None:
        """Remembers where the step starts from."""
        self._start = [t.clone() for t in self._stats]
        self._start_counts = [t.clone() for t in self._counts]

    def rewind(self) -> None:
        """Back to the step's start, for the next group."""
        for tensors, start in ((self._stats, self._start), (self._counts, self._start_counts)):
            if tensors:
                torch._foreach_copy_(tensors, start)

    def flat(self) -> torch.Tensor:
        """float64 (size,): what a group made of them."""
        return torch.cat([t.flatten() for t in self._stats]).double() if self._stats else torch.zeros(0)

    def finish(self, rows: torch.Tensor) -> None:
        """Sets them to the mean of float64 (groups, size), one row per group of the global batch."""
        if not self._stats:
            return
        for tensor, value in zip(self._stats, rows.mean(0).split([t.numel() for t in self._stats])):
            tensor.copy_(value.view(tensor.shape))
        torch._foreach_copy_(self._counts, [t + 1 for t in self._start_counts])


def resolve(wish: str, device: torch.device) -> str:
    """The strategy that `auto` means on this device."""
    if wish != "auto":
        return wish
    return "exact" if device.type == "cpu" else "ddp"


class Step:
    """Holds what an update needs between steps; call it once per step, on all ranks."""

    def __init__(
        self,
        model: Segmenter,
        optimizer: torch.optim.Optimizer,
        cfg: Train,
        clip: float | None,
        criterion: Criterion,
        world: World,
    ) -> None:
        self._model, self._optimizer, self._cfg, self._clip, self._world = model, optimizer, cfg, clip, world
        self._criterion = criterion
        exact = resolve(cfg.strategy, world.device) == "exact"
        self._reducer = Exact(model, world) if exact else Ddp(model, world)
        self._statistics = BatchStatistics(model)

    def __call__(
        self, number: int, groups: Sequence[MicroBatch], divisors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, gradient norm) of the global batch, after the update: float64 scalars on the device.

        `groups` are this rank's micro-batches; `divisors` are those of the global batch: see Criterion.divisors.
        """
        rows = torch.zeros(
            self._cfg.num_groups, 1 + self._statistics.size, dtype=torch.float64, device=self._world.device
        )
        self._statistics.begin()
        for batch in groups:
            self._statistics.rewind()
            torch.manual_seed(int(key(self._cfg.seed, number, batch.group, 4) >> 1))
            with self._reducer.last(batch is groups[-1]):
                loss = self._loss(batch, divisors)
                (loss * self._reducer.scale).backward()
            rows[batch.group, 0] = loss.detach()
            rows[batch.group, 1:] = self._statistics.flat()
        self._reducer.reduce()
        self._world.sum(rows)  # the rows of other ranks are zero, so this only brings them together
        self._statistics.finish(rows[:, 1:])
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return rows[:, 0].sum(), norm.double()

    def _loss(self, batch: MicroBatch, divisors: torch.Tensor) -> torch.Tensor:
        device, traits = self._world.device, self._model.traits
        images, masks, colors = (t.to(device, non_blocking=True) for t in (batch.images, batch.masks, batch.colors))
        x = to_input(images, traits.mean, traits.std, colors)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._cfg.precision == "bf16"):
            outputs = self._reducer.forward(x)
        return self._criterion(outputs, masks, divisors, traits.align_corners)
