"""Write a config or a sweep as YAML manifests for KubeRay: jobs that train, evaluate and predict, and what they share.

Pods are disposable, because all state is in object storage. Each job is a command that can be run again: a new cluster
continues where the old one stopped. The hooks that Kubernetes calls before it ends a pod exist only to save the steps
since the last checkpoint. Written for KubeRay 1.7 (API ray.io/v1).
"""

from __future__ import annotations

import shlex

from segdist import storage
from segdist.cluster.kube import checks, objects, pods
from segdist.cluster.kube.inputs import ManifestOptions, Workload, read_workload
from segdist.cluster.kube.yaml_format import dump

__all__ = ["MADE_BY", "ManifestOptions", "manifests"]

MADE_BY = b"# Made by: segdist k8s "  # start of the second line of every file
_JOB_COMMENT = (
    "Runs one command on a Ray cluster of its own. A new cluster continues where an earlier one stopped. To resume by hand, "
    "delete this job and apply it again."
)


def manifests(options: ManifestOptions) -> dict[str, str]:
    """Return the manifests, file name -> YAML text.

    The kustomization covers the config map and the job; the other files are applied separately. Raises UserError if the options
    or the config cannot work on Kubernetes.
    """
    checks.check_options(options)
    work = read_workload(options)
    checks.check_workload(options, work)
    job = f"rayjob-{work.kind}.yaml"
    files: dict[str, tuple[str, dict[str, object]]] = {  # file name -> (comment in the first line, object)
        "kustomization.yaml": (
            "Run `kubectl apply -k` on this folder to apply the job and its config. Apply the other files separately.",
            objects.kustomization(options, ["configmap.yaml", job]),
        ),
        "configmap.yaml": ("The config of the job, with its overrides.", objects.config_map(options, work)),
        "serviceaccount.yaml": (
            "Apply once per namespace. The cloud grants the pods the rights of this account.",
            objects.service_account(options),
        ),
        "podmonitor.yaml": (
            "Apply once per namespace if the Prometheus operator is installed. It scrapes every segdist pod.",
            objects.pod_monitor(options),
        ),
        job: (_JOB_COMMENT, objects.ray_job(options, work, work.kind, work.entrypoint, pods.cluster(options, work))),
    }
    if work.kind == "train":
        files["rayjob-evaluate.yaml"] = (
            "Evaluates the run's best checkpoint, in one process on one worker.",
            _single_process_job(options, work, "evaluate"),
        )
        if options.images:
            files["rayjob-predict.yaml"] = (
                "Predicts a mask for every image, in one process on one worker. If restarted, it continues where it stopped.",
                _single_process_job(options, work, "predict"),
            )
        files["raycluster.yaml"] = (
            "The same pods without a job, for `ray job submit`. They run, and cost money, until you delete them.",
            objects.ray_cluster(options, pods.cluster(options, work)),
        )
    made_by = f"{MADE_BY.decode()}{shlex.join(options.arguments())}\n"
    return {name: f"# {comment}\n{made_by}{dump(content)}" for name, (comment, content) in files.items()}


def _single_process_job(options: ManifestOptions, work: Workload, kind: str) -> dict[str, object]:
    """Return a job of one process. It runs on a worker, because the head offers neither GPUs nor CPUs."""
    uri = work.config.run.uri
    words = {
        "evaluate": ["segdist", "evaluate", uri, "--out", storage.join(uri, "evaluation.json")],
        "predict": ["segdist", "predict", uri, options.images or "", "--out", options.predictions or ""],
    }[kind]
    cluster = pods.cluster(options, work, single=True)
    return objects.ray_job(options, work, kind, shlex.join(words), cluster, single=True)
