"""YAML for KubeRay: what the operator would refuse is refused here, what is committed is what is made, and the entrypoints run.

No cluster of Kubernetes is near. Its objects are held against the schemas of KubeRay's definitions, of which this project has
no copy: SEGDIST_KUBERAY_SCHEMAS names their folder, or they lie in ../shared/data/kuberay.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import kuberay_rules
import pytest
import store as stores
import yaml
from conftest import ROOT, tree
from ray_head import BIN, Head
from typer.main import get_command
from typer.testing import CliRunner

from segdist import config, storage
from segdist.cli import app
from segdist.cluster import drivers
from segdist.cluster.kube import ManifestOptions, manifests
from segdist.errors import ConfigError, UserError
from segdist.runs import record, segments

Tree = dict[str, Any]
SCHEMAS = Path(os.environ.get("SEGDIST_KUBERAY_SCHEMAS", ROOT.parent / "shared" / "data" / "kuberay"))
EXAMPLES = sorted(path.parent for path in ROOT.glob("k8s/*/kustomization.yaml"))
PLACES = ("run.uri=s3://b/run", "data.uri=s3://b/data", "train.micro_batch_size=2")
CONFIG = str(ROOT / "configs" / "camvid_segformer_b0.yaml")
SWEEP = str(ROOT / "configs" / "sweeps" / "lr_and_crop.yaml")


def made(*overrides: str, of: str = CONFIG, **options: Any) -> dict[str, Tree]:
    """File name -> object, of what the command would write."""
    places = PLACES if of == CONFIG else ("uri=s3://b/sweep", "set.data.uri=s3://b/data")
    options = {"image": "r.example.com/segdist:1", **options}
    return {
        name: yaml.safe_load(text)
        for name, text in manifests(ManifestOptions(of, (*places, *overrides), **options)).items()
    }


VARIANTS: dict[str, Callable[[], dict[str, Tree]]] = {
    "train": lambda: made("scale.num_ranks=8", ranks_per_worker=4, images="s3://b/photos", predictions="s3://b/out"),
    "spot": lambda: made("scale.num_ranks=2", "scale.placement=strict_spread", spot="gke", secrets=("hub",)),
    "kueue": lambda: made(queue="gpus", namespace="research"),
    "cpu, volume": lambda: made(
        "scale.device=cpu", "run.uri=/data/run", "scale.cpus_per_rank=1.5", volume="segdist-data:/data"
    ),
    "sweep": lambda: made("max_concurrent=4", of=SWEEP, workers=1, max_workers=4),
}


@pytest.fixture(scope="module")
def everything() -> dict[str, Tree]:
    """folder/file -> object, of all examples and variants."""
    found = {f"{name}/{file}": content for name, make in VARIANTS.items() for file, content in make().items()}
    for folder in EXAMPLES:
        found |= {f"{folder.name}/{p.name}": yaml.safe_load(p.read_text(encoding="utf-8")) for p in folder.iterdir()}
    return found


def of_kind(found: dict[str, Tree], *kinds: str) -> Iterator[tuple[str, Tree]]:
    for name, content in found.items():
        if content["kind"] in kinds:
            yield name, content


def schema_problems(content: Tree) -> list[str]:
    from jsonschema import Draft202012Validator

    path = SCHEMAS / f"{content['kind']}.schema.json"
    if not path.is_file():
        pytest.skip(f"no schemas of KubeRay in {SCHEMAS}")
    validator = Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))
    return [f"{error.json_path}: {error.message}"[:300] for error in validator.iter_errors(content)]


def templates(content: Tree) -> Iterator[tuple[str, Tree]]:
    """(where, pod template) of all pods that a RayJob or a RayCluster brings."""
    spec = content["spec"]
    if content["kind"] == "RayJob":
        yield "submitter", spec["submitterPodTemplate"]
        spec = spec["rayClusterSpec"]
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield "worker", group["template"]


def test_the_command_tells_what_to_do_next_and_what_an_earlier_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = [
        "configs/camvid_segformer_b0.yaml",
        "data.uri=s3://b/data",
        "run.uri=s3://b/run",
        "scale.cpus_per_rank=6",
        "--image",
        "r/s:1",
        "--out",
        str(tmp_path),
    ]
    more = ["--images", "s3://b/photos", "--predictions", "s3://b/out", "--secret", "hub", "--volume", "disk:/data"]
    told = CliRunner().invoke(app, ["k8s", *run, *more]).stderr
    steps = (
        "Secret hub, claim disk once per namespace: kubectl apply -f {0}/serviceaccount.yaml then: kubectl apply -k {0}"
    )
    assert steps.format(tmp_path) in " ".join(told.split())
    assert "warning" not in told
    assert (
        "may wait for data. Set scale.cpus_per_rank=5 or more"
        in CliRunner().invoke(app, ["k8s", *run, "scale.cpus_per_rank=1"]).stderr
    )
    (tmp_path / "mine.yaml").write_text("kind: Mine\n", encoding="utf-8")
    told = CliRunner().invoke(app, ["k8s", *run]).stderr
    assert "still holds files of an earlier command: rayjob-predict.yaml" in " ".join(told.split())


def test_there_are_examples() -> None:
    assert {folder.name for folder in EXAMPLES} == {"train", "kueue", "sweep"}


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_a_committed_example_is_what_its_command_makes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    made_by = next(
        line for line in (folder / "kustomization.yaml").read_text(encoding="utf-8").splitlines() if "Made by:" in line
    )
    _, *words = shlex.split(made_by.partition("Made by: ")[2])
    CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    ours = {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir()}
    assert {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "out").iterdir()} == ours


def test_the_pages_own_command_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8").replace("\\\n", "")
    command = next(line for line in page.splitlines() if line.startswith("segdist k8s "))
    assert command.endswith(" --out k8s/camvid")
    words = shlex.split(command)[1:-1]
    CliRunner().invoke(app, [*words, str(tmp_path / "out")], catch_exceptions=False)
    assert "rayjob-train.yaml" in [path.name for path in (tmp_path / "out").iterdir()]
    options = {option.opts[0] for option in get_command(app).commands["k8s"].params}  # type: ignore[attr-defined]
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= options


@pytest.mark.ray
def test_a_head_that_is_gone_already_keeps_no_hook_waiting() -> None:
    began = time.monotonic()
    assert drivers.stop_drivers(100, "http://127.0.0.1:9") == 0
    assert time.monotonic() - began < 60


def test_kubectl_finds_every_file_that_a_kustomization_names() -> None:
    for folder in EXAMPLES:
        content = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
        assert all((folder / name).is_file() for name in content["resources"])


def test_kuberays_schemas_accept_everything(everything: dict[str, Tree]) -> None:
    for name, content in of_kind(everything, "RayJob", "RayCluster"):
        assert schema_problems(content) == [], name


def test_the_operators_own_rules_accept_everything(everything: dict[str, Tree]) -> None:
    for name, content in of_kind(everything, "RayJob", "RayCluster"):
        assert kuberay_rules.problems(content) == [], name


def test_kubernetes_accepts_every_pod_and_core_object(everything: dict[str, Tree]) -> None:
    checker = pytest.importorskip("kubernetes_validate")
    version = checker.latest_version()
    for _, content in of_kind(everything, "ConfigMap", "ServiceAccount"):
        checker.validate(content, version, strict=True)
    seen = []
    for name, content in of_kind(everything, "RayJob", "RayCluster"):
        for where, template in templates(content):
            metadata = {"name": "p", **template["metadata"]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
            checker.validate(pod, version, strict=True)
            seen.append(f"{name} {where}")
    assert len(seen) > 20
    pod["spec"]["terminationGracePeriod"] = 5
    with pytest.raises(checker.ValidationError):
        checker.validate(pod, version, strict=True)


Mutation = Callable[[Tree], Any]


def worker(spec: Tree) -> Tree:
    return spec["rayClusterSpec"]["workerGroupSpecs"][0]


MUTATIONS: dict[str, tuple[str, Mutation]] = {
    "suspend needs": (
        "kueue",
        lambda s: s.update(suspend=True, shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=0),
    ),
    "ttlSecondsAfterFinished needs": ("train", lambda s: s.pop("shutdownAfterJobFinishes")),
    "ttlSecondsAfterFinished is negative": ("train", lambda s: s.update(ttlSecondsAfterFinished=-1)),
    "deletionRules": ("train", lambda s: s.update(deletionStrategy={"deletionRules": [{"policy": "DeleteSelf"}]})),
    "one of rayClusterSpec": ("train", lambda s: s.pop("rayClusterSpec")),
    "backoffLimit with": ("train", lambda s: s.update(clusterSelector={"ray.io/cluster": "c"})),
    "suspend with": ("kueue", lambda s: s.update(suspend=True, clusterSelector={"ray.io/cluster": "c"})),
    "backoffLimit is": ("train", lambda s: s.update(backoffLimit=-1)),
    "SidecarMode": ("train", lambda s: s.update(submissionMode="SidecarMode")),
    "activeDeadlineSeconds": ("train", lambda s: s.update(activeDeadlineSeconds=0)),
    "preRunningDeadlineSeconds": ("train", lambda s: s.update(preRunningDeadlineSeconds=0)),
    "runtimeEnvYAML is no YAML": ("train", lambda s: s.update(runtimeEnvYAML="{")),
    "runtimeEnvYAML is no mapping": ("train", lambda s: s.update(runtimeEnvYAML="- a")),
    "has no container": ("train", lambda s: worker(s)["template"]["spec"].update(containers=[])),
    "resources in rayStartParams": ("train", lambda s: worker(s).update(resources={"CPU": "4"})),
    "labels in rayStartParams": ("train", lambda s: worker(s)["rayStartParams"].update(labels="a=b")),
    "restartPolicy": ("sweep", lambda s: worker(s)["template"]["spec"].update(restartPolicy="Always")),
    "must be set": ("train", lambda s: worker(s).pop("minReplicas")),
    "above maxReplicas": ("train", lambda s: worker(s).update(maxReplicas=1)),
    "tokens need rayVersion": ("train", lambda s: s["rayClusterSpec"].pop("rayVersion")),
    "tokens need rayVersion 2.52": ("train", lambda s: s["rayClusterSpec"].update(rayVersion="2.51.9")),
    "tokens of Kubernetes": ("train", lambda s: s["rayClusterSpec"]["authOptions"].update(enableK8sTokenAuth=True)),
}


@pytest.mark.parametrize("problem", MUTATIONS)
def test_the_operators_rules_see_what_breaks_them(everything: dict[str, Tree], problem: str) -> None:
    variant, mutate = MUTATIONS[problem]
    files = VARIANTS[variant]()
    content = next(content for name, content in files.items() if name.startswith("rayjob-"))
    mutate(content["spec"])
    assert [found for found in kuberay_rules.problems(content) if problem in found]


@pytest.mark.parametrize("name", ["j" * 48, "1st", "with_underscore", "ends-"])
def test_the_operators_rules_see_names_that_break_them(name: str) -> None:
    job = made()["rayjob-train.yaml"]
    job["metadata"]["name"] = name
    assert kuberay_rules.problems(job)


@pytest.mark.parametrize(
    ("field", "value"),
    [("backoffLimits", 3), ("suspend", "true"), ("activeDeadlineSeconds", "1h"), ("runtimeEnvYAML", {"env_vars": {}})],
)
def test_kuberays_schemas_see_what_breaks_them(field: str, value: Any) -> None:
    job = made()["rayjob-train.yaml"]
    job["spec"][field] = value
    assert schema_problems(job)


MISTAKES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "is a path on this machine": (("run.uri=runs/x",), {}),
    "data.uri=data/x is a path on this machine": (("data.uri=data/x",), {}),
    "a path below /data": (("run.uri=/runs/x",), {"volume": "c:/data"}),
    "model.weights=./w is a path": (("model={name: segformer, weights: ./w}",), {}),
    "without spaces": (("run.uri=s3://b/$HOME",), {}),
    "--name": ((), {"name": "Camvid_B0"}),
    "at most 38": ((), {"name": "j" * 39}),
    "--namespace Ä": ((), {"namespace": "Ä"}),
    "--queue a_b": ((), {"queue": "a_b"}),
    "never a value": ((), {"secrets": ("HF_TOKEN=abc",)}),
    "REGISTRY/NAME:TAG": ((), {"image": "segdist 1"}),
    "CLAIM:/PATH": ((), {"volume": "data"}),
    "belongs to the image": ((), {"volume": "c:/home/x"}),
    "--identity admin": ((), {"identity": "admin"}),
    "--retries -1": ((), {"retries": -1}),
    "--deadline-hours 0": ((), {"deadline_hours": 0.0}),
    "leaves nothing of --deadline-hours": ((), {"deadline_hours": 0.4}),
    "Give both or neither": ((), {"images": "s3://b/photos"}),
    "32 ranks cannot share 8 micro-batches per step": (("scale.num_ranks=32",), {"ranks_per_worker": 8}),
    "the worker pods have {'market': 'on-demand'}": (("scale.node_labels={market: spot}",), {}),
    "do not fit on 1 worker(s) of 1 rank(s)": (("scale.num_ranks=2",), {"workers": 1}),
    "placement=strict_pack do not fit": (("scale.num_ranks=2", "scale.placement=strict_pack"), {}),
    "leave some workers idle": (("scale.num_ranks=2",), {"workers": 4}),
    "--max-workers is for sweeps": ((), {"max_workers": 4}),
    "on Kubernetes, Ray starts the ranks": (("scale.launcher=local",), {}),
    "2 pods have room for 6 ranks, but scale.num_ranks is 4": (("scale.num_ranks=4",), {"ranks_per_worker": 3}),
    "needs a pod of its own": (("scale.gpus_per_rank=0.5",), {"ranks_per_worker": 2}),
    "config.yaml.data.uri contains what looks like a credential": (("data.uri=https://user:word@host/x",), {}),
    "the command contains what looks like a credential": (
        (),
        {"images": "https://h/x?sig=abc", "predictions": "s3://b/p"},
    ),
    "the nearest valid key is": (("scale.num_rank=2",), {}),
    "in one line": (("log={every_steps: 5\n}",), {}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(message: str) -> None:
    overrides, options = MISTAKES[message]
    with pytest.raises(UserError) as error:
        made(*overrides, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("message", "overrides", "options"),
    [
        ("a path on this machine", ("uri=sweeps/x",), {}),
        ("data.uri=data/camvid is a path", ("set.data.uri=data/camvid",), {}),
        ("would end the sweep", ("budget.hours=80",), {}),
        ("Set max_concurrent=4", (), {"max_workers": 4}),
        ("Kueue admits", ("max_concurrent=4",), {"workers": 1, "max_workers": 4, "queue": "q"}),
        ("a sweep has no model yet", (), {"images": "s3://b/photos", "predictions": "s3://b/out"}),
        ("the sweep starts with 4", ("max_concurrent=4",), {"workers": 4, "max_workers": 4}),
    ],
)
def test_a_mistake_in_a_sweep_is_told_too(message: str, overrides: tuple[str, ...], options: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        made(*overrides, of=SWEEP, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("value", ["hf_abcdefghijklmnopqrstuvwxyz", "TOKEN=word"])
def test_what_may_be_a_secret_is_refused_without_repeating_it(value: str) -> None:
    with pytest.raises(UserError) as error:
        made(secrets=(value,))
    assert value not in str(error.value)


def test_a_config_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="no such config or sweep"):
        made(of=str(ROOT / "configs" / "none.yaml"))


@pytest.mark.parametrize(
    ("image", "warned"), [("r/segdist", True), ("r:5000/segdist:latest", True), ("r/segdist:1", False)]
)
def test_an_image_that_may_change_is_warned_of(image: str, warned: bool, capfd: pytest.CaptureFixture[str]) -> None:
    made(image=image)
    assert ("may be replaced" in capfd.readouterr().err.replace("\n", " ")) == warned


def test_the_config_map_holds_the_config_with_its_overrides() -> None:
    text = made("optim.lr=6e-5", "scale.num_ranks=2")["configmap.yaml"]["data"]["config.yaml"]
    expected = config.load(
        CONFIG,
        [
            *PLACES,
            "optim.lr=6e-5",
            "scale.launcher=ray",
            "scale.num_ranks=2",
            "scale.gpus_per_rank=1",
            "scale.start_seconds=1800",
        ],
    )
    assert config.loads(text.encode(), "the config map") == expected


def test_what_a_config_says_of_its_launch_stays() -> None:
    text = made("scale.start_seconds=60", "scale.gpus_per_rank=0.5")["configmap.yaml"]["data"]["config.yaml"]
    scale = config.loads(text.encode(), "the config map").scale
    assert (scale.start_seconds, scale.gpus_per_rank) == (60, 0.5)


def test_ranks_get_what_the_config_asks_for_and_the_head_nothing() -> None:
    spec = made("scale.num_ranks=8", "scale.cpus_per_rank=6", ranks_per_worker=4, memory_gb=20)["raycluster.yaml"][
        "spec"
    ]
    group = spec["workerGroupSpecs"][0]
    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 2]
    assert group["rayStartParams"]["num-cpus"] == "24"
    assert group["template"]["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": 24, "memory": "80Gi", "nvidia.com/gpu": 4},
        "limits": {"memory": "80Gi", "nvidia.com/gpu": 4},
    }
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "enableInTreeAutoscaling" not in spec


def test_without_gpus_no_pod_asks_for_one() -> None:
    assert "nvidia.com/gpu" not in str(made("scale.device=cpu"))


def test_a_command_of_one_process_runs_where_a_rank_would() -> None:
    spec = made("scale.num_ranks=8", "scale.cpus_per_rank=6")["rayjob-evaluate.yaml"]["spec"]
    assert (spec["entrypointNumCpus"], spec["entrypointNumGpus"]) == (6, 1)
    assert worker(spec)["replicas"] == 1
    assert "configMap" not in str(spec)  # which it does not read, and so does not wait for


def test_spot_takes_workers_and_spares_head_and_submitter() -> None:
    job = made("scale.placement=strict_spread", spot="gke")["rayjob-train.yaml"]
    pods = {where: template["spec"] for where, template in templates(job)}
    assert pods["worker"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert "cloud.google.com/gke-spot" in {t["key"] for t in pods["worker"]["tolerations"]}
    (apart,) = pods["worker"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert (
        apart["labelSelector"]["matchLabels"].items() <= worker(job["spec"])["template"]["metadata"]["labels"].items()
    )
    job = made("scale.placement=spread")["rayjob-train.yaml"]
    assert (
        worker(job["spec"])["template"]["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    )
    for where in ("head", "submitter"):
        assert "tolerations" not in pods[where]
        assert "'operator': 'NotIn', 'values': ['true']" in str(pods[where]["affinity"])


def test_pods_are_nobody_special_and_shared_memory_is_memory(everything: dict[str, Tree]) -> None:
    for name, content in of_kind(everything, "RayJob", "RayCluster"):
        for where, template in templates(content):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True, (name, where)
            assert spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
            if where == "submitter":
                continue
            assert {"name": "shm", "mountPath": "/dev/shm"} in spec["containers"][0]["volumeMounts"]
            shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")
            assert shm["emptyDir"]["medium"] == "Memory"


def test_the_hooks_before_a_pods_end_are_commands_within_its_grace(everything: dict[str, Tree]) -> None:
    for _, content in of_kind(everything, "RayJob", "RayCluster"):
        for where, template in templates(content):
            if where == "submitter":
                continue
            spec = template["spec"]
            *command, option, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert option == "--seconds" and int(seconds) < spec["terminationGracePeriodSeconds"]
            assert command == (["segdist", "node", "stop-drivers"] if where == "head" else ["segdist", "node", "drain"])


def test_the_entrypoints_variable_is_where_shells_may_expand_it_and_names_the_mounted_config() -> None:
    files = made()
    job = files["rayjob-train.yaml"]
    pods = {where: template["spec"]["containers"][0] for where, template in templates(job)}
    for where in ("head", "submitter"):
        (variable,) = pods[where]["env"]
        assert job["spec"]["entrypoint"] == f"segdist train ${variable['name']}/config.yaml"
    assert variable["value"] in [mount["mountPath"] for mount in pods["head"]["volumeMounts"]]
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert files["configmap.yaml"]["metadata"]["name"] in [v["configMap"]["name"] for v in volumes if "configMap" in v]


def test_secrets_are_references_for_head_and_workers_alone() -> None:
    job = made(secrets=("hub", "bucket"))["rayjob-train.yaml"]
    for where, template in templates(job):
        given = template["spec"]["containers"][0].get("envFrom", [])
        assert [one["secretRef"]["name"] for one in given] == ([] if where == "submitter" else ["hub", "bucket"])


@pytest.mark.parametrize(
    ("identity", "annotation"),
    [
        ("arn:aws:iam::123456789012:role/segdist", "eks.amazonaws.com/role-arn"),
        ("segdist@my-project.iam.gserviceaccount.com", "iam.gke.io/gcp-service-account"),
    ],
)
def test_a_role_is_an_annotation_of_the_service_account(identity: str, annotation: str) -> None:
    account = made(identity=identity, service_account="trainer")["serviceaccount.yaml"]["metadata"]
    assert (account["name"], account["annotations"]) == ("trainer", {annotation: identity})


def test_kueue_gets_its_label_and_decides_what_waits() -> None:
    files = made(queue="gpus", namespace="research")
    for name in ("rayjob-train.yaml", "rayjob-evaluate.yaml", "raycluster.yaml"):
        assert files[name]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert "suspend" not in files[name]["spec"]  # Kueue's own, which a file that is applied again must not undo
    assert {content.get("namespace") or content["metadata"]["namespace"] for content in files.values()} == {"research"}


def test_prometheus_finds_the_port_of_every_pod(everything: dict[str, Tree]) -> None:
    monitor = made()["podmonitor.yaml"]["spec"]
    wanted, port = monitor["selector"]["matchLabels"], monitor["podMetricsEndpoints"][0]["port"]
    for _, content in of_kind(everything, "RayJob", "RayCluster"):
        for where, template in templates(content):
            if where != "submitter":
                assert wanted.items() <= template["metadata"]["labels"].items()
                assert port in [p["name"] for p in template["spec"]["containers"][0]["ports"]]


def test_a_sweep_may_grow_by_rays_autoscaler() -> None:
    spec = made("max_concurrent=4", of=SWEEP, workers=1, max_workers=4)["rayjob-sweep.yaml"]["spec"]["rayClusterSpec"]
    group = spec["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4)
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert (
        made("max_concurrent=4", of=SWEEP)["rayjob-sweep.yaml"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0][
            "replicas"
        ]
        == 4
    )


# ---------------------------------------------------------------------------------------------- the entrypoints, as written


def entrypoint(name: str) -> str:
    """What a committed example runs."""
    content: Tree = yaml.safe_load((ROOT / "k8s" / name).read_text(encoding="utf-8"))
    return str(content["spec"]["entrypoint"])


@pytest.fixture(scope="module")
def bucket(street_data: str, street_folder: Path) -> Iterator[dict[str, str]]:
    """The environment of an S3 server with the bucket and the places that the examples name; this process uses it too."""
    with stores.serving("my-bucket", forks.python()) as environment:
        stores.copy(street_data, "s3://my-bucket/data/camvid")
        stores.copy(f"{street_folder}/images", "s3://my-bucket/photos")
        yield environment


def submitted(job: str, name: str, head: Head, environment: dict[str, str]) -> None:
    """Hands an example's entrypoint over as KubeRay's submitter does: through a shell, with its runtime environment."""
    content = yaml.safe_load((ROOT / "k8s" / job).read_text(encoding="utf-8"))
    runtime = yaml.safe_load(content["spec"]["runtimeEnvYAML"])
    runtime["env_vars"] |= environment  # which the pods have from their Secrets and their spec
    needs = [
        f"--entrypoint-num-{kind.lower()}={content['spec'].get(f'entrypointNum{kind}', 0)}" for kind in ("Cpus", "Gpus")
    ]
    command = (
        f"python {BIN / 'ray'} job submit --address {head.dashboard} --no-wait --submission-id {name} {' '.join(needs)}"
    )
    done = subprocess.run(
        ["bash", "-ce", f"{command} --runtime-env-json {shlex.quote(json.dumps(runtime))} -- {entrypoint(job)}"],
        env=on_head(head) | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def on_head(head: Head) -> dict[str, str]:
    environment = {
        **os.environ,
        **head.environment,
        "PATH": f"{Path(forks.python()).parent}:{BIN}:{os.environ['PATH']}",
    }
    del environment["RAY_ADDRESS"]
    return environment


def told_of(job: str, head: Head) -> Tree:
    """What the head says of a job."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    ask = urllib.request.Request(f"{head.dashboard}/api/jobs/{job}", headers={"Authorization": f"Bearer {token}"})
    told: Tree = json.load(urllib.request.urlopen(ask))
    return told


