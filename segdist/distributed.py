"""Who am I among the ranks, and the few collectives that a run needs.

Under torchrun (or any launcher that sets RANK, WORLD_SIZE and MASTER_ADDR) the process group is made here; where it was
made already it is used; alone, every collective is the identity.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from segdist.errors import UserError

T = TypeVar("T")


class SharedError(UserError):
    """Rank 0 failed and says why; this rank only stops."""


TIMEOUT = timedelta(minutes=5)
LATE = timedelta(hours=2)  # for ranks that work alone for long, as in evaluation; one that dies is noticed at once


@dataclass(frozen=True)
class World:
    rank: int
    num_ranks: int
    device: torch.device
    owns_group: bool = False  # whether `leave` ends the process group
    launch: str = ""  # who started these ranks, where that one may start them again
    patient: Any = None  # torch's group of the same ranks, with more time

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place. All ranks must call it."""
        if self.num_ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def late_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `sum`, of a tensor on the CPU, where some ranks may come much later than others."""
        if self.num_ranks > 1:
            dist.all_reduce(tensor, group=self.patient)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order. All ranks must call it."""
        values: list[T] = [value] * self.num_ranks
        if self.num_ranks > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """make() of rank 0, on every rank. What it raises is raised there, and stops the others with SharedError."""
        if self.num_ranks == 1:
            return make()
        box: list[object] = [None]
        if not self.is_first:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
            if isinstance(box[0], SharedError):
                raise box[0]
            return box[0]  # type: ignore[return-value]
        try:
            box = [make()]
        except Exception as error:  # whatever it is, the others are waiting
            dist.broadcast_object_list([SharedError(f"rank 0 failed: {error}")], src=0, device=torch.device("cpu"))
            raise
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def share(self, num: int) -> range:
        """This rank's contiguous part of range(num); the parts differ by one at most."""
        return range(num * self.rank // self.num_ranks, num * (self.rank + 1) // self.num_ranks)


def choose_device(wish: str, local_rank: int = 0) -> torch.device:
    """The device for a config's scale.device. Raises UserError when it asks for a GPU that is not there."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise UserError("scale.device is cuda, but PyTorch sees no CUDA device; use scale.device=auto or cpu")
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; start fewer ranks"
        )
    return torch.device("cuda", local_rank)


def backend(on_gpus: bool) -> str:
    """What the ranks talk by: small counts and votes go by gloo on the CPU, so that no step waits for the device."""
    return "cpu:gloo,cuda:nccl" if on_gpus else "gloo"


def join(device: str = "auto", own: torch.device | None = None, launch: str = "") -> World:
    """This process's place among the ranks, as its environment tells it; `own` is the device that a launcher gave it."""
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = own or choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    owns_group = num_ranks > 1 and not dist.is_initialized()
    if owns_group:
        dist.init_process_group(backend(chosen.type == "cuda"), timeout=TIMEOUT)
    patient = dist.new_group(backend="gloo", timeout=LATE) if num_ranks > 1 else None
    return World(rank, num_ranks, chosen, owns_group, launch, patient)


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """This process among the ranks of its launcher, if it has one, for as long as the context is open."""
    world = join(device)
    try:
        yield world
    except BaseException:
        leave(world, together=False)
        raise
    leave(world)


def leave(world: World, together: bool = True) -> None:
    """Ends what `join` began. `together`: all ranks got here, so none takes the group down while another still talks."""
    if world.owns_group and dist.is_initialized():
        if together:
            gc.collect()  # DDP's reducers hold on to the group
            dist.barrier()
        dist.destroy_process_group()
