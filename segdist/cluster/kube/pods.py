"""The pods: a head that runs no rank and stays, and workers that may come and go."""

from __future__ import annotations

import math
from importlib import metadata
from typing import Any

from segdist.cluster.kube.checks import num_workers
from segdist.cluster.kube.inputs import ManifestOptions, Workload
from segdist.launch.ray_cluster import needs

Tree = dict[str, Any]

CONFIGS = "/etc/segdist"
_ENVIRONMENT = {"name": "SEGDIST_CONFIGS", "value": CONFIGS}
_GRACE_SECONDS = 120  # length of AWS's notice for a spot instance
_HOOK_SECONDS = 100  # part of the grace period; the rest is for Ray to shut down
_HEAD_CPUS, _HEAD_GB = 2, 8  # enough for a driver, which imports torch
_SHM_GB = 4  # for NCCL and Ray's object store, through which no pixels pass
_STORE = {"object-store-memory": str(1 << 30)}
_IDLE_SECONDS = 600  # longer than it takes to replace a trial
_SPOT = {  # (label of spot nodes, which is also the key of the taint that some clouds give them; its value)
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "gke": ("cloud.google.com/gke-spot", "true"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
}


def labels(options: ManifestOptions, **more: str) -> Tree:
    """Return the labels of every object. `app.kubernetes.io/name` is not among them, because KubeRay sets it."""
    return {"app.kubernetes.io/part-of": "segdist", "app.kubernetes.io/instance": options.job_name, **more}


def cluster(options: ManifestOptions, work: Workload, single: bool = False) -> Tree:
    """Return the spec of a RayCluster with room for all ranks, or with `single` for one process of the size of a rank."""
    ranks = 1 if single else options.ranks_per_worker
    num = 1 if single else num_workers(options, work)
    most = num if single or options.max_workers is None else options.max_workers
    need = needs(work.config.scale, cluster_gpus=0)
    cpus, gpus = (math.ceil(need.get(name, 0) * ranks) for name in ("CPU", "GPU"))
    autoscaling = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": _IDLE_SECONDS, "securityContext": _unprivileged()},
    }
    return {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        **(autoscaling if most > num else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **_STORE},  # no rank runs here, whatever the node has
            "template": _head(options, with_configs=not single, needs_api=most > num),
        },
        "workerGroupSpecs": [
            {
                "groupName": "ranks",
                "labels": options.node_labels,  # labels of Ray's nodes, which scale.node_labels selects by
                "replicas": num,
                "minReplicas": num,
                "maxReplicas": most,
                "rayStartParams": {"num-cpus": str(cpus), **_STORE},
                "template": _worker(options, work, cpus, gpus, options.memory_gb * ranks),
            }
        ],
    }


def submitter(options: ManifestOptions, with_configs: bool) -> Tree:
    """Return the template of the pod that submits the command and follows its log. KubeRay sets the pod's own command."""
    container = {
        "name": "ray-job-submitter",
        "image": options.image,
        **({"env": [_ENVIRONMENT]} if with_configs else {}),
        "resources": _resources(1, 1, 0),
        "securityContext": _unprivileged(),
    }
    return {
        "metadata": {"labels": labels(options, **{"app.kubernetes.io/component": "submitter"})},
        "spec": {
            "serviceAccountName": options.service_account,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": _run_as_user(),
            **_on_demand(options),
            "containers": [container],
        },
    }


def _head(options: ManifestOptions, with_configs: bool, needs_api: bool) -> Tree:
    """Return the head's template. With `needs_api`, Ray's autoscaler in this pod may ask Kubernetes for more pods."""
    container = _container(options, "ray-head", _HEAD_CPUS, _HEAD_GB, 0, ["segdist", "node", "stop-drivers"])
    container["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001), ("metrics", 8080))
    ]
    spec = _spec(options, container) | _on_demand(options)
    if with_configs:
        container["env"] = [_ENVIRONMENT]
        container["volumeMounts"].append({"name": "configs", "mountPath": CONFIGS, "readOnly": True})
        spec["volumes"].append({"name": "configs", "configMap": {"name": options.job_name}})
    spec["automountServiceAccountToken"] = needs_api
    return {"metadata": {"labels": labels(options, **{"app.kubernetes.io/component": "head"})}, "spec": spec}


def _worker(options: ManifestOptions, work: Workload, cpus: int, gpus: int, memory_gb: int) -> Tree:
    own = labels(options, **{"app.kubernetes.io/component": "worker"})
    container = _container(options, "ray-worker", cpus, memory_gb, gpus, ["segdist", "node", "drain"])
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    spec = _spec(options, container)
    spec["automountServiceAccountToken"] = False
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    if options.spot:
        key, value = _SPOT[options.spot]
        spec["nodeSelector"] = {key: value}
        tolerations.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    if tolerations:
        spec["tolerations"] = tolerations
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": own}}
    if work.config.scale.placement == "spread":
        spec["topologySpreadConstraints"] = [{"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", **apart}]
    if work.config.scale.placement == "strict_spread":  # a spread constraint would allow 2 on one node and 1 on another
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    return {"metadata": {"labels": own}, "spec": spec}


def _spec(options: ManifestOptions, container: Tree) -> Tree:
    """Return what the pod specs of head and workers have in common."""
    volumes: list[Tree] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHM_GB}Gi"}}]
    if options.mount:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": options.mount[0]}})
    return {
        "serviceAccountName": options.service_account,
        # A container restarted in its pod would be a node that Ray has declared dead. KubeRay makes a new pod instead.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": _run_as_user(),
        "containers": [container],
        "volumes": volumes,
    }


def _container(options: ManifestOptions, name: str, cpus: int, memory_gb: int, gpus: int, hook: list[str]) -> Tree:
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if options.mount:
        mounts.append({"name": "data", "mountPath": options.mount[1]})
    return {
        "name": name,
        "image": options.image,
        **({"envFrom": [{"secretRef": {"name": secret}} for secret in options.secrets]} if options.secrets else {}),
        "resources": _resources(cpus, memory_gb, gpus),
        "securityContext": _unprivileged(),
        "volumeMounts": mounts,
        "lifecycle": {"preStop": {"exec": {"command": [*hook, "--seconds", str(_HOOK_SECONDS)]}}},
    }


def _resources(cpus: int, memory_gb: int, gpus: int) -> Tree:
    """Return requests and limits. CPUs have no limit: it would throttle the decoding threads even while CPUs are idle."""
    fixed = {"memory": f"{memory_gb}Gi", **({"nvidia.com/gpu": gpus} if gpus else {})}
    return {"requests": {"cpu": cpus, **fixed}, "limits": fixed}


def _on_demand(options: ManifestOptions) -> Tree:
    """Return the affinity that keeps a pod off spot nodes."""
    if not options.spot:
        return {}
    key, value = _SPOT[options.spot]
    # NotIn also matches nodes without the label
    term = {"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]}
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    }


def _run_as_user() -> Tree:
    """Return the security context that runs a pod as the Dockerfile's user and gives volumes to its group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _unprivileged() -> Tree:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
