"""Checks of the options and the config before any cluster is started."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from segdist import config, console, storage
from segdist.cluster.kube.inputs import ManifestOptions, Workload
from segdist.errors import UserError
from segdist.launch.ray_cluster import needs, shortage
from segdist.train import setup

# KubeRay appends six characters to a RayJob's name for its cluster, and ten more for the cluster's services. Therefore
# MaxRayJobNameLength in its constant.go is 47. segdist appends the name of a command.
_MAX_NAME_LENGTH = 47 - len("-evaluate")
_MAX_HOURS = 24 * 90
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # DNS-1035, as KubeRay requires
_SUBDOMAIN = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_UNQUOTED = re.compile(r"[\w./:@%+=,~-]+", re.ASCII)  # unchanged by two shells and by Ray's own quoting


def check_options(options: ManifestOptions) -> None:
    """Raise UserError if an option is invalid in itself."""
    if bad := [word for word in options.arguments() if not word.isprintable()]:
        may_be_secret = bad[0] in options.secrets or config.holds_credential(bad[0])  # do not repeat it
        raise UserError(
            f"{'an option' if may_be_secret else repr(bad[0])} contains a line break or another control character. Remove it: "
            "each file records its command in one line"
        )
    _check_names(options)
    _check_image(options.image)
    _check_volume(options)
    if options.identity is not None and not role_annotation(options.identity):
        raise UserError(
            f"--identity {options.identity}: give the role of the pods, arn:aws:iam::ACCOUNT:role/NAME on EKS or "
            "NAME@PROJECT.iam.gserviceaccount.com on GKE. On other clouds, annotate the service account with a patch"
        )
    for option, number, least, most in (
        ("--ranks-per-worker", options.ranks_per_worker, 1, 16),
        ("--memory-gb", options.memory_gb, 4, 4096),
        ("--retries", options.retries, 0, 100),
        ("--workers", options.workers, 1, 1000),
    ):
        if number is not None and not least <= number <= most:
            raise UserError(f"{option} {number}: must be between {least} and {most}")
    if not 0 < options.deadline_hours <= _MAX_HOURS:
        raise UserError(f"--deadline-hours {options.deadline_hours:g}: must be more than 0 and at most {_MAX_HOURS}")
    if (options.images is None) != (options.predictions is None):
        raise UserError("--images says what to predict, and --predictions where to write it. Give both or neither")


def _check_names(options: ManifestOptions) -> None:
    name = options.job_name
    if not _LABEL.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
        raise UserError(
            f"--name {name}: use lower-case letters, digits and hyphens, starting with a letter, at most {_MAX_NAME_LENGTH} "
            "characters. KubeRay and segdist append to the name"
        )
    for option, value in (
        ("--namespace", options.namespace),
        ("--service-account", options.service_account),
        ("--queue", options.queue),
    ):
        if value is not None and not _SUBDOMAIN.fullmatch(value):
            raise UserError(
                f"{option} {value}: not a valid Kubernetes name. Use lower-case letters, digits, hyphens and dots"
            )
    # do not repeat it: it may be a secret value
    if any(not _SUBDOMAIN.fullmatch(secret) for secret in options.secrets):
        raise UserError(
            "--secret takes the name of a Secret in the namespace, never a value. Create one with `kubectl create secret "
            "generic segdist-hub --from-literal=HF_TOKEN=...`, then use --secret segdist-hub"
        )


def check_workload(options: ManifestOptions, work: Workload) -> None:
    """Raise UserError if the config does not fit the pods, and print a warning if it would merely be slow."""
    for key, value in _strings({**work.files, "the command": options.arguments()}):
        if config.holds_credential(value):  # do not repeat it
            raise UserError(
                f"{key} contains what looks like a credential, and a config map is not secret. Put the credential into a "
                "Secret (--secret NAME), or give the pods a role (--identity)"
            )
    cfg = work.config
    uris: dict[str, str | None] = {
        **config.uris(cfg),
        "--images": options.images,
        "--predictions": options.predictions,
    }
    if work.kind == "sweep":
        uris |= {"run.uri": None, "uri": work.uri}
    for key, uri in uris.items():
        if uri is not None:
            _check_uri(options, key, uri)
    setup.check_num_ranks(cfg, cfg.scale.num_ranks)
    threads = cfg.io.loader_threads
    if needs(cfg.scale, cluster_gpus=0).get("GPU") and cfg.scale.cpus_per_rank < threads:
        console.say(
            f"warning: scale.cpus_per_rank={cfg.scale.cpus_per_rank:g} is less than io.loader_threads={threads}, so the GPU "
            f"may wait for data. Set scale.cpus_per_rank={threads + 1} or more."
        )
    _check_room(options, work)
    _check_max_workers(options, work)
    if options.images and work.kind == "sweep":
        raise UserError(
            "--images needs the config of a run: a sweep has no model yet. Use the config of `segdist train --from-sweep`"
        )
    _check_deadline(options, work)


def _check_deadline(options: ManifestOptions, work: Workload) -> None:
    hours = options.deadline_hours
    if work.budget_hours is not None and work.budget_hours >= hours:
        raise UserError(
            f"--deadline-hours {hours:g} would end the sweep before its budget.hours={work.budget_hours:g} is spent. Give more"
        )
    if work.config.scale.start_seconds >= 3600 * hours:
        raise UserError(
            f"scale.start_seconds={work.config.scale.start_seconds}: waiting that long for nodes leaves nothing of "
            f"--deadline-hours {hours:g}. Lower scale.start_seconds or raise --deadline-hours"
        )


def _check_image(image: str) -> None:
    if not re.fullmatch(r"[\w.-]+(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", image, re.ASCII):
        raise UserError(f"--image {image}: must be REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST")
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@" not in image and tag in ("", "latest"):
        console.say(
            f"warning: --image {image} may be replaced, and a new cluster would then continue the run with other code. "
            "Give a tag or @sha256:..."
        )


def _check_volume(options: ManifestOptions) -> None:
    if options.volume is None:
        return
    claim, path = options.mount or ("", "")
    if not _SUBDOMAIN.fullmatch(claim) or not re.fullmatch(r"(/[\w.-]+)+", path, re.ASCII) or ".." in path.split("/"):
        raise UserError(
            f"--volume {options.volume}: must be CLAIM:/PATH, such as segdist-data:/data. CLAIM is a PersistentVolumeClaim "
            "that many pods can mount at once (ReadWriteMany), and PATH is where they mount it"
        )
    if path.split("/")[1] in ("bin", "dev", "etc", "home", "lib", "proc", "sys", "tmp", "usr", "var"):
        raise UserError(
            f"--volume {options.volume}: /{path.split('/')[1]} belongs to the image or to Ray. Mount the volume elsewhere, "
            "for example at /data"
        )


def role_annotation(identity: str) -> dict[str, str]:
    """Return the annotation that gives a service account this cloud role, or {} if the role's form is unknown."""
    if re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/[\w+=,.@/-]+", identity, re.ASCII):
        return {"eks.amazonaws.com/role-arn": identity}
    if re.fullmatch(r"[a-z][a-z0-9-]+@[a-z0-9.:-]+\.iam\.gserviceaccount\.com", identity):
        return {"iam.gke.io/gcp-service-account": identity}
    return {}


