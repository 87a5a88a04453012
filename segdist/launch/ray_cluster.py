"""The Ray cluster: joining it or starting one here, what it has, and what it lacks."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

from segdist import console
from segdist.config import Scale
from segdist.errors import UserError

_FORWARDED = (  # to the ranks of another machine, by the job's runtime environment; never files, which are not there
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET",
)  # fmt: skip
_SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
_IN_POD = "KUBERAY_GEN_RAY_START_CMD"  # KubeRay gives it to every pod of Ray's
_RAY_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon a dead rank is noticed, and how long a report waits
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # a submitted job may have been given the same variables
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it prints what the raylet has to say on stdout, which is for our JSON
}
STOP_SECONDS = 300  # that `ray job stop` gives a command for its commit; Ray's default is 3
_STORE_BYTES = 100 << 20  # of Ray's object store on a cluster of our own: pixels never pass through it


def connect(settings: dict[str, str] | None = None) -> None:
    """Joins the cluster at RAY_ADDRESS, which a submitted job has; without one, starts Ray on this machine.

    `settings`: more environment variables that Ray's libraries read. Raises UserError when that cluster is not there or does
    not let us in.
    """
    for name, value in {**_RAY_SETTINGS, **(settings or {})}.items():
        os.environ.setdefault(name, value)  # before Ray is imported
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
        for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            os.environ.setdefault(name, "when_required")  # as our own client has it; Ray's reads these
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: Ray Train needs a driver inside the cluster; use `ray job submit` instead"
        )
    if not address:
        console.say("starting Ray on this machine (set RAY_ADDRESS, or use `ray job submit`, for a cluster)")
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            logging_level="ERROR",
            log_to_driver=False,
        )
        return
    _check_address(address)
    present_token()
    try:
        ray.init(address, runtime_env={"env_vars": _forwarded()}, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: this Ray cluster does not let us in ({error}). One with tokens needs RAY_AUTH_MODE=token "
            "and the token here too; Ray and Python must be the cluster's versions"
        ) from None


def _forwarded() -> dict[str, str]:
    """What ranks get of this process's environment. Of a pod no secrets: the other pods have them by reference, as this
    one has, and Ray would write them into its logs.
    """
    kept_back = _SECRET if _IN_POD in os.environ else ()
    return {name: os.environ[name] for name in _FORWARDED if name in os.environ and name not in kept_back}


def present_token() -> None:
    """Makes Ray's clients show the token where there is one, which by themselves they do not."""
    if where_the_token_is() is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def where_the_token_is() -> str | None:
    """Which token Ray's clients show, in the order that they look."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if name in os.environ:
            return name
    own = "~/.ray/auth_token"  # where `ray start` and `ray get-auth-token` leave it
    return own if Path(own).expanduser().exists() else None


def _check_address(address: str) -> None:
    """Raises UserError when nothing listens there; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}). Start one (`ray start --head`), or unset it to "
            "use this machine alone"
        ) from None


def needs(scale: Scale, cluster_gpus: float) -> dict[str, float]:
    """What Ray reserves for one rank, when the cluster has so many GPUs now."""
    gpus = scale.gpus_per_rank
    if gpus is None:
        gpus = 1.0 if scale.device == "cuda" or (scale.device == "auto" and cluster_gpus > 0) else 0.0
    return {"CPU": scale.cpus_per_rank, **({"GPU": gpus} if gpus else {})}


def label_selectors(scale: Scale) -> list[dict[str, str]] | None:
    """The labels of each rank's node; None where all will do."""
    first = scale.node_labels if scale.first_rank_labels is None else scale.first_rank_labels
    found = [dict(first), *(dict(scale.node_labels) for _ in range(scale.num_ranks - 1))]
    return found if any(found) else None


def shortage(scale: Scale, need: dict[str, float], nodes: list[dict[str, Any]]) -> str | None:
    """Why these nodes cannot hold the ranks, with the remedy; None when they can (be it after others have left)."""
    most = _most_ranks(scale, need, nodes)
    if most >= scale.num_ranks:
        return None
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in need.items())
    there = "; ".join(
        f"{node['NodeManagerAddress']}: "
        + ("it drains, " if node.get("Drains") else "")
        + ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in need)
        + "".join(f", {key} {value}" for key, value in _labels(node).items() if not key.startswith("ray.io/"))
        for node in nodes
    )
    selected = [
        f"{what} on nodes with {', '.join(f'{key}={value}' for key, value in labels.items())}"
        for what, labels in (("ranks", scale.node_labels), ("rank 0", scale.first_rank_labels or {}))
        if labels
    ]
    how = ", ".join([scale.placement, *selected])
    remedy = "lower scale.num_ranks, scale.cpus_per_rank or scale.gpus_per_rank, or add nodes"
    return (
        f"{scale.num_ranks} rank(s) with {wanted} each ({how}) are asked for, and the cluster has room for {most}: "
        f"{there or 'no node'}. {remedy[0].upper()}{remedy[1:]}{' with these labels' if selected else ''}"
    )


