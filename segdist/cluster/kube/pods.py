"""The pods: a head that holds no rank and stays, workers that may come and go."""

from __future__ import annotations

import math
from importlib import metadata
from typing import Any

from segdist.cluster.kube.checks import num_workers
from segdist.cluster.kube.work import ManifestOptions, Work
from segdist.launch.ray_cluster import needs

Tree = dict[str, Any]

CONFIGS = "/etc/segdist"
_ENVIRONMENT = {"name": "SEGDIST_CONFIGS", "value": CONFIGS}
_GRACE_SECONDS = 120  # the notice of a spot instance on AWS
_HOOK_SECONDS = 100  # of them, so that Ray can still end by itself
_HEAD_CPUS, _HEAD_GB = 2, 8  # the driver imports torch
_SHM_GB = 4  # Ray's object store, through which no pixels pass, and NCCL
_STORE = {"object-store-memory": str(1 << 30)}
_IDLE_SECONDS = 600  # longer than a trial takes to be replaced
_SPOT = {  # (label of nodes, and key of the taint that some clouds put on them; its value)
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "gke": ("cloud.google.com/gke-spot", "true"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
}


def labels(ask: ManifestOptions, **more: str) -> Tree:
    """`app.kubernetes.io/name` is KubeRay's own."""
    return {"app.kubernetes.io/part-of": "segdist", "app.kubernetes.io/instance": ask.job_name, **more}


def cluster(ask: ManifestOptions, work: Work, single: bool = False) -> Tree:
    """The spec of a RayCluster with room for all ranks; `single`: for one process of the size of a rank."""
    ranks = 1 if single else ask.ranks_per_worker
    num = 1 if single else num_workers(ask, work)
    most = num if single or ask.max_workers is None else ask.max_workers
    need = needs(work.config.scale, cluster_gpus=0)
    cpus, gpus = (math.ceil(need.get(name, 0) * ranks) for name in ("CPU", "GPU"))
    grows = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": _IDLE_SECONDS, "securityContext": _unprivileged()},
    }
    return {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        **(grows if most > num else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **_STORE},  # no rank lands here, whatever the node has
            "template": _head(ask, with_configs=not single, needs_api=most > num),
        },
        "workerGroupSpecs": [
            {
                "groupName": "ranks",
                "labels": ask.market,  # of Ray's nodes, for scale.node_labels
                "replicas": num,
                "minReplicas": num,
                "maxReplicas": most,
                "rayStartParams": {"num-cpus": str(cpus), **_STORE},
                "template": _worker(ask, work, cpus, gpus, ask.memory_gb * ranks),
            }
        ],
    }


def submitter(ask: ManifestOptions, with_configs: bool) -> Tree:
    """The pod that hands the command to the cluster and follows its output. KubeRay writes its command."""
    container = {
        "name": "ray-job-submitter",
        "image": ask.image,
        **({"env": [_ENVIRONMENT]} if with_configs else {}),
        "resources": _resources(1, 1, 0),
        "securityContext": _unprivileged(),
    }
    return {
        "metadata": {"labels": labels(ask, **{"app.kubernetes.io/component": "submitter"})},
        "spec": {
            "serviceAccountName": ask.service_account,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": _nobody_special(),
            **_on_demand(ask),
            "containers": [container],
        },
    }


def _head(ask: ManifestOptions, with_configs: bool, needs_api: bool) -> Tree:
    """`needs_api`: Ray's autoscaler, in this pod, asks Kubernetes for others."""
    container = _container(ask, "ray-head", _HEAD_CPUS, _HEAD_GB, 0, ["segdist", "node", "stop-drivers"])
    container["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001), ("metrics", 8080))
    ]
    spec = _spec(ask, container) | _on_demand(ask)
    if with_configs:
        container["env"] = [_ENVIRONMENT]
        container["volumeMounts"].append({"name": "configs", "mountPath": CONFIGS, "readOnly": True})
        spec["volumes"].append({"name": "configs", "configMap": {"name": ask.job_name}})
    spec["automountServiceAccountToken"] = needs_api
    return {"metadata": {"labels": labels(ask, **{"app.kubernetes.io/component": "head"})}, "spec": spec}


def _worker(ask: ManifestOptions, work: Work, cpus: int, gpus: int, memory_gb: int) -> Tree:
    own = labels(ask, **{"app.kubernetes.io/component": "worker"})
    container = _container(ask, "ray-worker", cpus, memory_gb, gpus, ["segdist", "node", "drain"])
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    spec = _spec(ask, container)
    spec["automountServiceAccountToken"] = False
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    if ask.spot:
        key, value = _SPOT[ask.spot]
        spec["nodeSelector"] = {key: value}
        tolerations.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    if tolerations:
        spec["tolerations"] = tolerations
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": own}}
    if work.config.scale.placement == "spread":
        spec["topologySpreadConstraints"] = [{"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", **apart}]
    if work.config.scale.placement == "strict_spread":  # a constraint of spread would allow 2 and 1
        spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    return {"metadata": {"labels": own}, "spec": spec}


def _spec(ask: ManifestOptions, container: Tree) -> Tree:
    """What head and workers have in common."""
    volumes: list[Tree] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHM_GB}Gi"}}]
    if ask.mount:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": ask.mount[0]}})
    return {
        "serviceAccountName": ask.service_account,
        # A container that started again in its pod would be a node that Ray has declared dead: KubeRay makes a new pod.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": _nobody_special(),
        "containers": [container],
        "volumes": volumes,
    }


def _container(ask: ManifestOptions, name: str, cpus: int, memory_gb: int, gpus: int, hook: list[str]) -> Tree:
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if ask.mount:
        mounts.append({"name": "data", "mountPath": ask.mount[1]})
    return {
        "name": name,
        "image": ask.image,
        **({"envFrom": [{"secretRef": {"name": secret}} for secret in ask.secrets]} if ask.secrets else {}),
        "resources": _resources(cpus, memory_gb, gpus),
        "securityContext": _unprivileged(),
        "volumeMounts": mounts,
        "lifecycle": {"preStop": {"exec": {"command": [*hook, "--seconds", str(_HOOK_SECONDS)]}}},
    }


def _resources(cpus: int, memory_gb: int, gpus: int) -> Tree:
    """No limit of CPUs: it would throttle the threads that decode while others idle."""
    fixed = {"memory": f"{memory_gb}Gi", **({"nvidia.com/gpu": gpus} if gpus else {})}
    return {"requests": {"cpu": cpus, **fixed}, "limits": fixed}


def _on_demand(ask: ManifestOptions) -> Tree:
    """Keeps a pod off the nodes that may be taken away."""
    if not ask.spot:
        return {}
    key, value = _SPOT[ask.spot]
    term = {
        "matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]
    }  # true where the label is absent
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    }


def _nobody_special() -> Tree:
    """The user of the Dockerfile; volumes belong to its group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _unprivileged() -> Tree:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
