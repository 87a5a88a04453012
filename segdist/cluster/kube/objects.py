"""The Kubernetes objects around the pods."""

from __future__ import annotations

from segdist.cluster.kube import pods
from segdist.cluster.kube.checks import role_annotation
from segdist.cluster.kube.inputs import ManifestOptions, Workload
from segdist.cluster.kube.pods import Tree
from segdist.cluster.kube.yaml_format import dump, dump_config
from segdist.launch.ray_cluster import STOP_SECONDS, needs

_KEEP_SECONDS = 300  # that pods stay after the job, so that the dashboard can be read
_SUBMITTER_RETRIES = 10  # a restarted submitter follows the job, and submits it only if the cluster does not have it


def kustomization(options: ManifestOptions, files: list[str]) -> Tree:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **_namespace(options),
        "resources": files,
    }


def config_map(options: ManifestOptions, work: Workload) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(options, options.job_name),
        "data": {name: dump_config(tree) for name, tree in work.files.items()},
    }


def service_account(options: ManifestOptions) -> Tree:
    annotations = role_annotation(options.identity) if options.identity else {}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": options.service_account,
            **_namespace(options),
            "labels": {"app.kubernetes.io/part-of": "segdist"},
            **({"annotations": annotations} if annotations else {}),
        },
        "automountServiceAccountToken": False,
    }


def pod_monitor(options: ManifestOptions) -> Tree:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {
            "name": "segdist",
            **_namespace(options),
            "labels": {"app.kubernetes.io/part-of": "segdist"},
        },
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/part-of": "segdist"}},
            "podTargetLabels": ["ray.io/cluster", "ray.io/node-type", "app.kubernetes.io/instance"],
            "podMetricsEndpoints": [{"port": "metrics", "interval": "15s"}],
        },
    }


def ray_job(
    options: ManifestOptions, work: Workload, kind: str, entrypoint: str, cluster: Tree, single: bool = False
) -> Tree:
    """Return a RayJob. With `single`, the command itself gets the resources of a rank, and therefore runs on a worker."""
    need = needs(work.config.scale, cluster_gpus=0)
    entrypoint_resources = {f"entrypointNum{name.title()}s": amount for name, amount in need.items()}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(options, f"{options.job_name}-{kind}", queued=True),
        "spec": {
            "entrypoint": entrypoint,
            **(entrypoint_resources if single else {}),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,  # required for a job that can be suspended
            "ttlSecondsAfterFinished": _KEEP_SECONDS,
            "activeDeadlineSeconds": round(3600 * options.deadline_hours),
            "backoffLimit": options.retries,
            "submitterConfig": {"backoffLimit": _SUBMITTER_RETRIES},
            "runtimeEnvYAML": dump({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}),
            "submitterPodTemplate": pods.submitter(options, with_configs=not single),
            "rayClusterSpec": cluster,
        },
    }


def ray_cluster(options: ManifestOptions, cluster: Tree) -> Tree:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(options, options.job_name, queued=True),
        "spec": cluster,
    }


def _namespace(options: ManifestOptions) -> Tree:
    return {"namespace": options.namespace} if options.namespace else {}


def _metadata(options: ManifestOptions, name: str, queued: bool = False) -> Tree:
    # Kueue suspends new objects with this label. `suspend: true` in the file would end a running job if applied again.
    more = {"kueue.x-k8s.io/queue-name": options.queue} if queued and options.queue else {}
    return {"name": name, **_namespace(options), "labels": pods.labels(options, **more)}