def _most_ranks(scale: Scale, need: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    """How many ranks of one run these nodes could hold."""
    fits = dict(enumerate(_fits(need, nodes)))
    others = {i: fit for i, fit in fits.items() if _has(nodes[i], scale.node_labels)}
    first = scale.first_rank_labels
    firsts = others if first is None else {i: fit for i, fit in fits.items() if _has(nodes[i], first)}
    best = 0
    for i in (i for i, fit in firsts.items() if fit):  # where rank 0 may be
        left = {**others, i: others.get(i, 1)}  # a node that only rank 0 may have holds it alone
        totals = {"strict_pack": left[i], "strict_spread": sum(fit > 0 for fit in left.values())}
        best = max(best, totals.get(scale.placement, sum(left.values())))
    return best


def room(scale: Scale, need: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    """How many runs of these ranks the nodes can hold at once (be it after others have left)."""
    if scale.first_rank_labels is not None and _most_ranks(scale, need, nodes) < scale.num_ranks:
        return 0
    least = 0 if scale.first_rank_labels is None else 1  # rank 0's node may be one that is for it alone
    fits, ranks = _fits(need, [node for node in nodes if _has(node, scale.node_labels)]), scale.num_ranks
    if scale.placement == "strict_pack":
        return max(least, sum(fit // ranks for fit in fits))
    if scale.placement == "strict_spread":
        return max(num for num in range(sum(fits) + 1) if sum(min(fit, num) for fit in fits) >= num * ranks)
    return max(least, sum(fits) // ranks)


def _fits(need: dict[str, float], nodes: list[dict[str, Any]]) -> list[int]:
    """Ranks that each node can hold; one that drains, none."""
    return [
        0 if node.get("Drains") else min(int(node["Resources"].get(k, 0) / amount + 1e-9) for k, amount in need.items())
        for node in nodes
    ]


def _has(node: dict[str, Any], labels: dict[str, str]) -> bool:
    return labels.items() <= _labels(node).items()


def _labels(node: dict[str, Any]) -> dict[str, str]:
    return dict(node.get("Labels") or {})


def in_use(need: dict[str, float], num: int = 1) -> str:
    """What to say where `num` ranks would fit and yet do not run."""
    import ray

    free = ray.available_resources()
    if all(free.get(name, 0) >= amount * num for name, amount in need.items()):
        return "the cluster has the room, and their processes are starting"
    now = ", ".join(f"{free.get(name, 0):g} {name}" for name in need)
    return (
        f"the cluster has the room, but only {now} are free now (others use the rest, or processes are still starting)"
    )


def nodes() -> list[dict[str, Any]]:
    """Ray's account of the nodes that are alive, and of which of them drain, which take no more ranks."""
    import ray

    going = draining()
    found = (node for node in ray.nodes() if node["Alive"])
    return [{**node, "Drains": node["NodeID"] in going} for node in found]


def draining() -> dict[str, float]:
    """Nodes that were told to go (a spot instance's notice, a scaled-down cluster): id -> when, seconds since the epoch; inf
    where nobody said."""
    import ray

    try:  # Ray Train's own watcher asks the same; there is no public call
        found = ray._private.state.state.get_draining_nodes() or {}
    except AttributeError:
        return {}
    return {id: deadline / 1000 if deadline else math.inf for id, deadline in found.items()}


def end_siblings(actor: Any, class_name: str) -> None:
    """Ends at once every actor of this class that the process which started `actor` has started too."""
    import ray
    from ray._raylet import ActorID

    known = ray._private.state.actors()  # there is no public call
    owner = known[actor._actor_id.hex()]["OwnerAddress"]
    for key, other in known.items():
        if other["ActorClassName"] == class_name and other["OwnerAddress"] == owner and other["State"] != "DEAD":
            ray._private.worker.global_worker.core_worker.kill_actor(ActorID(bytes.fromhex(key)), True)


def log_folder() -> str:
    """Where Ray keeps its logs on this machine."""
    import ray

    return os.path.join(ray._private.worker.global_worker.node.get_session_dir_path(), "logs")