def _check_uri(options: ManifestOptions, key: str, uri: str) -> None:
    if not _UNQUOTED.fullmatch(uri):
        raise UserError(
            f"{key}={uri}: shells read this URI as part of a command. Use one without spaces, *, ?, $ and quotes"
        )
    if not storage.is_local(uri):
        return
    path = uri.removeprefix("file://")
    mount = options.mount
    if mount and path.startswith(f"{mount[1]}/") and ".." not in path.split("/"):
        return
    below = f"a path below {mount[1]}" if mount else "a path on a volume that all pods mount (--volume CLAIM:/PATH)"
    raise UserError(f"{key}={uri} is a path on this machine, which no pod can read. Use s3://BUCKET/FOLDER, or {below}")


def _check_room(options: ManifestOptions, work: Workload) -> None:
    """Raise UserError unless the worker pods have room for every rank of a run or of a trial, and none is left idle."""
    scale = work.config.scale
    need = needs(scale, cluster_gpus=0)  # read_workload has set gpus_per_rank
    if need.get("GPU", 0) % 1 and options.ranks_per_worker > 1:
        raise UserError(
            f"scale.gpus_per_rank={scale.gpus_per_rank:g}: a rank with a part of a GPU needs a pod of its own. Leave out "
            "--ranks-per-worker"
        )
    num = num_workers(options, work)
    if work.kind == "train" and options.workers is None and scale.num_ranks % options.ranks_per_worker:
        raise UserError(
            f"--ranks-per-worker {options.ranks_per_worker}: {num} pods have room for {num * options.ranks_per_worker} ranks, "
            f"but scale.num_ranks is {scale.num_ranks}. Use a divisor of it, so that no GPU is idle"
        )
    labels = options.node_labels
    for key, wanted in (("node_labels", scale.node_labels), ("first_rank_labels", scale.first_rank_labels or {})):
        if not wanted.items() <= labels.items():
            raise UserError(
                f"scale.{key} asks for nodes with {wanted}, but the worker pods have {labels}. Leave out scale.{key}"
            )
    each = {name: math.ceil(amount * options.ranks_per_worker) for name, amount in need.items()}
    nodes = [{"NodeManagerAddress": f"worker {i + 1}", "Resources": each, "Labels": labels} for i in range(num)]
    if shortage(scale, need, nodes):
        raise UserError(
            f"scale.num_ranks={scale.num_ranks} with scale.placement={scale.placement} do not fit on {num} worker(s) of "
            f"{options.ranks_per_worker} rank(s) each. Change --workers or --ranks-per-worker, or leave them out"
        )
    has_idle = work.kind == "train" and (num - 1) * options.ranks_per_worker >= scale.num_ranks
    if has_idle and scale.placement != "strict_spread":
        raise UserError(f"--workers {num}: {scale.num_ranks} rank(s) leave some workers idle. Leave out --workers")


def _check_max_workers(options: ManifestOptions, work: Workload) -> None:
    most, num = options.max_workers, num_workers(options, work)
    if most is None:
        return
    if options.queue:
        raise UserError("--max-workers with --queue: Kueue admits clusters of a fixed size. Use --workers instead")
    if work.kind == "train":
        raise UserError("--max-workers is for sweeps. A run has scale.num_ranks ranks from start to end")
    if most <= num:
        raise UserError(f"--max-workers {most}: the sweep starts with {num} worker(s). Give more, or leave it out")
    if work.max_concurrent is None:
        raise UserError(
            "--max-workers needs max_concurrent in the sweep file. Without it, segdist starts only as many trials as fit, so "
            f"the cluster never grows. Set max_concurrent={most}, for example"
        )


def num_workers(options: ManifestOptions, work: Workload) -> int:
    """Return the number of worker pods: enough for one run, or for the `max_concurrent` trials of a sweep."""
    if options.workers is not None:
        return options.workers
    scale = work.config.scale
    if scale.placement == "strict_spread":
        return scale.num_ranks
    trials = 1 if options.max_workers is not None else work.max_concurrent or 1
    return math.ceil(scale.num_ranks * trials / options.ranks_per_worker)


def _strings(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, string) for every string in a tree."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _strings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _strings(value, key)
    elif isinstance(tree, str):
        yield key, tree
