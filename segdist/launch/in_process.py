"""Run in this process, which is the only rank or one of torchrun's ranks."""

from __future__ import annotations

from typing import Any

import torch

from segdist.config import Config
from segdist.distributed import joined
from segdist.launch.stop import StopSignal
from segdist.train import Notice, Tell, fit


def run_here(
    cfg: Config, tell: Tell = lambda metrics: None, notice: Notice | None = None
) -> tuple[dict[str, Any], bool]:
    """Return (summary of the run, whether this process is rank 0). `notice` replaces the signal handlers."""
    if cfg.scale.cpu_threads is not None:
        torch.set_num_threads(cfg.scale.cpu_threads)
    with joined(cfg.scale.device) as world, StopSignal() as signal:
        return fit(cfg, world, tell, notice or signal), world.is_first
