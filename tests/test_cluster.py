"""The files that make clusters: what can be known of them without one."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
import yaml
from conftest import ROOT

from segdist import config
from segdist.errors import RanksError, UserError
from segdist.runs import record

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.mark.ray
def test_ray_accepts_the_cluster_and_adds_no_command_of_its_own() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(full)
    assert full["setup_commands"] == CLUSTER["setup_commands"]  # the defaults would install a nightly
    assert full["worker_setup_commands"] == [*CLUSTER["setup_commands"], *CLUSTER["worker_setup_commands"]]
    assert full["head_start_ray_commands"] == CLUSTER["head_start_ray_commands"]


def test_the_cluster_wants_the_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert f"== '{pinned[1]}'" in CLUSTER["setup_commands"][0]


def test_every_node_gets_the_token() -> None:
    assert "/home/segdist/.ray/auth_token" in CLUSTER["file_mounts"]
    assert "--env=RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]


TYPES = CLUSTER["available_node_types"]


def misread_by_ec2(node_config: dict[str, Any]) -> str:
    """What is wrong with the arguments for a machine, by EC2's own description of RunInstances; "" where nothing is."""
    import botocore.session
    from botocore.validate import ParamValidator

    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    wrong = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape).generate_report()
    known = shape.members["InstanceType"].enum
    kind = node_config.get("InstanceType")
    return wrong or ("" if kind in known else f"there is no InstanceType {kind}")


@pytest.mark.parametrize("name", TYPES)
def test_ec2_understands_every_machine(name: str) -> None:
    assert misread_by_ec2(TYPES[name]["node_config"]) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"InstanceMarketOption": {"MarketType": "spot"}}, 'Unknown parameter in input: "InstanceMarketOption"'),
        ({"MetadataOptions": {"HttpToken": "required"}}, 'Unknown parameter in MetadataOptions: "HttpToken"'),
        ({"InstanceType": "g6.2xlagre"}, "there is no InstanceType g6.2xlagre"),
        ({"IamInstanceProfile": "segdist"}, "Invalid type for parameter IamInstanceProfile"),
    ],
)
def test_a_slip_in_a_machine_would_be_seen(change: dict[str, Any], told: str) -> None:
    assert told in misread_by_ec2({**TYPES["gpu_g6"]["node_config"], **change})


