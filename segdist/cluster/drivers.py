"""Stop the drivers of submitted jobs on this node before the node goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from segdist import console
from segdist.cluster.node import nodes_here
from segdist.launch.ray_cluster import present_token

_LINGER_SECONDS = 10.0  # lets clients that poll the jobs (KubeRay, every 3 s) still see how they ended


def stop_drivers(seconds: float, dashboard: str) -> int:
    """Send SIGTERM to the driver of every submitted job on this node, and wait up to `seconds` until all have ended.

    Returns the number of drivers. `ray job stop` would end them too, but it leaves the job STOPPED, which nothing restarts.
    A driver that exits by itself with 75 leaves a FAILED job, which KubeRay restarts.
    """
    pids = _driver_pids(dashboard)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + seconds
    while any(map(_is_running, pids)) and time.monotonic() < until:
        time.sleep(0.2)
    if pids:
        time.sleep(max(0.0, min(_LINGER_SECONDS, until - time.monotonic())))
    return len(pids)


def _driver_pids(dashboard: str) -> list[int]:
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    present_token()
    here = {node.id for node in nodes_here()}
    try:
        jobs = JobSubmissionClient(dashboard).list_jobs()
    except (OSError, RuntimeError, RayError) as error:  # a dashboard that is already gone must not delay the node's end
        console.say(f"warning: cannot list the jobs of {dashboard}, so no driver is stopped: {error}")
        return []
    running = [job for job in jobs if job.driver_node_id in here and not job.status.is_terminal()]
    return [int(job.driver_info.pid) for job in running if job.driver_info]


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
