"""The jobs' drivers on this node: ended as the user would end them, before the node goes."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from segdist import console
from segdist.cluster.node import nodes_here
from segdist.launch.ray_cluster import present_token

_LINGER_SECONDS = 10.0  # so that whoever polls the jobs (KubeRay, every 3 s) still sees how they ended


def stop_drivers(seconds: float, dashboard: str) -> int:
    """SIGTERM to every driver of a submitted job on this node; how many there were, once they have ended or the time is over.

    `ray job stop` would do the same, and leave a job that was STOPPED, which nobody begins again. A driver that ends by
    itself with 75 is a job that FAILED, which KubeRay does begin again.
    """
    pids = _drivers(dashboard)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + seconds
    while any(map(_lives, pids)) and time.monotonic() < until:
        time.sleep(0.2)
    if pids:
        time.sleep(max(0.0, min(_LINGER_SECONDS, until - time.monotonic())))
    return len(pids)


def _drivers(dashboard: str) -> list[int]:
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    present_token()
    here = {node.id for node in nodes_here()}
    try:
        jobs = JobSubmissionClient(dashboard).list_jobs()
    except (OSError, RuntimeError, RayError) as error:  # the node's end must not wait for what is gone already
        console.say(f"warning: {dashboard} does not say what runs here: {error}")
        return []
    working = [job for job in jobs if job.driver_node_id in here and not job.status.is_terminal()]
    return [int(job.driver_info.pid) for job in working if job.driver_info]


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
