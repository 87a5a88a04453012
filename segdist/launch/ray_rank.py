"""What Ray Train runs on every rank: `fit`, connected to the driver by the mailbox."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

import torch

from segdist import config, console, storage
from segdist.distributed import join
from segdist.errors import SharedError, UnavailableError, UserError
from segdist.launch.mailbox import PolledNotice, PostedScreen
from segdist.train import Tell, fit


def rank_main(job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of the run, or None if an earlier start of these ranks reported a fatal error.

    `job` holds the config as a tree and its origin, the mailbox, the name of this launch, the driver's working directory and
    its marker file below the run, whether the ranks have GPUs, and whether the driver answers each evaluation.
    """
    import ray

    mailbox, rank = job["mailbox"], ray.train.get_context().get_world_rank()
    if ray.get(mailbox.fatal_error.remote(), timeout=60) is not None:
        return None
    console.use(PostedScreen(mailbox, rank))
    cfg = config.from_tree(job["config"], job["where"])
    if cfg.scale.cpu_threads is not None:
        torch.set_num_threads(cfg.scale.cpu_threads)
    device = ray.train.torch.get_device() if job["on_gpus"] else torch.device("cpu")
    world = join(cfg.scale.device, device, job["launch"])
    if world.is_first:
        mailbox.post.remote("start")
    try:
        with PolledNotice(mailbox) as notice:
            check_shared(cfg.run.uri, job["folder"], job["mark"])
            return fit(cfg, world, make_tell(notice if job["waits"] and world.is_first else None), notice)
    except UserError as error:
        if not isinstance(error, SharedError | UnavailableError):  # an outage may be over once the ranks restart
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(mailbox.report_fatal.remote(str(error), error.exit_code), timeout=30)
        raise


def check_shared(run_uri: str, folder: str, mark: str) -> None:
    """Make relative paths mean what they mean to the driver. Raises UserError if this rank cannot see the driver's files."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    if not storage.with_retries(lambda: storage.exists(mark), console.say):
        raise UserError(
            f"run.uri {run_uri} is on the driver's machine, but a rank on another machine cannot see it. Use s3:// or a folder "
            "that all nodes share"
        )


def make_tell(notice: PolledNotice | None) -> Tell:
    """Return a `tell` that reports finite metrics to Ray. All ranks must call it.

    With `notice`, it also waits for the driver's answer to the evaluation.
    """
    import ray

    def tell(metrics: dict[str, Any]) -> None:
        ray.train.report({k: v for k, v in metrics.items() if not isinstance(v, float) or math.isfinite(v)})
        if notice:
            notice.tell_and_wait(metrics)

    return tell
