"""What can be known to be wrong before a cluster is paid for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from segdist import config, console, storage
from segdist.cluster.kube.work import ManifestOptions, Work
from segdist.errors import UserError
from segdist.launch.ray_cluster import needs, shortage
from segdist.train import setup

# KubeRay appends six characters to a RayJob's name for its cluster, whose services append ten: MaxRayJobNameLength in its
# constant.go is 47. Ours append the name of a verb.
MOST_CHARACTERS = 47 - len("-evaluate")
_MOST_HOURS = 24 * 90
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035, as KubeRay wants it
_SUBDOMAIN = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_WORD = re.compile(r"[\w./:@%+=,~-]+", re.ASCII)  # what two shells and Ray's own quoting leave as it is


def check(ask: ManifestOptions) -> None:
    """Raises UserError for an option that makes no sense by itself."""
    if not all(word.isprintable() for word in ask.arguments()):
        raise UserError(
            "an option or override holds a line break or another control character; leave it out, for every file bears the "
            "command that made it in one line"
        )
    name = ask.job_name
    if not _LABEL.fullmatch(name) or len(name) > MOST_CHARACTERS:
        raise UserError(
            f"--name {name}: give lower-case letters, digits and hyphens, a letter first, at most {MOST_CHARACTERS} of them "
            "(KubeRay and segdist append to it)"
        )
    for option, value in (
        ("--namespace", ask.namespace),
        ("--service-account", ask.service_account),
        ("--queue", ask.queue),
    ):
        if value is not None and not _SUBDOMAIN.fullmatch(value):
            raise UserError(
                f"{option} {value}: give a name of Kubernetes: lower-case letters, digits, hyphens and dots"
            )
    if any(not _SUBDOMAIN.fullmatch(secret) for secret in ask.secrets):  # which may be a value, and so is not repeated
        raise UserError(
            "--secret takes the name of a Secret that is in the namespace, never a value: `kubectl create secret generic "
            "segdist-hub --from-literal=HF_TOKEN=...`, then --secret segdist-hub"
        )
    _check_image(ask.image)
    _check_volume(ask)
    _check_identity(ask.identity)
    for option, number, least, most in (
        ("--ranks-per-worker", ask.ranks_per_worker, 1, 16),
        ("--memory-gb", ask.memory_gb, 4, 4096),
        ("--retries", ask.retries, 0, 100),
        ("--workers", ask.workers, 1, 1000),
    ):
        if number is not None and not least <= number <= most:
            raise UserError(f"{option} {number}: give {least} to {most}")
    if not 0 < ask.deadline_hours <= _MOST_HOURS:
        raise UserError(f"--deadline-hours {ask.deadline_hours:g}: give more than 0, and at most {_MOST_HOURS}")
    if (ask.images is None) != (ask.predictions is None):
        raise UserError("--images says what to predict and --predictions where it goes; give both or none")


def check_work(ask: ManifestOptions, work: Work) -> None:
    """Raises UserError where the config and the pods do not fit together; warns of what is merely unwise."""
    for key, value in _texts({**work.files, "the command": ask.arguments()}):
        if config.holds_credential(value):  # whose value is not repeated
            raise UserError(
                f"{key} holds what looks like a credential, and a config map is for everybody to "
                "read; put it into a Secret (--secret NAME), or give the pods a role (--identity)"
            )
    cfg = work.config
    places: dict[str, str | None] = {**config.places(cfg), "--images": ask.images, "--predictions": ask.predictions}
    if work.kind == "sweep":
        places |= {"run.uri": None, "uri": work.uri}
    for key, uri in places.items():
        if uri is not None:
            _check_place(ask, key, uri)
    setup.check_groups(cfg, cfg.scale.num_ranks)
    if needs(cfg.scale, cluster_gpus=0).get("GPU") and cfg.scale.cpus_per_rank < cfg.io.loader_threads:
        threads = cfg.io.loader_threads
        console.say(
            f"warning: scale.cpus_per_rank={cfg.scale.cpus_per_rank:g} beside a GPU, and {threads} threads that load for it: "
            f"give {threads + 1} or more, or pods may be put where the GPU waits for data"
        )
    _check_room(ask, work)
    if ask.images and work.kind == "sweep":
        raise UserError(
            "--images is for a run's config: a sweep has no model yet; give the config of `segdist train --from-sweep`"
        )
    seconds = 3600 * ask.deadline_hours
    if work.budget_hours is not None and work.budget_hours >= ask.deadline_hours:
        raise UserError(
            f"--deadline-hours {ask.deadline_hours:g} would end a sweep that has budget.hours={work.budget_hours:g}; give more"
        )
    if cfg.scale.start_seconds >= seconds:
        raise UserError(
            f"scale.start_seconds={cfg.scale.start_seconds} of waiting for nodes leave nothing of --deadline-hours "
            f"{ask.deadline_hours:g}; lower it, or give more hours"
        )


def _check_image(image: str) -> None:
    if not re.fullmatch(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", image, re.ASCII):
        raise UserError(f"--image {image}: give REGISTRY/NAME:TAG, or REGISTRY/NAME@sha256:...")
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@" not in image and tag in ("", "latest"):
        console.say(
            f"warning: --image {image} may be another image tomorrow, and a cluster that is built anew would go on with other "
            "code; give a tag, or @sha256:..."
        )


def _check_volume(ask: ManifestOptions) -> None:
    if ask.volume is None:
        return
    claim, path = ask.mount or ("", "")
    if not _SUBDOMAIN.fullmatch(claim) or not re.fullmatch(r"(/[\w.-]+)+", path, re.ASCII) or ".." in path.split("/"):
        raise UserError(
            f"--volume {ask.volume}: give CLAIM:/PATH, the name of a PersistentVolumeClaim that many pods may mount at once "
            "(ReadWriteMany) and where, such as segdist-data:/data"
        )
    if path.split("/")[1] in ("bin", "dev", "etc", "home", "lib", "proc", "sys", "tmp", "usr", "var"):
        raise UserError(
            f"--volume {ask.volume}: /{path.split('/')[1]} belongs to the image or to Ray; mount it at /data, say"
        )


def _check_identity(identity: str | None) -> None:
    if identity is not None and not annotation_of(identity):
        raise UserError(
            f"--identity {identity}: give the role that the pods shall have: arn:aws:iam::ACCOUNT:role/NAME on EKS, or "
            "NAME@PROJECT.iam.gserviceaccount.com on GKE; elsewhere annotate the service account by a patch"
        )


def annotation_of(identity: str) -> dict[str, str]:
    """The annotation by which a cloud gives a service account this role; empty when it is none that we know."""
    if re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/[\w+=,.@/-]+", identity, re.ASCII):
        return {"eks.amazonaws.com/role-arn": identity}
    if re.fullmatch(r"[a-z][a-z0-9-]+@[a-z0-9.:-]+\.iam\.gserviceaccount\.com", identity):
        return {"iam.gke.io/gcp-service-account": identity}
    return {}


def _check_place(ask: ManifestOptions, key: str, uri: str) -> None:
    if not _WORD.fullmatch(uri):
        raise UserError(
            f"{key}={uri}: it stands in commands that shells read; give an address without spaces and *, ?, $ and quotes"
        )
    if not storage.is_local(uri):
        return
    path = uri.removeprefix("file://")
    mount = ask.mount
    if mount and path.startswith(f"{mount[1]}/") and ".." not in path.split("/"):
        return
    below = f"a path below {mount[1]}" if mount else "a path on a volume that all pods mount (--volume CLAIM:/PATH)"
    raise UserError(f"{key}={uri} is a path on this machine, which no pod has; give s3://BUCKET/FOLDER, or {below}")


def _check_room(ask: ManifestOptions, work: Work) -> None:
    """Raises UserError unless every rank of a run, or of a trial, finds room on the pods that there will be."""
    scale = work.config.scale
    need = needs(scale, cluster_gpus=0)  # work.read has settled whether there are GPUs
    if need.get("GPU", 0) % 1 and ask.ranks_per_worker > 1:
        raise UserError(
            f"scale.gpus_per_rank={scale.gpus_per_rank:g} is for a pod of its own; leave --ranks-per-worker out"
        )
    num = num_workers(ask, work)
    each = {name: math.ceil(amount * ask.ranks_per_worker) for name, amount in need.items()}
    if work.kind == "train" and ask.workers is None and scale.num_ranks % ask.ranks_per_worker:
        raise UserError(
            f"--ranks-per-worker {ask.ranks_per_worker}: {num} pods would be paid for {num * ask.ranks_per_worker} ranks, and "
            f"scale.num_ranks is {scale.num_ranks}; give one that divides it"
        )
    labels = ask.market
    nodes = [{"NodeManagerAddress": f"worker {i + 1}", "Resources": each, "Labels": labels} for i in range(num)]
    for wanted in (scale.node_labels, scale.first_rank_labels or {}):
        if not wanted.items() <= labels.items():
            raise UserError(
                f"scale.node_labels or scale.first_rank_labels want nodes with {wanted}, and the worker pods have {labels}: "
                "all are of one kind here; leave them out"
            )
    if shortage(scale, need, nodes):
        raise UserError(
            f"scale.num_ranks={scale.num_ranks} with scale.placement={scale.placement} do not fit on {num} worker(s) of "
            f"{ask.ranks_per_worker} rank(s) each; change --workers or --ranks-per-worker, or leave them out"
        )
    if (
        work.kind == "train"
        and (num - 1) * ask.ranks_per_worker >= scale.num_ranks
        and scale.placement != "strict_spread"
    ):
        raise UserError(f"--workers {num}: {scale.num_ranks} rank(s) leave some of them idle; leave it out")
    if ask.max_workers is None:
        return
    if ask.queue:
        raise UserError("--max-workers with --queue: Kueue admits clusters of a fixed size; give --workers")
    if work.kind == "train":
        raise UserError("--max-workers is for sweeps: a run has the ranks that scale.num_ranks says, from start to end")
    if ask.max_workers <= num:
        raise UserError(f"--max-workers {ask.max_workers}: there are {num} to begin with; give more, or leave it out")
    if work.max_concurrent is None:
        raise UserError(
            "--max-workers: Ray adds pods for trials that wait, and without max_concurrent no more are started than there is "
            f"room for; give max_concurrent={ask.max_workers}, for example"
        )


def num_workers(ask: ManifestOptions, work: Work) -> int:
    """Worker pods that a run needs; of a sweep, those of so many trials as may run at a time, where it says so."""
    if ask.workers is not None:
        return ask.workers
    scale = work.config.scale
    if scale.placement == "strict_spread":
        return scale.num_ranks
    trials = 1 if ask.max_workers is not None else work.max_concurrent or 1
    return math.ceil(scale.num_ranks * trials / ask.ranks_per_worker)


def _texts(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a tree."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value, key)
    elif isinstance(tree, str):
        yield key, tree
