"""What Ray Train runs on every rank: `fit`, with the driver's ear and voice."""

from __future__ import annotations

import contextlib
import math
import os
from typing import Any

import torch

from segdist import config, console, storage
from segdist.distributed import SharedError, join
from segdist.errors import UnavailableError, UserError
from segdist.launch.mailbox import PolledNotice, PostedScreen
from segdist.train.loop import Tell, fit


def rank_main(job: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the run, on every rank; None when an earlier start of these ranks met a user's mistake.

    `job`: the config as a tree and where it is from, the mailbox, the name of this launch, the driver's folder and its mark
    below the run, whether the ranks have GPUs, and whether the driver judges evaluations.
    """
    import ray

    mailbox, rank = job["mailbox"], ray.train.get_context().get_world_rank()
    if ray.get(mailbox.mistake.remote(), timeout=60) is not None:
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
            return fit(cfg, world, teller(notice if job["waits"] and world.is_first else None), notice)
    except UserError as error:
        if not isinstance(error, SharedError | UnavailableError):  # an outage may be over when the ranks start again
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(mailbox.report_fatal.remote(str(error), error.exit_code), timeout=30)
        raise


def check_shared(run_uri: str, folder: str, mark: str) -> None:
    """Relative paths mean here what they mean to the driver. Raises UserError where they do not."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    if not storage.with_retries(lambda: storage.exists(mark), console.say):
        raise UserError(
            f"run.uri {run_uri} is on the driver's machine, and a rank on another one does not see it; give a folder that all "
            "nodes share, or s3://"
        )


def teller(waits: PolledNotice | None) -> Tell:
    """Reports to Ray, as numbers that its JSON holds: all ranks must call it. `waits`: for what the driver says to it."""
    import ray

    def tell(metrics: dict[str, Any]) -> None:
        ray.train.report({k: v for k, v in metrics.items() if not isinstance(v, float) or math.isfinite(v)})
        if waits:
            waits.tell_and_wait(metrics)

    return tell
