"""This process's rank, and the few collectives that a run needs.

Under torchrun, or any launcher that sets RANK, WORLD_SIZE and MASTER_ADDR, `join` creates the process group, or uses the
existing one. With a single process, every collective is the identity.
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

from segdist.errors import SharedError, UserError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=5)
# for ranks that work independently for long, as in evaluation; a dead rank fails at once
LONG_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run."""

    rank: int
    num_ranks: int
    device: torch.device
    owns_process_group: bool = False  # `leave` destroys the process group
    launch: str = ""  # ID of the launcher, if it can restart these ranks
    long_timeout_group: Any = None  # process group of the same ranks with LONG_TIMEOUT

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place. All ranks must call it."""
        if self.num_ranks > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_long_timeout(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor over ranks, in place, with LONG_TIMEOUT. All ranks must call it."""
        if self.num_ranks > 1:
            dist.all_reduce(tensor, group=self.long_timeout_group)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Return the value of every rank, by rank. All ranks must call it."""
        values: list[T] = [value] * self.num_ranks
        if self.num_ranks > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Return rank 0's make() on every rank. All ranks must call it.

        An exception of make() is raised on rank 0; the other ranks raise SharedError.
        """
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
        except Exception as error:  # any exception: the other ranks are waiting
            dist.broadcast_object_list([SharedError(f"rank 0 failed: {error}")], src=0, device=torch.device("cpu"))
            raise
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def share(self, num: int) -> range:
        """Return this rank's contiguous part of range(num). The parts differ in length by at most one."""
        return range(num * self.rank // self.num_ranks, num * (self.rank + 1) // self.num_ranks)


def choose_device(wish: str, local_rank: int = 0) -> torch.device:
    """Return the device for scale.device. Raises UserError if it asks for a GPU that does not exist."""
    if wish == "cuda" and not torch.cuda.is_available():
        raise UserError("scale.device is cuda, but PyTorch finds no CUDA device. Set scale.device to auto or cpu")
    if wish == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}. Start fewer ranks"
        )
    return torch.device("cuda", local_rank)


def backend(on_gpus: bool) -> str:
    """Return the backend of the process group. Small counts and votes use gloo on the CPU, so no step waits for the GPU."""
    return "cpu:gloo,cuda:nccl" if on_gpus else "gloo"


def join(device: str = "auto", own: torch.device | None = None, launch: str = "") -> World:
    """Return this process's place among the ranks, from its environment. `own` is the device assigned by a launcher."""
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = own or choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    owns_process_group = num_ranks > 1 and not dist.is_initialized()
    if owns_process_group:
        dist.init_process_group(backend(chosen.type == "cuda"), timeout=TIMEOUT)
    long_timeout_group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT) if num_ranks > 1 else None
    return World(rank, num_ranks, chosen, owns_process_group, launch, long_timeout_group)


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the ranks of the launcher, if any, and leave them at the end of the context."""
    world = join(device)
    try:
        yield world
    except BaseException:
        leave(world, together=False)
        raise
    leave(world)


def leave(world: World, together: bool = True) -> None:
    """Destroy the process group that `join` created.

    `together`: all ranks call it, so no rank destroys the group while another still uses it.
    """
    if world.owns_process_group and dist.is_initialized():
        if together:
            gc.collect()  # DDP's reducers hold a reference to the group
            dist.barrier()
        dist.destroy_process_group()
