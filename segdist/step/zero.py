"""DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054), driven by the same step as every other strategy.

It divides among ranks 1 the optimizer states, 2 the gradients too, 3 the weights too. Weights stay in fp32, and nothing is
compiled: the optimizer is torch's. What it keeps comes out as whole tensors by name, so a checkpoint knows no strategy.
Some names here are private to DeepSpeed 0.19, which constraints.txt pins.
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
from segdist.models.segmenter import Segmenter
from segdist.step.base import Strategy

Tensors = dict[str, torch.Tensor]
BUCKET_ELEMENTS = 50_000_000


class _Casting(nn.Module):
    """Autocast inside of the engine, which switches off one outside of it."""

    def __init__(self, net: nn.Module, device: str, precision: str) -> None:
        super().__init__()
        self.net, self._device, self._bf16 = net, device, precision == "bf16"

    def forward(self, x: torch.Tensor) -> Any:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            return self.net(x)


class Zero(Strategy):
    """Held to the band of the loss curve that DDP is held to: its additions are in fp32, in an order of its own."""

    def __init__(
        self,
        model: Segmenter,
        optimizer: torch.optim.Optimizer,
        clip: float | None,
        world: World,
        precision: str,
        stage: int,
        offload: bool,
        least_passes: int,
    ) -> None:
        super().__init__(model, model, optimizer, clip, world)
        deepspeed = self._deepspeed = _imported(world.device)
        self._owns_group = not dist.is_initialized()
        if self._owns_group:  # it talks even to itself
            dist.init_process_group(backend(world.device.type == "cuda"), store=dist.HashStore(), rank=0, world_size=1)
        # a group of its own, or it keeps one that outlives this process group and waits half an hour for lost ranks
        self._group = deepspeed.utils.groups._WORLD_GROUP = dist.new_group(timeout=TIMEOUT)
        self._stage = stage
        self.least_passes = least_passes if stage == 3 else 0  # each gathers weights, so all ranks must make as many
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        model.to(memory_format=torch.contiguous_format)  # it sends bytes as they lie
        sharing: dict[str, Any] = {
            "stage": stage,
            "reduce_bucket_size": min(BUCKET_ELEMENTS, sum(p.numel() for p in model.parameters())),
            "overlap_comm": False,  # the reduction comes after the last group
        }
        if offload:
            sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": world.device.type == "cuda"}
        config = {
            "train_micro_batch_size_per_gpu": 1,  # asked for, and used for nothing
            "zero_optimization": sharing,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # DeepSpeedCPUAdam would have to be compiled
            "gradient_clipping": clip or 0.0,
        }
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=_Casting(model, world.device.type, precision), optimizer=optimizer, config=config
        )
        self.forward = self._engine
        self._local: contextlib.ExitStack | None = None  # open while backward passes keep their gradients to themselves

    @contextlib.contextmanager
    def group(self, is_last: bool) -> Iterator[None]:
        """Backward passes stay local until `update`, so ranks may have different numbers of groups."""
        if self._local is None:
            self._local = contextlib.ExitStack()
            self._local.enter_context(self._engine.coalesce_grad_reduction())
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self._world.num_ranks, scale_wrt_gas=False)  # it averages over ranks

    def clear(self) -> bool:
        return False

    def update(self) -> torch.Tensor:
        assert self._local is not None, "no micro-batch since the last update"
        self._local.close()
        self._local = None
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        if not self._engine.was_step_applied():
            return torch.tensor(torch.inf)  # the run stops: its training has diverged
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
                    if (key := f"{kind}/{self._names[parameter]}") in stored:  # else never moved: zeros
                        self._set(parameter, kind, stored[key])

    def close(self) -> None:
        self._engine.destroy()
        del self._engine, self._zero
        self.forward = self._model
        dist.destroy_process_group(self._group)
        if self._owns_group:
            dist.destroy_process_group()

    def _flats(self) -> list[tuple[torch.Tensor, list[nn.Parameter]]]:
        """(this rank's part of a parameter group, in one piece; the group's parameters)."""
        if self._stage < 3:
            return list(zip(self._zero.single_partition_of_fp32_groups, self._zero.bit16_groups))
        return list(zip(self._zero.fp32_partitioned_groups_flat, self._zero.fp16_groups))

    def _link(self) -> None:
        """Makes the states known under their parameters; DeepSpeed does it once, and for the first group only."""
        if self._stage < 3 and self._optimizer.state:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: Any, kind: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        value = value.contiguous().to(self._world.device)
        if self._stage < 3:
            safe_set_full_optimizer_state(parameter, value, kind)
            return
        # safe_set_full_* fails in stage 3 where the number of ranks does not divide the parameter: pad, and set the part
        size, rank = parameter.ds_tensor.numel(), self._world.rank
        padded = nn.functional.pad(value.flatten(), (0, size * self._world.num_ranks - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[size * rank : size * (rank + 1)], kind)


def _empty(flat: torch.Tensor, stored: Tensors, names: list[str]) -> dict[str, torch.Tensor]:
    """States for a group's part, of the kinds that are stored; only the count of steps has its value already."""
    kinds = sorted({key.split("/", 1)[0] for key in stored})
    made = {kind: torch.zeros_like(flat, requires_grad=False) for kind in kinds if kind != "step"}
    if "step" in kinds:
        steps = {float(stored[key]) for name in names if (key := f"step/{name}") in stored} or {0.0}
        if len(steps) != 1:
            raise CheckpointError(
                f"parameters of one group were moved {sorted(steps)} times, and ZeRO moves a group at once; go on under "
                "train.strategy=ddp"
            )
        made["step"] = torch.tensor(steps.pop(), device=flat.device)
    return made


def _imported(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # or it takes the GPU that it sees, whatever was asked for
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # by which it chooses its GPU
    import deepspeed
    import deepspeed.ops
    import deepspeed.utils.groups

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__ = {}  # nothing is compiled, and no compiler asked for
    return deepspeed
