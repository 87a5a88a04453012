"""How many trials a cluster can run at once."""

from __future__ import annotations

import os

from segdist.config import Scale
from segdist.errors import UserError
from segdist.launch.ray_cluster import needs, nodes, room, shortage
from segdist.sweep.plan import Plan
from segdist.sweep.search import num_trials

SYNCHRONOUS = ("pbt", "hyperband")  # schedulers whose trials wait for each other


def rank_resources(scale: Scale) -> dict[str, float]:
    """Return what Ray reserves for one rank on the cluster as it is now."""
    return needs(scale, sum(node["Resources"].get("GPU", 0) for node in nodes()))


def check_capacity(plan: Plan, scale: Scale) -> None:
    """Raise UserError if this machine cannot run a trial, or the cluster cannot run all trials of a synchronous scheduler."""
    need = rank_resources(scale)
    if not os.environ.get("RAY_ADDRESS") and (lack := shortage(scale, need, nodes())):
        raise UserError(lack)  # unlike a cluster, this machine does not grow
    num, name = num_trials(plan.sweep), plan.sweep.scheduler.name
    if name in SYNCHRONOUS and scale.num_ranks > 1 and (fit := room(scale, need, nodes())) < num:
        raise UserError(
            f"scheduler.name={name} runs all {num} trials at once, but the cluster has room for {fit} trial(s) of "
            f"{scale.num_ranks} ranks. Lower budget.num_trials, set scale.num_ranks=1, or use another scheduler"
        )


def max_running_trials(plan: Plan, scale: Scale, need: dict[str, float]) -> int:
    """Return how many trials may run at once on the nodes there are now."""
    limit = plan.sweep.max_concurrent
    if limit and scale.num_ranks == 1:
        return limit  # an autoscaler adds nodes for the trials that wait
    fit = max(1, room(scale, need, nodes()))
    return min(fit, limit or fit)
