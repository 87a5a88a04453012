"""The Ray cluster: connect to it or start one on this machine, its resources, and what it lacks for a run."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path
from typing import Any

from segdist import console
from segdist.config import Scale
from segdist.errors import UserError

_FORWARDED = (  # environment variables for ranks on other machines; never paths of files, which do not exist there
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET",
)  # fmt: skip
_SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
_IN_POD = "KUBERAY_GEN_RAY_START_CMD"  # KubeRay sets it in every Ray pod
_RAY_SETTINGS = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise every line is printed twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon a dead rank is noticed; also delays reports
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",  # a submitted job may set the same variables
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # keeps the raylet's messages off stdout, which is for JSON
}
STOP_SECONDS = 300  # time that `ray job stop` gives a command to commit; Ray's default is 3
_STORE_BYTES = 100 << 20  # object store of a local cluster; pixels never pass through it


def connect(settings: dict[str, str] | None = None) -> None:
    """Connect to the cluster at RAY_ADDRESS, which Ray sets for a submitted job. Without one, start Ray on this machine.

    `settings` are more environment variables for Ray's libraries. Raises UserError if the cluster does not answer or refuses
    the connection.
    """
    for name, value in {**_RAY_SETTINGS, **(settings or {})}.items():
        os.environ.setdefault(name, value)  # before Ray is imported
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
        for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            os.environ.setdefault(name, "when_required")  # like our own S3 client; Ray's client reads these
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: Ray Train needs a driver inside the cluster. Use `segdist submit` instead"
        )
    if not address:
        console.say("starting Ray on this machine (for a cluster, set RAY_ADDRESS or use `segdist submit`)")
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
            f"RAY_ADDRESS={address}: the Ray cluster refused the connection ({error}). If it uses tokens, provide "
            "its token here too, for example in ~/.ray/auth_token. The versions of Ray and Python must match the cluster's"
        ) from None


def _forwarded() -> dict[str, str]:
    """Return the environment variables to pass to the ranks.

    In a Kubernetes pod, secrets are left out: all pods have them by reference, and Ray would write them into its logs.
    """
    kept_back = _SECRET if _IN_POD in os.environ else ()
    return {name: os.environ[name] for name in _FORWARDED if name in os.environ and name not in kept_back}


def present_token() -> None:
    """Make Ray's clients send the token if there is one. They do not do so by themselves."""
    if token_source() is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def token_source() -> str | None:
    """Return where Ray's clients find the token, in the order they look, or None."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if name in os.environ:
            return name
    own = "~/.ray/auth_token"  # written by `ray start` and `ray get-auth-token`
    return own if Path(own).expanduser().exists() else None


def _check_address(address: str) -> None:
    """Raise UserError if nothing listens at the address. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers ({error}). Start one with `ray start --head`, or unset RAY_ADDRESS "
            "to use this machine alone"
        ) from None


def needs(scale: Scale, cluster_gpus: float) -> dict[str, float]:
    """Return the resources that Ray reserves for one rank. `cluster_gpus` is the number of GPUs in the cluster now."""
    gpus = scale.gpus_per_rank
    if gpus is None:
        gpus = 1.0 if scale.device == "cuda" or (scale.device == "auto" and cluster_gpus > 0) else 0.0
    return {"CPU": scale.cpus_per_rank, **({"GPU": gpus} if gpus else {})}


def label_selectors(scale: Scale) -> list[dict[str, str]] | None:
    """Return the required node labels of each rank, or None if every node will do."""
    first = scale.node_labels if scale.first_rank_labels is None else scale.first_rank_labels
    found = [dict(first), *(dict(scale.node_labels) for _ in range(scale.num_ranks - 1))]
    return found if any(found) else None


def shortage(scale: Scale, need: dict[str, float], nodes: list[dict[str, Any]]) -> str | None:
    """Return why these nodes cannot hold the ranks, with a remedy, or None if they can, even if other jobs use them now."""
    most = _most_ranks(scale, need, nodes)
    if most >= scale.num_ranks:
        return None
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in need.items())
    there = "; ".join(
        f"{node['NodeManagerAddress']}: "
        + ("draining, " if node.get("Drains") else "")
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
        f"{scale.num_ranks} rank(s) with {wanted} each ({how}) are requested, but the cluster has room for {most}: "
        f"{there or 'no node'}. {remedy[0].upper()}{remedy[1:]}{' with these labels' if selected else ''}"
    )


