"""One optimizer update from the micro-batches of a global batch, whichever ranks hold them.

The loss is a sum over valid pixels; the count of valid pixels of the whole global batch divides it once, before any
backward. A micro-batch is a fixed group of slots: its dropout is seeded by (seed, step, group), it starts from the step's
running statistics, and they move once per step by the mean over all groups. So what a step computes does not depend on
the ranks, only in which order gradients are added does; and `exact` takes that away too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from segdist import console
from segdist.config import Optim, Train
from segdist.data.order import key
from segdist.data.stream import MicroBatch
from segdist.distributed import World
from segdist.errors import ConfigError, DeviceMemoryError, is_out_of_memory
from segdist.models.segmenter import Segmenter
from segdist.ops.pixels import to_input
from segdist.ops.tf32 import tf32
from segdist.runs.snapshot import Snapshot
from segdist.step.base import Strategy
from segdist.step.ddp import Ddp
from segdist.step.ema import Ema
from segdist.step.exact import Exact
from segdist.step.loss import Criterion
from segdist.step.statistics import BatchStatistics


def strategy_of(wish: str, device: torch.device) -> str:
    """The strategy that `auto` means on this device."""
    if wish != "auto":
        return wish
    return "exact" if device.type == "cpu" else "ddp"


def precision_of(wish: str, device: torch.device) -> str:
    """The precision that `auto` means on this device."""
    if wish != "auto":
        return wish
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextlib.contextmanager
def kernels(cfg: Train, device: torch.device) -> Iterator[None]:
    """Lets torch use only kernels that give the same bits each time, where the config or `exact` on a GPU asks for it.

    On CPUs all kernels of training do. On GPUs torch then takes slower ones for scatter, index_add, bilinear resizing and
    convolutions, and refuses an operation that has none (`Step` says which).
    """
    on_gpu = device.type == "cuda"
    if not (cfg.deterministic or (on_gpu and strategy_of(cfg.strategy, device) == "exact")):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fills: Any = torch.utils.deterministic  # of fresh memory with NaN: a debugging aid, and slow
    before = torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    fills.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        fills.fill_uninitialized_memory = before[1]


class Step:
    """Holds what an update needs between steps; call it once per step, on all ranks.

    `start` is the number of the first step to come. The model must be in training mode. `may_recompute`: when memory runs
    out, the step is begun again with activation checkpointing, which gives the same numbers.
    """

    def __init__(
        self,
        model: Segmenter,
        optimizer: torch.optim.Optimizer,
        train: Train,
        cfg: Optim,
        criterion: Criterion,
        world: World,
        start: int = 0,
        may_recompute: bool = True,
    ) -> None:
        self._model, self._optimizer, self._train, self._cfg, self._world = model, optimizer, train, cfg, world
        self._criterion = criterion
        self._precision = precision_of(train.precision, world.device)
        self._recomputes, self._may_recompute = train.activation_checkpointing, may_recompute
        if self._recomputes:
            model.enable_activation_checkpointing()
        if start < cfg.freeze_encoder_steps:
            model.freeze()
        self._ema = Ema(model, cfg.ema_decay) if cfg.ema_decay else None
        self._strategy, self._statistics = self._built()

    def _built(self) -> tuple[Strategy, BatchStatistics]:
        """What belongs to those parameters and statistics that move now."""
        forward: Any = self._model
        if self._train.compile:
            _try_compiler(self._world.device)
            # the generator of uncompiled code: dropout belongs to seed, step and micro-batch
            forward = torch.compile(self._model, dynamic=False, options={"fallback_random": True})
        parts = self._model, forward, self._optimizer, self._cfg.clip_grad_norm, self._world
        name = strategy_of(self._train.strategy, self._world.device)
        if name == "exact":
            return Exact(*parts), BatchStatistics(self._model)
        if name == "ddp":
            return Ddp(*parts, self._precision), BatchStatistics(self._model)
        from segdist.step.zero import Zero  # seconds of import

        most = -(-self._train.num_groups // self._world.num_ranks)
        zero = Zero(
            self._model, self._optimizer, self._cfg.clip_grad_norm, self._world, self._precision,
            self._train.zero_stage, self._train.zero_offload, most,
        )  # fmt: skip
        return zero, BatchStatistics(self._model)

    def __call__(
        self, number: int, groups: Sequence[MicroBatch], divisors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, gradient norm) of the global batch, after the update: float64 scalars on the device.

        `groups` are this rank's micro-batches; `divisors` are those of the global batch: see loss.Criterion. Raises
        DeviceMemoryError when the device's memory does not suffice.
        """
        if self._model.frozen and number >= self._cfg.freeze_encoder_steps:
            self._thaw()
        rows = torch.zeros(
            self._train.num_groups, 1 + self._statistics.size, dtype=torch.float64, device=self._world.device
        )
        self._statistics.begin()
        while not self._fits(number, groups, divisors, rows):
            if not self._save_memory():
                raise DeviceMemoryError(
                    f"step {number}: a micro-batch of {self._train.micro_batch_size} does not fit into memory. Give "
                    + ("" if self._recomputes else "train.activation_checkpointing=true (the run goes on with it), ")
                    + "train.precision=bf16, a smaller data.crop_size or train.micro_batch_size (these begin another run)"
                )
            rows.zero_()
            self._statistics.rewind()
        norm = self._strategy.update()
        self._world.sum(rows)  # the rows of other ranks are zero, so this only brings them together
        self._statistics.finish(rows[:, 1:])
        if self._ema:
            self._ema.update(number)
        return rows[:, 0].sum(), norm.double()

    def eval_model(self) -> Segmenter:
        """The model that is evaluated, on every rank: the average, if one is kept. All ranks must call it."""
        return self._ema.model if self._ema else self._strategy.full_model()

    def snapshot(self, state: dict[str, Any]) -> Snapshot:
        """All that a run needs to go on, with what else its `state` should say. All ranks must call it."""
        model, optimizer = self._strategy.full_model(), self._strategy.optimizer_state()
        average = self._ema.model.state_dict() if self._ema else None
        return Snapshot(model.state_dict(), optimizer, average, state | {"scaler": self._strategy.scaler_state()})

    def load(self, stored: Snapshot) -> None:
        """Puts back all of a snapshot but the weights, which the model had from the start. All ranks must call it."""
        self._strategy.load_optimizer_state(stored.optimizer)
        self._strategy.load_scaler_state(stored.state.get("scaler", {}))
        if self._ema and stored.average:
            self._ema.model.load_state_dict(stored.average)

    def close(self) -> None:
        """Lets the model and the other ranks go."""
        self._strategy.close()

    def _thaw(self) -> None:
        scaler = self._strategy.scaler_state()
        self._strategy.close()
        self._model.unfreeze()
        self._strategy, self._statistics = self._built()
        self._strategy.load_scaler_state(scaler)

    def _fits(self, number: int, groups: Sequence[MicroBatch], divisors: torch.Tensor, rows: torch.Tensor) -> bool:
        """`_passes`, and whether memory sufficed."""
        try:
            self._passes(number, groups, divisors, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise _explained(error) from error
            return False  # only now does the traceback let go of what the pass held
        return True

    def _passes(self, number: int, groups: Sequence[MicroBatch], divisors: torch.Tensor, rows: torch.Tensor) -> None:
        """Forward and backward of this rank's groups, whose losses and statistics go to their rows.

        Where a strategy needs as many passes of every rank, the last group is passed again with weight zero.
        """
        divisors = divisors.to(self._world.device)
        num_passes = max(len(groups), self._strategy.least_passes)
        for i in range(num_passes):
            batch = groups[min(i, len(groups) - 1)]
            self._statistics.rewind()
            torch.manual_seed(int(key(self._train.seed, number, batch.group, 4) >> 1))
            with self._strategy.group(i == num_passes - 1), tf32(self._train.tf32):
                loss = self._loss(batch, divisors)
                if i < len(groups):
                    rows[batch.group, 0] = loss.detach()
                    rows[batch.group, 1:] = self._statistics.flat()
                self._strategy.backward(loss if i < len(groups) else loss * 0)

    def _loss(self, batch: MicroBatch, divisors: torch.Tensor) -> torch.Tensor:
        device, traits = self._world.device, self._model.traits
        images, masks, colors = (t.to(device, non_blocking=True) for t in (batch.images, batch.masks, batch.colors))
        x = to_input(images, traits.mean, traits.std, colors)
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=self._precision != "fp32"):
            logits = self._strategy.forward(x)
        return self._criterion(logits, masks, divisors, traits.align_corners)

    def _save_memory(self) -> bool:
        """After running out of memory: whether this step may be begun again, now with activations computed twice."""
        if self._recomputes or not self._may_recompute or not self._strategy.clear():
            return False
        console.say(
            "warning: out of memory; from here on blocks are computed again in the backward pass, which is slower"
        )
        self._recomputes = True
        self._model.enable_activation_checkpointing()
        if self._world.device.type == "cuda":
            torch.cuda.empty_cache()
        return True


def _try_compiler(device: torch.device) -> None:
    """Raises ConfigError when torch.compile lacks what it needs: found here in seconds, and in a model after minutes."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise _explained(error) from error


def _explained(error: RuntimeError) -> Exception:
    """An error of torch's, with the remedy where a field of `train` brought it about."""
    from torch._dynamo.exc import TorchDynamoException  # seconds of import

    said = str(error).strip().split("\n", 1)[0]
    if isinstance(error, TorchDynamoException):
        return ConfigError(
            f"train.compile: torch cannot compile this model here ({said}). It needs a C++ compiler for CPUs (apt install "
            "g++) and a GPU that Triton knows; or give train.compile=false"
        )
    if "use_deterministic_algorithms" in str(error):
        return ConfigError(
            f"{said.split(', but')[0]}. Give train.deterministic=false, and train.strategy=ddp where it is `exact`, which "
            "needs such kernels; or another model or loss"
        )
    return error
