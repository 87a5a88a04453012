"""A run in this process: its only rank, or one of torchrun's."""

from __future__ import annotations

from typing import Any

import torch

from segdist.config import Config
from segdist.launch.stop import StopSignal
from segdist.train import fit
from segdist.world import joined


def run_here(cfg: Config) -> tuple[dict[str, Any], bool]:
    """(summary of the run, whether this process is rank 0)."""
    if cfg.scale.cpu_threads is not None:
        torch.set_num_threads(cfg.scale.cpu_threads)
    with joined(cfg.scale.device) as world, StopSignal() as notice:
        return fit(cfg, world, notice=notice), world.is_first
