"""A config, or a sweep, as plain YAML for KubeRay: the jobs that train, score and predict, and what they share.

Pods are cattle: everything that counts is in object storage. So each job is a command that may be given again, a new cluster
goes on where the old one was, and the hooks that Kubernetes calls before it ends a pod only save the steps since the last
checkpoint. Written for KubeRay 1.7 (API ray.io/v1).
"""

from __future__ import annotations

import shlex

from segdist import storage
from segdist.cluster.kube import checks, objects, pods
from segdist.cluster.kube.layout import dump
from segdist.cluster.kube.work import ManifestOptions, Work, read

__all__ = ["MADE", "Ask", "manifests"]

MADE = b"# Made by: segdist k8s "  # the second line of every file


def manifests(ask: ManifestOptions) -> dict[str, str]:
    """File name -> YAML text: a kustomization with the job, and beside it what is applied by itself.

    Raises UserError, before anything is written, for values that no pod, or no operator, could do with.
    """
    checks.check(ask)
    work = read(ask)
    checks.check_work(ask, work)
    job = f"rayjob-{work.kind}.yaml"
    files: dict[str, tuple[str, dict[str, object]]] = {  # what the first line says, and the object
        "kustomization.yaml": (
            "`kubectl apply -k` this folder: the job and its config. The other files are applied by themselves.",
            objects.kustomization(ask, ["configmap.yaml", job]),
        ),
        "configmap.yaml": ("The config as every launcher reads it.", objects.config_map(ask, work)),
        "serviceaccount.yaml": ("Once per namespace: who the pods are to the cloud.", objects.service_account(ask)),
        "podmonitor.yaml": (
            "Once per namespace, with the Prometheus operator: it scrapes every pod of segdist.",
            objects.pod_monitor(ask),
        ),
        job: (_ABOUT_JOB, objects.ray_job(ask, work, work.kind, work.entrypoint, pods.cluster(ask, work))),
    }
    if work.kind == "train":
        files["rayjob-evaluate.yaml"] = (
            "Scores the run's best checkpoint, in one process on one worker.",
            _single(ask, work, "evaluate"),
        )
        if ask.images:
            files["rayjob-predict.yaml"] = (
                "Predicts every image, in one process on one worker; begun again, it goes on.",
                _single(ask, work, "predict"),
            )
        files["raycluster.yaml"] = (
            "The same pods without a job, for `ray job submit`. Nothing ends it but you: it costs as long as it lives.",
            objects.ray_cluster(ask, pods.cluster(ask, work)),
        )
    made = f"{MADE.decode()}{shlex.join(ask.arguments())}\n"
    return {name: f"# {about}\n{made}{dump(content)}" for name, (about, content) in files.items()}


_ABOUT_JOB = (
    "A cluster of its own for one command, which goes on where an earlier cluster stopped; to resume it by hand, delete and "
    "apply it again."
)


def _single(ask: ManifestOptions, work: Work, kind: str) -> dict[str, object]:
    """The job of one process, which Ray starts where a rank would be, for the head has neither GPU nor CPUs to give."""
    uri = work.config.run.uri
    words = {
        "evaluate": ["segdist", "evaluate", uri, "--out", storage.join(uri, "evaluation.json")],
        "predict": ["segdist", "predict", uri, ask.images or "", "--out", ask.predictions or ""],
    }[kind]
    return objects.ray_job(ask, work, kind, shlex.join(words), pods.cluster(ask, work, single=True), single=True)
