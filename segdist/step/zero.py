"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054).

Stage 1 partitions the optimizer states over ranks, stage 2 also the gradients, stage 3 also the weights. Weights stay in fp32.
The optimizer is torch's, so nothing is compiled. All state is exported as whole tensors by parameter name, so checkpoints are
independent of the strategy. Some names used here are private to DeepSpeed 0.19, which constraints.txt pins.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from segdist import models
from segdist.distributed import TIMEOUT, World, backend
from segdist.errors import CheckpointError
from segdist.models.segmenter import Segmenter, Tensors
from segdist.step.strategy import Strategy

BUCKET_ELEMENTS = 50_000_000


class _Casting(nn.Module):
    """Autocast inside the engine, which disables any autocast around it."""

    def __init__(self, net: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.net, self._device, self._bf16 = net, device, precision == "bf16"

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            return self.net(x)


class Zero(Strategy):
    """Adds in fp32, in its own order, so the loss curve stays within the same tested tolerance as with DDP."""

    def __init__(
        self,
        model: Segmenter,
        optimizer: torch.optim.Optimizer,
        clip: float | None,
        world: World,
        precision: str,
        stage: int,
        offload: bool,
        min_passes: int,
    ) -> None:
        super().__init__(model, model, optimizer, clip, world)
        deepspeed = self._deepspeed = _imported(world.device)
        self._owns_process_group = not dist.is_initialized()
        if self._owns_process_group:  # DeepSpeed needs a process group even for one rank
            dist.init_process_group(backend(world.device.type == "cuda"), store=dist.HashStore(), rank=0, world_size=1)
        # without its own process group, DeepSpeed keeps one that outlives ours and waits half an hour for lost ranks
        self._process_group = deepspeed.utils.groups._WORLD_GROUP = dist.new_group(timeout=TIMEOUT)
        self._stage = stage
        # each pass gathers weights, so all ranks must make the same number
        self.min_passes = min_passes if stage == 3 else 0
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        model.to(memory_format=torch.contiguous_format)  # DeepSpeed sends raw memory
        sharing: dict[str, Any] = {
            "stage": stage,
            "reduce_bucket_size": min(BUCKET_ELEMENTS, sum(p.numel() for p in model.parameters())),
            "overlap_comm": False,  # the reduction follows the last micro-batch
        }
        if offload:
            sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
        config = {
            "train_micro_batch_size_per_gpu": 1,  # required, but without effect
            "zero_optimization": sharing,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeedCPUAdam would have to be compiled
            "gradient_clipping": clip or 0.0,
        }
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=_Casting(model, world.device.type, precision), optimizer=optimizer, config=config
        )
        self.forward = self._engine
        self._local: contextlib.ExitStack | None = None  # open while gradients are accumulated locally

    @contextlib.contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Accumulate gradients locally until `update`, so ranks may have different numbers of micro-batches."""
        if self._local is None:
            self._local = contextlib.ExitStack()
            self._local.enter_context(self._engine.coalesce_grad_reduction())
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self._world.num_ranks, scale_wrt_gas=False)  # DeepSpeed averages over ranks

    def clear(self) -> bool:
        return False

    def update(self) -> torch.Tensor:
        assert self._local is not None, "no micro-batch since the last update"
        self._local.close()
        self._local = None
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        if not self._engine.was_step_applied():
            return torch.tensor(torch.inf)  # stops the run: training has diverged
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def full_model(self) -> Segmenter:
        if self._stage < 3:
            return self._model
        model = models.rebuild(self._model.arch).to(self._world.device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                own = self._model.get_parameter(name)
                with self._deepspeed.zero.GatheredParameters(own):
                    parameter.copy_(own)
            for name, buffer in model.named_buffers():
                buffer.copy_(self._model.get_buffer(name))
        return model

    def optimizer_state(self) -> Tensors:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: Tensors = {}
        self._link()
        for flat, members in self._flats():
            own = self._optimizer.state.get(flat, {})
            keys = [k for k, v in own.items() if torch.is_tensor(v) and v.shape == flat.shape]
            for parameter in members:
                name = self._names[parameter]
                found |= {f"{k}/{name}": safe_get_full_optimizer_state(parameter, k).cpu() for k in keys}
                if "step" in own:
                    found[f"step/{name}"] = torch.as_tensor(own["step"]).float().cpu().clone()
        return found

    def load_optimizer_state(self, stored: Tensors) -> None:
        for flat, members in self._flats():
            self._optimizer.state[flat] = _empty(flat, stored, [self._names[p] for p in members])
        self._link()
        kinds = sorted({key.split("/", 1)[0] for key in stored} - {"step"})
        for _, members in self._flats():
            for parameter in members:
                for kind in kinds:
                    if (key := f"{kind}/{self._names[parameter]}") in stored:  # otherwise never updated: zeros
                        self._set(parameter, kind, stored[key])

    def close(self) -> None:
        self._engine.destroy()
        del self._engine, self._zero
        self.forward = self._model
        dist.destroy_process_group(self._process_group)
        if self._owns_process_group:
            dist.destroy_process_group()

    def _flats(self) -> list[tuple[torch.Tensor, list[nn.Parameter]]]:
        """Return (this rank's flat partition, parameters) of each parameter group."""
        if self._stage < 3:
            return list(zip(self._zero.single_partition_of_fp32_groups, self._zero.bit16_groups))
        return list(zip(self._zero.fp32_partitioned_groups_flat, self._zero.fp16_groups))

    def _link(self) -> None:
        """Link optimizer states to their parameters. DeepSpeed does so once, and only for the first parameter group."""
        if self._stage < 3 and self._optimizer.state:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: Any, kind: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.contiguous().to(self._world.device)
        if self._stage < 3:
            safe_set_full_optimizer_state(parameter, value, kind)
            return
        # safe_set_full_* fails in stage 3 if the parameter is not divisible by the number of ranks: pad, and set the partition
        size, rank = parameter.ds_tensor.numel(), self._world.rank
        padded = nn.functional.pad(value.flatten(), (0, size * self._world.num_ranks - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[size * rank : size * (rank + 1)], kind)


def _empty(flat: torch.Tensor, stored: Tensors, names: list[str]) -> Tensors:
    """Return zero states of the stored kinds for a partition of a parameter group; only the step count has its value."""
    kinds = sorted({key.split("/", 1)[0] for key in stored})
    made = {kind: torch.zeros_like(flat, requires_grad=False) for kind in kinds if kind != "step"}
    if "step" in kinds:
        steps = {float(stored[key]) for name in names if (key := f"step/{name}") in stored} or {0.0}
        if len(steps) != 1:
            raise CheckpointError(
                f"parameters of one parameter group have different step counts {sorted(steps)}, but ZeRO keeps one count per "
                "parameter group. Continue with train.strategy=ddp"
            )
        made["step"] = torch.tensor(steps.pop(), device=flat.device)
    return made


def _imported(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # otherwise DeepSpeed uses any visible GPU
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # selects the GPU
    import deepspeed
    import deepspeed.ops
    import deepspeed.utils.groups

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__ = {}  # compile nothing, and require no compiler
    return deepspeed