def _most_ranks(scale: Scale, need: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    """Return how many ranks of one run these nodes can hold."""
    fits = dict(enumerate(_fits(need, nodes)))
    others = {i: fit for i, fit in fits.items() if _has(nodes[i], scale.node_labels)}
    first = scale.first_rank_labels
    firsts = others if first is None else {i: fit for i, fit in fits.items() if _has(nodes[i], first)}
    best = 0
    for i in (i for i, fit in firsts.items() if fit):  # candidates for rank 0
        left = {**others, i: others.get(i, 1)}  # a node for rank 0 only holds one rank
        totals = {"strict_pack": left[i], "strict_spread": sum(fit > 0 for fit in left.values())}
        best = max(best, totals.get(scale.placement, sum(left.values())))
    return best


def room(scale: Scale, need: dict[str, float], nodes: list[dict[str, Any]]) -> int:
    """Return how many runs of this size the nodes can hold at once, ignoring what other jobs use now."""
    if scale.first_rank_labels is not None and _most_ranks(scale, need, nodes) < scale.num_ranks:
        return 0
    least = 0 if scale.first_rank_labels is None else 1  # rank 0 may have a node of its own
    fits, ranks = _fits(need, [node for node in nodes if _has(node, scale.node_labels)]), scale.num_ranks
    if scale.placement == "strict_pack":
        return max(least, sum(fit // ranks for fit in fits))
    if scale.placement == "strict_spread":
        return max(num for num in range(sum(fits) + 1) if sum(min(fit, num) for fit in fits) >= num * ranks)
    return max(least, sum(fits) // ranks)


def _fits(need: dict[str, float], nodes: list[dict[str, Any]]) -> list[int]:
    """Return how many ranks each node can hold. A draining node holds none."""
    return [
        0 if node.get("Drains") else min(int(node["Resources"].get(k, 0) / amount + 1e-9) for k, amount in need.items())
        for node in nodes
    ]


def _has(node: dict[str, Any], labels: dict[str, str]) -> bool:
    return labels.items() <= _labels(node).items()


def _labels(node: dict[str, Any]) -> dict[str, str]:
    return dict(node.get("Labels") or {})


def in_use(need: dict[str, float], num: int = 1) -> str:
    """Return a message about `num` ranks that would fit but do not run yet."""
    import ray

    free = ray.available_resources()
    if all(free.get(name, 0) >= amount * num for name, amount in need.items()):
        return "the cluster has room, and the processes are starting"
    now = ", ".join(f"{free.get(name, 0):g} {name}" for name in need)
    return (
        f"the cluster is large enough, but only {now} are free now (other jobs use the rest, or processes are still "
        "starting)"
    )


def nodes() -> list[dict[str, Any]]:
    """Return Ray's nodes that are alive. `Drains` marks those that are draining and take no more ranks."""
    import ray

    going = draining()
    found = (node for node in ray.nodes() if node["Alive"])
    return [{**node, "Drains": node["NodeID"] in going} for node in found]


def draining() -> dict[str, float]:
    """Return the draining nodes (spot notice, scale-down): node ID -> deadline, seconds since the epoch, inf if unknown."""
    import ray

    try:  # Ray Train does the same; there is no public API
        found = ray._private.state.state.get_draining_nodes() or {}
    except AttributeError:
        return {}
    return {id: deadline / 1000 if deadline else math.inf for id, deadline in found.items()}


def end_siblings(actor: Any, class_name: str) -> None:
    """Kill every actor of this class that was started by the process that started `actor`."""
    import ray
    from ray._raylet import ActorID

    known = ray._private.state.actors()  # there is no public API
    owner = known[actor._actor_id.hex()]["OwnerAddress"]
    for key, other in known.items():
        if other["ActorClassName"] == class_name and other["OwnerAddress"] == owner and other["State"] != "DEAD":
            ray._private.worker.global_worker.core_worker.kill_actor(ActorID(bytes.fromhex(key)), True)


def log_folder() -> str:
    """Return the folder of Ray's logs on this machine."""
    import ray

    return os.path.join(ray._private.worker.global_worker.node.get_session_dir_path(), "logs")