def ended(job: str, head: Head, seconds: float = 200) -> tuple[str, int | None]:
    """(status, exit code) of a job, once it has ended."""
    until = time.monotonic() + seconds
    while (told := told_of(job, head))["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < until, told
        time.sleep(0.2)
    return told["status"], told["driver_exit_code"]


def suspended(run: str, job: str, attempt: int, head: Head) -> int:
    """Does to a job at work what the head's pod does before it is deleted; the step that was committed."""
    until = time.monotonic() + 120
    while (state := record.load(run)) is None or (state["state"], state["attempt"]) != ("RUNNING", attempt):
        assert time.monotonic() < until, state
        time.sleep(0.2)
    while not any(row["attempt"] == attempt for row in segments.read_metrics(run)):
        assert time.monotonic() < until
        time.sleep(0.2)
    hook = [forks.python(), "-m", "segdist", "node", "stop-drivers", "--seconds", "2", "--dashboard", head.dashboard]
    told = subprocess.run(hook, env=on_head(head), capture_output=True, text=True, timeout=60)
    assert "1 driver(s) asked to stop" in told.stderr
    assert ended(job, head) == ("FAILED", 75)  # a STOPPED job would not be begun again
    state = record.load(run)
    assert state is not None and state["state"] == "PREEMPTED"
    return int(state["step"])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_suspended_job_goes_on_and_what_follows_runs_as_written(
    bucket: dict[str, str], head: Head, tmp_path: Path
) -> None:
    """The cluster of a RayJob is deleted, and another one made, twice; then the run is scored and used."""
    run, many = "s3://my-bucket/runs/camvid", {"every_steps": 5000}
    sections: Tree = {"train": {"num_steps": 5000}, "eval": many, "checkpoint": many}
    scale = {"launcher": "ray", "device": "cpu", "cpu_threads": 1}
    small = tree("s3://my-bucket/data/camvid", run, scale=scale, **sections)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small), encoding="utf-8")
    environment = {**bucket, "SEGDIST_CONFIGS": str(tmp_path)}

    submitted("train/rayjob-train.yaml", "one", head, environment)
    first = suspended(run, "one", 1, head)
    submitted("kueue/rayjob-train.yaml", "two", head, environment)
    second = suspended(run, "two", 2, head)
    assert 0 < first < second
    steps = [row["step"] for row in segments.read_metrics(run) if row["kind"] == "train"]
    assert steps == [*range(1, second + 1)]

    for kind in ("evaluate", "predict"):
        submitted(f"train/rayjob-{kind}.yaml", kind, head, bucket)
    assert [ended(kind, head) for kind in ("evaluate", "predict")] == [("SUCCEEDED", 0)] * 2
    assert 0 <= json.loads(storage.read(f"{run}/evaluation.json"))["miou"] <= 1
    assert "0000.png" in storage.names("s3://my-bucket/predictions")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.long
def test_the_sweeps_entrypoint_runs_as_written(bucket: dict[str, str], head: Head, tmp_path: Path) -> None:
    files = yaml.safe_load((ROOT / "k8s" / "sweep" / "configmap.yaml").read_text(encoding="utf-8"))["data"]
    sweep = yaml.safe_load(files["sweep.yaml"])
    sweep |= {
        "budget": {"num_trials": 1},
        "confirm": {"num_best": 0},
        "space": {"optim.lr": {"loguniform": [1e-5, 1e-2]}},
    }
    sweep |= {"set": {"eval": {"every_steps": 2}}, "scheduler": {"name": "none"}, "searcher": "random"}
    base = tree("s3://my-bucket/data/camvid", "-", scale={"device": "cpu", "cpu_threads": 1})
    for name, content in (("sweep.yaml", sweep), ("config.yaml", base)):
        (tmp_path / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    submitted("sweep/rayjob-sweep.yaml", "sweep", head, {**bucket, "SEGDIST_CONFIGS": str(tmp_path)})
    assert ended("sweep", head) == ("SUCCEEDED", 0)
    assert storage.exists("s3://my-bucket/sweeps/lr_and_crop/best.yaml")
