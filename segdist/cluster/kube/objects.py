"""The objects that the pods belong to."""

from __future__ import annotations

from typing import Any

from segdist.cluster.kube import pods
from segdist.cluster.kube.checks import annotation_of
from segdist.cluster.kube.layout import dump, dump_config
from segdist.cluster.kube.work import ManifestOptions, Work
from segdist.launch.ray_cluster import STOP_SECONDS, needs

Tree = dict[str, Any]

_LOOK_SECONDS = 300  # that pods live on after the job, to look at the dashboard
_SUBMITTER_RETRIES = 10  # each follows the job that is there already, and hands it over only where there is none


def kustomization(ask: ManifestOptions, files: list[str]) -> Tree:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **({"namespace": ask.namespace} if ask.namespace else {}),
        "resources": files,
    }


def config_map(ask: ManifestOptions, work: Work) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(ask, ask.job_name),
        "data": {name: dump_config(tree) for name, tree in work.files.items()},
    }


def service_account(ask: ManifestOptions) -> Tree:
    annotations = annotation_of(ask.identity) if ask.identity else {}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": ask.service_account,
            **({"namespace": ask.namespace} if ask.namespace else {}),
            "labels": {"app.kubernetes.io/part-of": "segdist"},
            **({"annotations": annotations} if annotations else {}),
        },
        "automountServiceAccountToken": False,
    }


def pod_monitor(ask: ManifestOptions) -> Tree:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {
            "name": "segdist",
            **({"namespace": ask.namespace} if ask.namespace else {}),
            "labels": {"app.kubernetes.io/part-of": "segdist"},
        },
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/part-of": "segdist"}},
            "podTargetLabels": ["ray.io/cluster", "ray.io/node-type", "app.kubernetes.io/instance"],
            "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }


def ray_job(ask: ManifestOptions, work: Work, kind: str, entrypoint: str, cluster: Tree, single: bool = False) -> Tree:
    """`single`: the command itself needs what a rank needs, and runs on a worker."""
    need = needs(work.config.scale, cluster_gpus=0)
    own = {f"entrypointNum{name.title()}s": amount for name, amount in need.items()}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(ask, f"{ask.job_name}-{kind}", queued=True),
        "spec": {
            "entrypoint": entrypoint,
            **(own if single else {}),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,  # without which it cannot be suspended
            "ttlSecondsAfterFinished": _LOOK_SECONDS,
            "activeDeadlineSeconds": round(3600 * ask.deadline_hours),
            "backoffLimit": ask.retries,
            "submitterConfig": {"backoffLimit": _SUBMITTER_RETRIES},
            "runtimeEnvYAML": dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}),
            "submitterPodTemplate": pods.submitter(ask, with_configs=not single),
            "rayClusterSpec": cluster,
        },
    }


def ray_cluster(ask: ManifestOptions, cluster: Tree) -> Tree:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(ask, ask.job_name, queued=True),
        "spec": cluster,
    }


def _metadata(ask: ManifestOptions, name: str, queued: bool = False) -> Tree:
    # Kueue suspends what bears this label when it is created. `suspend: true` in a file that is applied again would end it.
    more = {"kueue.x-k8s.io/queue-name": ask.queue} if queued and ask.queue else {}
    return {
        "name": name,
        **({"namespace": ask.namespace} if ask.namespace else {}),
        "labels": pods.labels(ask, **more),
    }
