"""What KubeRay's operator refuses beyond the schema of its objects, by the names of its own functions (validation.go, 1.7).

Rules of features that the objects here never use (fault tolerance of the GCS, TLS, network policies) are not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

Tree = dict[str, Any]

_MOST_CLUSTER, _MOST_JOB = 53, 47  # MaxRayClusterNameLength, MaxRayJobNameLength in constant.go
_LEAST_FOR_TOKENS = (2, 52, 0)


def problems(tree: Tree) -> list[str]:
    """Everything that the operator would refuse in a RayJob or a RayCluster."""
    if tree["kind"] == "RayCluster":
        return [*_name(tree, _MOST_CLUSTER), *_cluster(tree["spec"])]
    return [*_name(tree, _MOST_JOB), *_job(tree["spec"])]


def _name(tree: Tree, most: int) -> Iterator[str]:
    """ValidateRayJobMetadata, ValidateRayClusterMetadata."""
    name = tree["metadata"]["name"]
    if len(name) > most:
        yield f"name has more than {most} characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "name is no DNS-1035 label"


def _job(spec: Tree) -> Iterator[str]:
    """ValidateRayJobSpec, validateDeletionConfiguration."""
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    selects, mode = bool(spec.get("clusterSelector")), spec.get("submissionMode", "K8sJobMode")
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selects:
        yield "suspend with clusterSelector"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("deletionStrategy", {}).get("deletionRules") and shuts_down:
        yield "deletionRules with shutdownAfterJobFinishes"
    if not selects and "rayClusterSpec" not in spec:
        yield "one of rayClusterSpec and clusterSelector must be set"
    if spec.get("backoffLimit", 0) > 0 and (selects or mode == "InteractiveMode"):
        yield "backoffLimit with clusterSelector or InteractiveMode"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode with a submitter"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} must be positive"
    try:
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
            yield "runtimeEnvYAML is no mapping"
    except yaml.YAMLError:
        yield "runtimeEnvYAML is no YAML"
    yield from _cluster(spec.get("rayClusterSpec", {}), of_job=True)


def _cluster(spec: Tree, of_job: bool = False) -> Iterator[str]:
    """ValidateRayClusterSpec."""
    if not spec:
        return
    scales = spec.get("enableInTreeAutoscaling", False)
    version = spec.get("autoscalerOptions", {}).get("version", "v1")
    groups = [("head", spec["headGroupSpec"]), *((g["groupName"], g) for g in spec.get("workerGroupSpecs", []))]
    for name, group in groups:
        pod = group["template"]["spec"]
        if not pod.get("containers"):
            yield f"{name} has no container"
            continue
        given = {"num-cpus", "num-gpus", "memory", "resources"} & set(group.get("rayStartParams", {}))
        if given and group.get("resources"):
            yield f"{name}: resources in rayStartParams and in the group"  # validateRayGroupResources
        if "labels" in group.get("rayStartParams", {}):
            yield f"{name}: labels in rayStartParams"  # validateRayGroupLabels
        if scales and version == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy with autoscaler v2"
    for name, group in groups[1:]:
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not scales and (least is None or most is None):
            yield f"{name}: minReplicas and maxReplicas must be set"
        if least is not None and most is not None and not 0 <= least <= most:
            yield f"{name}: minReplicas above maxReplicas, or negative"
    if spec.get("authOptions", {}).get("mode") == "token":
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", spec.get("rayVersion", ""))
        if not numbers or tuple(map(int, numbers.groups())) < _LEAST_FOR_TOKENS:
            yield "tokens need rayVersion 2.52.0"
    if of_job and spec.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "tokens of Kubernetes in a RayJob"
