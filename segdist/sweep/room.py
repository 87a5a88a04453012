"""How many trials a cluster has room for, so that none waits for what others hold."""

from __future__ import annotations

import os

from segdist.config import Scale
from segdist.errors import UserError
from segdist.launch.ray_cluster import needs, nodes, room, shortage
from segdist.sweep.plan import Plan
from segdist.sweep.search import num_trials

TOGETHER = ("pbt", "hyperband")  # schedulers whose trials wait for each other


def check_room(plan: Plan, scale: Scale) -> None:
    """Raises UserError when a trial could never run here, or trials that wait for each other could not run together."""
    need = needs(scale, sum(node["Resources"].get("GPU", 0) for node in nodes()))
    if not os.environ.get("RAY_ADDRESS") and (lack := shortage(scale, need, nodes())):
        raise UserError(lack)  # this machine will not grow
    num, name = num_trials(plan.sweep), plan.sweep.scheduler.name
    if name in TOGETHER and scale.num_ranks > 1 and (fit := room(scale, need, nodes())) < num:
        raise UserError(
            f"scheduler.name={name} needs all {num} trials at once, and the cluster has room for {fit} of {scale.num_ranks} "
            "ranks each; lower budget.num_trials, use scale.num_ranks=1, or another scheduler"
        )


def slots(plan: Plan, scale: Scale, need: dict[str, float]) -> int:
    """Trials that may run at a time, on the nodes there are now."""
    wish = plan.sweep.max_concurrent
    if wish and scale.num_ranks == 1:
        return wish  # trials that wait are what an autoscaler looks at
    fit = max(1, room(scale, need, nodes()))
    return min(fit, wish or fit)
