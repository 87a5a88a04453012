"""One optimizer update from the micro-batches of a global batch, independent of which ranks hold them.

The loss is a sum over valid pixels. The number of valid pixels of the whole global batch divides it once, before the first
backward pass. A micro-batch is a fixed range of slots: (seed, step, micro-batch) seeds its dropout, and it starts from the
running statistics of the step's start. The statistics move once per step, by the mean over all micro-batches. Only the order
in which gradients are added depends on the ranks, and with the strategy `exact` not even that changes the result.
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
from segdist.step.batch_norm import BatchStatistics
from segdist.step.ddp import Ddp
from segdist.step.ema import Ema
from segdist.step.exact import Exact
from segdist.step.loss import Criterion
from segdist.step.strategy import Strategy


def strategy_of(wish: str, device: torch.device) -> str:
    """Return the strategy that `auto` means on this device."""
    if wish != "auto":
        return wish
    return "exact" if device.type == "cpu" else "ddp"


def precision_of(wish: str, device: torch.device) -> str:
    """Return the precision that `auto` means on this device."""
    if wish != "auto":
        return wish
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextlib.contextmanager
def determinism(cfg: Train, device: torch.device) -> Iterator[None]:
    """Restrict torch to deterministic kernels if the config asks for it, or if the strategy is `exact` on a GPU.

    On CPUs, all kernels used in training are deterministic. On GPUs, torch then uses slower kernels for scatter, index_add,
    bilinear resizing and convolutions, and rejects an operation that has no deterministic kernel.
    """
    on_gpu = device.type == "cuda"
    if not (cfg.deterministic or (on_gpu and strategy_of(cfg.strategy, device) == "exact")):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # filling fresh memory with NaN is a debugging aid, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


class Step:
    """The state of updates between steps. Call it once per step, on all ranks, with the model in training mode.

    `start` is the number of the next step. `may_recompute`: if memory runs out, repeat the step with activation checkpointing,
    which computes the same numbers.
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
        self._strategy, self._statistics = self._build_strategy(), BatchStatistics(model)

    def __call__(
        self, number: int, batches: Sequence[MicroBatch], divisors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the weights; return (loss, gradient norm) of the global batch, float64 scalars on the device.

        `batches` are this rank's micro-batches, `divisors` those of the global batch (see loss.Criterion). Raises
        DeviceMemoryError if the device is out of memory.
        """
        if self._model.frozen and number >= self._cfg.freeze_encoder_steps:
            self._unfreeze()
        # a row per micro-batch of the global batch: its loss and its running statistics
        rows = torch.zeros(
            self._train.num_micro_batches, 1 + self._statistics.size, dtype=torch.float64, device=self._world.device
        )
        self._statistics.begin()
        while not self._fits(number, batches, divisors, rows):
            self._save_memory(number)
            rows.zero_()
        norm = self._strategy.update()
        self._world.sum(rows)  # a gather: the rows of other ranks are zero
        self._statistics.finish(rows[:, 1:])
        if self._ema:
            self._ema.update(number)
        return rows[:, 0].sum(), norm.double()

    def eval_model(self) -> Segmenter:
        """Return the model to evaluate: with EMA weights if there are any. All ranks must call it."""
        return self._ema.model if self._ema else self._strategy.full_model()

    def snapshot(self, state: dict[str, Any]) -> Snapshot:
        """Return everything needed to continue the run, with `state` added. All ranks must call it."""
        model, optimizer = self._strategy.full_model(), self._strategy.optimizer_state()
        ema = self._ema.model.state_dict() if self._ema else None
        return Snapshot(model.state_dict(), optimizer, ema, state | {"scaler": self._strategy.scaler_state()})

    def load(self, stored: Snapshot) -> None:
        """Restore a snapshot, except for the weights, which the model was built with. All ranks must call it."""
        self._strategy.load_optimizer_state(stored.optimizer)
        self._strategy.load_scaler_state(stored.state.get("scaler", {}))
        if self._ema and stored.ema:
            self._ema.model.load_state_dict(stored.ema)

    def close(self) -> None:
        """Release the model and the process group."""
        self._strategy.close()

    def _build_strategy(self) -> Strategy:
        """Return a strategy for the parameters that are trained now."""
        forward: Any = self._model
        if self._train.compile:
            _check_compiler(self._world.device)
            # use torch's own random generator, which is seeded by (seed, step, micro-batch)
            forward = torch.compile(self._model, dynamic=False, options={"fallback_random": True})
        parts = self._model, forward, self._optimizer, self._cfg.clip_grad_norm, self._world
        name = strategy_of(self._train.strategy, self._world.device)
        if name == "exact":
            return Exact(*parts)
        if name == "ddp":
            return Ddp(*parts, self._precision)
        from segdist.step.zero import Zero  # takes seconds to import

        most = -(-self._train.num_micro_batches // self._world.num_ranks)
        return Zero(
            self._model, self._optimizer, self._cfg.clip_grad_norm, self._world, self._precision,
            self._train.zero_stage, self._train.zero_offload, most,
        )  # fmt: skip

    def _unfreeze(self) -> None:
        scaler = self._strategy.scaler_state()
        self._strategy.close()
        self._model.unfreeze()
        self._strategy, self._statistics = self._build_strategy(), BatchStatistics(self._model)
        self._strategy.load_scaler_state(scaler)

    def _fits(self, number: int, batches: Sequence[MicroBatch], divisors: torch.Tensor, rows: torch.Tensor) -> bool:
        """Call `_accumulate`; return whether memory sufficed."""
        try:
            self._accumulate(number, batches, divisors, rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise _with_remedy(error) from error
            return False  # the traceback, which keeps the tensors of the pass alive, is freed here
        return True

    def _accumulate(
        self, number: int, batches: Sequence[MicroBatch], divisors: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """Run forward and backward of this rank's micro-batches, and write their losses and statistics to their rows.

        If the strategy needs more passes than there are micro-batches, repeat the last one with weight zero.
        """
        divisors = divisors.to(self._world.device)
        num_passes = max(len(batches), self._strategy.min_passes)
        for i in range(num_passes):
            batch = batches[min(i, len(batches) - 1)]
            self._statistics.rewind()
            torch.manual_seed(int(key(self._train.seed, number, batch.number, 4) >> 1))
            with self._strategy.micro_batch(i == num_passes - 1), tf32(self._train.tf32):
                loss = self._loss(batch, divisors)
                if i < len(batches):
                    rows[batch.number, 0] = loss.detach()
                    rows[batch.number, 1:] = self._statistics.flat()
                self._strategy.backward(loss if i < len(batches) else loss * 0)

    def _loss(self, batch: MicroBatch, divisors: torch.Tensor) -> torch.Tensor:
        device, traits = self._world.device, self._model.traits
        images, masks, colors = (t.to(device, non_blocking=True) for t in (batch.images, batch.masks, batch.colors))
        x = to_input(images, traits.mean, traits.std, colors)
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=self._precision != "fp32"):
            logits = self._strategy.forward(x)
        return self._criterion(logits, masks, divisors, traits.align_corners)

    def _save_memory(self, number: int) -> None:
        """Enable activation checkpointing, to repeat the step. Raises DeviceMemoryError if that is not possible."""
        if self._recomputes or not self._may_recompute or not self._strategy.clear():
            raise DeviceMemoryError(
                f"step {number}: out of memory with train.micro_batch_size={self._train.micro_batch_size}. Set "
                + ("" if self._recomputes else "train.activation_checkpointing=true (the run can continue), ")
                + "train.precision=bf16, or a smaller data.crop_size or train.micro_batch_size (these need a new run)"
            )
        console.say("warning: out of memory; from here on, activation checkpointing is enabled, which is slower")
        self._recomputes = True
        self._model.enable_activation_checkpointing()
        if self._world.device.type == "cuda":
            torch.cuda.empty_cache()


def _check_compiler(device: torch.device) -> None:
    """Raises ConfigError if torch.compile lacks a dependency. Takes seconds; compiling a model would fail after minutes."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise _with_remedy(error) from error


def _with_remedy(error: RuntimeError) -> Exception:
    """Return a ConfigError with a remedy if a field of `train` caused this error of torch, otherwise the error itself."""
    from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

    first_line = str(error).strip().split("\n", 1)[0]
    if isinstance(error, TorchDynamoException):
        return ConfigError(
            f"train.compile: torch cannot compile this model here ({first_line}). Install a C++ compiler (apt install g++) for "
            "CPUs, use a GPU that Triton supports, or set train.compile=false"
        )
    if "use_deterministic_algorithms" in str(error):
        return ConfigError(
            f"{first_line.split(', but')[0]}. Set train.deterministic=false, and train.strategy=ddp instead of exact, which "
            "needs deterministic kernels. Or use another model or loss"
        )
    return error
