"""Where ranks run (this process, torchrun, Ray Train), and what runs beside them: stop signals, and the mirror on the Hub."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from segdist.config import Config

if TYPE_CHECKING:
    from segdist.train import Notice, Tell

__all__ = ["mailbox", "ray_cluster", "ray_rank", "run", "run_inside", "stop"]


def run(cfg: Config) -> tuple[dict[str, Any], bool]:
    """Return (summary of the run, whether this process reports it).

    SIGTERM and Ctrl-C stop after a commit; a second Ctrl-C stops at once.
    """
    if cfg.hub.repo_id is None or os.environ.get("RANK", "0") != "0":
        return _run(cfg)
    from segdist.launch.mirror import Mirror

    with Mirror(cfg) as mirror:
        summary, speaks = _run(cfg)
        mirror.finish(summary)
    return summary, speaks


def _run(cfg: Config) -> tuple[dict[str, Any], bool]:
    if cfg.scale.launcher == "ray":
        from segdist.launch.on_ray import run_on_ray

        return run_on_ray(cfg), True
    from segdist.launch.in_process import run_here

    return run_here(cfg)


def run_inside(cfg: Config, tell: Tell, notice: Notice) -> dict[str, Any]:
    """Run a sweep's trial from inside a Ray process: one rank here, more ranks by Ray Train. Return its summary.

    `tell` may wait for the scheduler's decision. What `notice` returns afterwards applies to the very next step.
    """
    if cfg.scale.num_ranks == 1:
        from segdist.launch.in_process import run_here

        return run_here(cfg, tell, notice)[0]
    from segdist.launch.on_ray import run_on_ranks

    return run_on_ranks(cfg, tell, notice)