def test_what_the_labels_say_of_the_market_is_so() -> None:
    for name, kind in TYPES.items():
        is_spot = kind["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert kind["labels"] == {"market": "spot" if is_spot else "on-demand"}, name
    assert TYPES[CLUSTER["head_node_type"]]["labels"]["market"] == "on-demand"
    assert TYPES["head"]["resources"] == {"CPU": 0}
    spot = [kind["node_config"]["InstanceType"] for kind in TYPES.values() if kind["labels"]["market"] == "spot"]
    assert len(set(spot)) >= 3
    assert all("ImageId" in kind["node_config"] for kind in TYPES.values())  # Ray's own choice has an old driver
    gpus = [kind["resources"]["GPU"] for kind in TYPES.values() if kind["labels"]["market"] == "spot"]
    assert set(gpus) == {1}  # so that a notice takes one rank


def test_rank_0_finds_a_machine_that_stays_and_all_gpus_together_hold_what_is_advised() -> None:
    from segdist.config import Scale
    from segdist.launch.ray_cluster import needs, shortage

    nodes = [
        {"NodeManagerAddress": name, "Resources": kind["resources"], "Labels": kind["labels"]}
        for name, kind in TYPES.items()
        for _ in range(kind.get("max_workers", 1))
    ]
    wanted = {"launcher": "ray", "gpus_per_rank": 1, "num_ranks": 9, "node_labels": {"market": "spot"}}
    scale = Scale.model_validate({**wanted, "first_rank_labels": {"market": "on-demand"}})
    assert shortage(scale, needs(scale, 1), nodes) is None
    only_head = [node for node in nodes if node["Resources"] == {"CPU": 0}]
    assert shortage(scale, needs(scale, 1), only_head) is not None


def test_every_worker_watches_for_its_notice_and_the_command_is_ours() -> None:
    from typer.testing import CliRunner

    from segdist.cli import app

    [line] = [line for line in CLUSTER["worker_start_ray_commands"] if "segdist" in line]
    words = re.search(r"segdist (\w+ \w+)", line)
    assert words and CLUSTER["worker_start_ray_commands"].index(line) > 1  # after `ray start`
    assert CliRunner().invoke(app, [*words[1].split(), "--help"]).exit_code == 0
    assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0


# -- one config, four ways -----------------------------------------------------------------------------------------------

CONFIG = "configs/camvid_segformer_b0.yaml"
SAID = [
    "data.uri=s3://b/data", "run.uri=s3://b/run", "train.micro_batch_size=4", "optim.lr=6e-5", "scale.num_ranks=4",
    "scale.gpus_per_rank=1", "scale.node_labels={market: on-demand}",
]  # fmt: skip


def by_submit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command finds that `segdist submit` starts, in the working directory that it sends."""
    from typer.main import get_command

    from segdist.cli import app
    from segdist.cluster import submit
    from segdist.cluster.submit.job import write_working_dir

    job = submit.job_of([CONFIG, *SAID], get_command(app).commands)  # type: ignore[attr-defined]
    write_working_dir(job, folder)
    words = shlex.split(job.entrypoint)
    assert words[:4] == ["python", "-m", "segdist", "train"]
    show = ["-m", "segdist", "config", "show", *words[4:], "--json"]
    return json.loads(forks.run(show, cwd=folder, check=True).stdout)


def by_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `ray job submit -- python jobs/train.py` hands on, to a cluster that stands or one that `ray up` made."""
    given: list[str] = []
    monkeypatch.setattr("segdist.cli.main", lambda: given.extend(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", CONFIG, *SAID])
    runpy.run_path(str(ROOT / "jobs/train.py"))
    assert given[0] == "train"
    return config.to_tree(config.load(given[1], given[2:]))


def by_kubernetes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What pods mount, and the job's command names."""
    from segdist.cluster.kube import ManifestOptions, manifests

    files = manifests(ManifestOptions(CONFIG, tuple(SAID), "r.example.com/segdist:1"))
    text = yaml.safe_load(files["configmap.yaml"])["data"]["config.yaml"]
    assert yaml.safe_load(files["rayjob-train.yaml"])["spec"]["entrypoint"].endswith("/config.yaml")
    return config.to_tree(config.loads(text.encode(), "the config map"))


@pytest.mark.parametrize("way", [by_submit, by_script, by_kubernetes])
def test_the_ways_to_a_cluster_differ_in_nothing_but_place(
    way: Callable[[Path, pytest.MonkeyPatch], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    here = config.to_tree(config.load(CONFIG, ["scale.launcher=ray", *SAID]))
    found = way(tmp_path / "job", monkeypatch)
    waits = found["scale"].pop("start_seconds"), here["scale"].pop("start_seconds")
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(here))
    assert waits[0] >= waits[1]  # a cluster that is still being built takes longer


# -- rights ------------------------------------------------------------------------------------------------------------

# What a request needs: https://docs.aws.amazon.com/service-authorization/latest/reference/, list_amazons3.html and
# list_amazonec2.html
S3_RIGHTS = {
    "get_object": {"s3:GetObject"},
    "head_object": {"s3:GetObject"},
    "download_fileobj": {"s3:GetObject"},
    "put_object": {"s3:PutObject"},
    "upload_fileobj": {"s3:PutObject", "s3:AbortMultipartUpload"},
    "delete_object": {"s3:DeleteObject"},
    "delete_objects": {"s3:DeleteObject"},
    "list_objects_v2": {"s3:ListBucket"},
}
EC2_RIGHTS = {
    "describe_instance_types": {"ec2:DescribeInstanceTypes"},
    "describe_images": {"ec2:DescribeImages"},
    "create_instances": {"ec2:RunInstances", "iam:PassRole"},
    "create_tags": {"ec2:CreateTags"},
    "terminate_instances": {"ec2:TerminateInstances"},
    "filter": {"ec2:DescribeInstances"},  # of ec2.instances
    "start_instances": set(),  # provider.cache_stopped_nodes is false
    "stop_instances": set(),
}


def granted(name: str) -> set[str]:
    policy = json.loads((ROOT / "docs/aws" / name).read_text(encoding="utf-8"))
    assert all(one["Effect"] == "Allow" and "*" not in "".join(one["Action"]) for one in policy["Statement"])
    return {action for one in policy["Statement"] for action in one["Action"]}


def called(source: Path, names: str) -> set[str]:
    """The calls of an AWS client in a file."""
    text = source.read_text(encoding="utf-8")
    return set(re.findall(names, text))


def test_the_policy_of_data_grants_what_our_code_calls_and_no_more() -> None:
    import boto3

    client = boto3.client("s3", region_name="us-west-2", aws_access_key_id="a", aws_secret_access_key="b")
    source = ROOT / "segdist/storage/s3.py"
    words = called(source, r"\b[a-z]+_[a-z0-9_]+\b")
    calls = {word for word in words if hasattr(client, word) and word not in ("get_paginator", "can_paginate")}
    assert calls - S3_RIGHTS.keys() == set()
    assert granted("data-policy.json") == set().union(*(S3_RIGHTS[call] for call in calls))


@pytest.mark.ray
def test_the_policy_of_the_head_grants_what_rays_launcher_calls_and_no_more() -> None:
    from ray.autoscaler._private.aws import node_provider

    assert CLUSTER["provider"]["cache_stopped_nodes"] is False
    calls = called(
        Path(node_provider.__file__), r"\b(?:describe|create|terminate|start|stop|run|modify|cancel)_[a-z_]+\b"
    )
    calls &= ec2_methods() | {"create_instances"}
    assert calls | {"filter"} == EC2_RIGHTS.keys()
    assert granted("head-policy.json") == set().union(*EC2_RIGHTS.values())


def test_the_policies_are_about_the_very_cluster() -> None:
    policy = json.loads((ROOT / "docs/aws/head-policy.json").read_text(encoding="utf-8"))
    by_action = {action: one for one in policy["Statement"] for action in one["Action"]}
    region = {"StringEquals": {"aws:RequestedRegion": CLUSTER["provider"]["region"]}}
    assert by_action["ec2:RunInstances"]["Condition"] == region
    tag = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": CLUSTER["cluster_name"]}}
    assert by_action["ec2:TerminateInstances"]["Condition"] == tag  # no machine but its own
    workers = {TYPES[name]["node_config"]["IamInstanceProfile"]["Name"] for name in TYPES if name != "head"}
    assert {by_action["iam:PassRole"]["Resource"].rpartition("/")[2]} == workers
    data = json.loads((ROOT / "docs/aws/data-policy.json").read_text(encoding="utf-8"))
    assert all("YOUR_" in resource for one in data["Statement"] for resource in one["Resource"])  # never all buckets
    written = [one for one in data["Statement"] if {"s3:PutObject", "s3:DeleteObject"} & set(one["Action"])]
    assert all("RUNS" in resource for one in written for resource in one["Resource"])


def ec2_methods() -> set[str]:
    import botocore.session
    from botocore import xform_name

    return {xform_name(one) for one in botocore.session.get_session().get_service_model("ec2").operation_names}


@pytest.mark.parametrize("words", [["--json", CONFIG, *SAID], [CONFIG, "--json", *SAID], [CONFIG, *SAID, "--json"]])
def test_the_script_trains_on_ray_wherever_its_options_stand(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("segdist.cli.main", lambda: given.extend(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *words])
    runpy.run_path(str(ROOT / "jobs/train.py"))
    assert [word for word in given if word != "--json"] == ["train", CONFIG, "scale.launcher=ray", *SAID]


def test_commands_for_machines_that_are_still_to_come_give_them_time() -> None:
    first = (ROOT / "cluster.yaml").read_text(encoding="utf-8").split("cluster_name:")[0]
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8").split("## AWS")[1].split("## What dies")[0]
    assert "scale.start_seconds=1800" in first and "scale.start_seconds=1800" in page and "start_seconds: 1800" in page


# -- what a driver tells its ranks ---------------------------------------------------------------------------------------


def test_a_pod_passes_no_secret_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from segdist.launch.ray_cluster import _forwarded

    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "value")
    assert {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= _forwarded().keys()
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start")
    assert "AWS_ENDPOINT_URL" in _forwarded()
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & _forwarded().keys()


def test_ranks_meet_on_the_interface_that_has_the_address_of_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from segdist.launch import gloo_interface

    addresses = {"lo": [SimpleNamespace(address="127.0.0.1")], "ens5": [SimpleNamespace(address="10.0.0.7")]}
    monkeypatch.setattr(gloo_interface.psutil, "net_if_addrs", lambda: addresses)
    assert gloo_interface.interface_of("10.0.0.7") == "ens5"
    assert gloo_interface.interface_of("10.0.0.8") is None  # Ray was told an address that is not of this machine
    assert gloo_interface.interface_of("127.0.0.1") is None


def test_an_answer_that_comes_too_late_is_none_to_the_next_evaluation() -> None:
    from segdist.launch.mailbox import Mailbox

    mailbox = Mailbox()
    mailbox.post("tell", {"step": 4})
    mailbox.answer(4, "stop")  # which the rank 0 that asked does not live to hear
    mailbox.post("tell", {"step": 8})
    assert mailbox.answer_to(8) is None
    mailbox.answer(8, "go on")
    assert mailbox.answer_to(8) == "go on"
    assert mailbox.answer_to(4) is None


def test_an_evaluation_that_is_told_again_is_judged_once_and_answered_each_time() -> None:
    from segdist.launch.on_ray import _Driver

    told: list[int] = []
    answers: list[tuple[int, str]] = []
    mailbox = SimpleNamespace(answer=SimpleNamespace(remote=lambda *answer: answers.append(answer)))
    driver = SimpleNamespace(
        _evaluated=None, _tell=lambda metrics: told.append(metrics["step"]), _notice=lambda: None, _mailbox=mailbox
    )
    for step in (4, 4, 8):
        _Driver._answer(driver, {"step": step})  # type: ignore[arg-type]
    assert told == [4, 8]
    assert answers == [(4, "go on"), (4, "go on"), (8, "go on")]


@pytest.mark.parametrize(
    ("alive", "idle_seconds", "ends", "said"),
    [
        ([False], 0, True, "no rank is running, so nothing can be committed"),
        (
            [True, False, False],
            0,
            False,
            "committing a checkpoint after this step",
        ),  # Ray takes down what has committed
        ([True, False, False], 61, True, "no rank is running, so nothing can be committed"),
    ],
)
def test_a_stop_ends_a_driver_without_ranks_and_waits_for_what_it_was_passed_on_to(
    alive: list[bool], idle_seconds: float, ends: bool, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from segdist.launch.on_ray import _Driver

    states, asked = iter(alive), list[str]()
    driver = SimpleNamespace(
        _alive=False, _idle_since=time.monotonic() - idle_seconds, _notice=None, _check_start=lambda: None,
        _inbox=SimpleNamespace(ask=asked.append),
    )  # fmt: skip
    driver._show = lambda: setattr(driver, "_alive", next(states))
    left = [True] * len(alive) + [False]
    thread = SimpleNamespace(is_alive=lambda: left.pop(0), join=lambda seconds: None)
    diary = SimpleNamespace(flush=lambda seconds: None)
    with pytest.raises(SystemExit) if ends else contextlib.nullcontext():
        _Driver._watch(driver, thread, lambda: "stop", diary)  # type: ignore[arg-type]
    assert said in " ".join(capsys.readouterr().err.split())
    assert (asked != []) == alive[0]


@pytest.mark.parametrize(
    ("starts", "error", "state"), [(1, RanksError, record.FAILED), (0, UserError, None)], ids=["again", "never"]
)
def test_ranks_that_find_no_place_leave_a_record_and_end_with_75(
    starts: int, error: type[UserError | RanksError], state: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that never ran have no record, and the config is to blame."""
    from segdist.launch import on_ray

    run, ended = str(tmp_path), threading.Event()
    monkeypatch.setattr(on_ray, "nodes", list)
    monkeypatch.setattr(on_ray, "end_siblings", lambda mailbox, name: ended.set())
    scale = config.Scale(launcher="ray", num_ranks=2, start_seconds=10)
    driver = on_ray._Driver.__new__(on_ray._Driver)
    driver.__dict__ |= {
        "_cfg": SimpleNamespace(run=SimpleNamespace(uri=run), scale=scale), "_launch": "one", "_notice": None, "_mailbox": None,
        "_need": {"CPU": 1}, "_take": lambda: ([], None, math.inf), "_fit": lambda mark: ended.wait(60), "_alive": False,
        "_heartbeat": -math.inf, "_idle_since": time.monotonic() - 11, "_reported": 0.0, "_starts": starts, "_step": 9,
    }  # fmt: skip
    if starts:
        attempt = record.claim_attempt(run)
        record.save(run, {"state": record.RUNNING, "launch": "one", "attempt": attempt, "step": 7})
    with pytest.raises(error, match=r"gave up after .* the cluster has room for 0") as told:
        driver.run()
    found = record.load(run)
    assert (found and (found["state"], found["step"])) == (state and (state, 9))
    assert getattr(told.value, "exit_code", 2) == (75 if starts else 2)


def test_a_node_that_goes_has_its_ranks_commit_at_once_and_once_more_at_last() -> None:
    from segdist.launch.mailbox import DrainSchedule

    going = DrainSchedule()
    assert [going.commits_now(deadline, now) for deadline, now in ((None, 0), (100, 10), (100, 20), (100, 79.9))] == [
        False, True, False, False,
    ]  # fmt: skip
    assert [going.commits_now(100, now) for now in (80.1, 85, 99)] == [True, False, False]
    short, endless = DrainSchedule(), DrainSchedule()
    assert [short.commits_now(15, now) for now in (0, 5)] == [True, False]
    assert [endless.commits_now(math.inf, now) for now in (0, 1e9)] == [True, False]


def test_only_a_second_ctrl_c_stops_at_once() -> None:
    from segdist.launch.stop import StopSignal

    with StopSignal() as asked:
        assert asked() is None
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == "stop"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
