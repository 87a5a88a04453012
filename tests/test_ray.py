"""Real Ray: a cluster of its own with tokens, data and runs on an S3 server, processes that are killed.

Two processes of torch share the machine with Ray, so these tests are slow; each starts as few runs as it can.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import forks
import guarded_s3
import metadata_server
import pytest
import ray_head
import store as stores
import torch
import yaml
from conftest import ROOT, SEGFORMER, UNET, tree
from fault_proxy import Fault, spoiling
from ray.exceptions import RayActorError
from ray_head import BIN, Head

from segdist import config, storage
from segdist.config import Scale
from segdist.data import index as indices
from segdist.distributed import World
from segdist.errors import UnavailableError
from segdist.evaluation.evaluate import evaluate
from segdist.launch.failures import describe_failures
from segdist.launch.ray_cluster import needs, shortage
from segdist.runs import checkpoints, record, segments, snapshot
from segdist.runs.restore import load_trained
from segdist.train.loop import fit

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
ALONE = World(0, 1, torch.device("cpu"))
ON_RAY = {"launcher": "ray", "num_ranks": 2, "device": "cpu", "cpu_threads": 1}
TEN = {"num_steps": 10}


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The environment of an S3 server with the bucket `tests`; this process uses it too."""
    with stores.serving("tests", forks.python()) as environment:
        yield environment


@pytest.fixture(scope="module")
def data(store: dict[str, str], street_data: str) -> str:
    stores.copy(street_data, "s3://tests/data")
    return "s3://tests/data"


@pytest.fixture
def begin(head: Head, store: dict[str, str], data: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """begin(run, section={...}) -> `segdist train` of a small run, on the cluster."""

    def begin(run: str, on: Head = head, **sections: Any) -> subprocess.Popen[str]:
        path = tmp_path / "run.yaml"
        scale = {**ON_RAY, **sections.pop("scale", {})}
        path.write_text(yaml.safe_dump(tree(data, run, scale=scale, **sections)), encoding="utf-8")
        return subprocess.Popen(
            [forks.python(), "-m", "segdist", "train", str(path), "--json"],
            env={**os.environ, **on.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return begin


def end(process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    """(the JSON, everything people saw) of a command that ends with this code."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out.count("\n") == (code in (0, 75)), out
    return json.loads(out) if out else {}, err


def reference(data: str, folder: Path, **sections: Any) -> str:
    """The run of one local process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(config.from_tree(tree(data, str(folder), **sections), "reference"), ALONE)
    torch.set_num_threads(before)
    return str(folder)


def assert_same_bits(run: str, other: str) -> None:
    ours, theirs = (snapshot.load_model(str(checkpoints.newest(uri, print))) for uri in (run, other))
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if not torch.equal(ours[k], theirs[k])] == []


def rows(run: str, kind: str, *keys: str) -> list[list[Any]]:
    return [[row[k] for k in ("step", *keys)] for row in segments.read_metrics(run) if row["kind"] == kind]


@pytest.mark.parametrize(
    ("model", "numbers", "place"),
    [
        (SEGFORMER, (2,), "files"),
        pytest.param(SEGFORMER, (1, 3), "s3", marks=pytest.mark.long),
        pytest.param(UNET, (3,), "s3", marks=pytest.mark.long),
    ],
    ids=["segformer", "more ranks", "unet"],
)
def test_1_2_and_3_ray_ranks_are_one_local_process_bit_for_bit(
    begin: Callable[..., subprocess.Popen[str]],
    data: str,
    tmp_path: Path,
    model: dict[str, Any],
    numbers: tuple[int, ...],
    place: str,
) -> None:
    fields = {"model": model, "train": {"num_steps": 5, "global_batch_size": 8, "micro_batch_size": 2}}
    local = reference(data, tmp_path / "local", **fields)
    for num in numbers:
        run = f"s3://tests/{model['name']}-{num}" if place == "s3" else str(tmp_path / "run")
        summary, said = end(begin(run, scale={"num_ranks": num}, **fields))
        assert summary["state"] == "SUCCEEDED"
        assert f"{num} rank(s) on cpu, strategy exact" in said
        assert_same_bits(run, local)
        assert rows(run, "train", "loss", "grad_norm") == rows(local, "train", "loss", "grad_norm")
        exact = ("miou", "iou", "accuracy", "num_samples")
        assert rows(run, "eval", *exact) == rows(local, "eval", *exact)
        for step in (2, 4, 5):
            picture = f"previews/step-{step:08d}.png"
            assert storage.read(f"{run}/{picture}") == storage.read(f"{local}/{picture}")
        assert said.count("SUCCEEDED at step 5") == 1  # nothing doubled, nothing of Ray's
        assert "(pid=" not in said and "INFO" not in said
        assert {"run.json", ".ray", "logs"} <= set(storage.names(run))
        kept = storage.names(f"{run}/logs")
        assert any(re.fullmatch(r"0001-[0-9a-f]{6}-\d{5}\.txt", name) for name in kept)  # the driver's
        assert any(re.fullmatch(r"0001-\d{5}\.txt", name) for name in kept)  # rank 0's


@pytest.mark.long  # tests/test_evaluate.py has torchrun's ranks
def test_the_pair_table_of_ray_ranks_is_that_of_one_process(
    head: Head, store: dict[str, str], data: str, tmp_path: Path
) -> None:
    run = reference(data, tmp_path / "run")
    trained = load_trained(run, ALONE.device)
    table = evaluate(trained.model, data, indices.load(data), "val", None, trained.cfg.io, 3, ALONE).table
    for num in (2, 3):
        program = str(Path(__file__).with_name("ray_table.py"))
        command = [forks.python(), program, run, data, "val", str(num), f"s3://tests/table-{num}.json"]
        done = subprocess.run(command, env={**os.environ, **head.environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ranks, counts = json.loads(storage.read(f"s3://tests/table-{num}.json"))
        assert ranks == num
        assert counts == table.flatten().tolist()


def wait_for_steps(run: str, seconds: float) -> None:
    """Until a run has begun to make some."""
    deadline = time.monotonic() + seconds
    while not storage.names(f"{run}/metrics"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def wait_for_commit(run: str, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any((checkpoints.step_of(u) or 0) >= step for u in checkpoints.committed(run)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)


TWENTY = {"train": {"num_steps": 20}, "eval": {"every_steps": 10}, "checkpoint": {"every_steps": 5}}


@pytest.fixture(scope="module")
def straight(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The run of one local process that nobody disturbs."""
    return reference(data, tmp_path_factory.mktemp("straight") / "run", **TWENTY)


@pytest.fixture
def held(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    """The last checkpoint of a run of twenty steps is not stored, and so the run does not end, before `held.go` is set."""
    last = Fault("PUT", "checkpoints/step-00000020", "wait")
    with spoiling(store["AWS_ENDPOINT_URL"], last) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow)
        yield last
        last.go.set()


def kill_a_rank(run: str, rank: int, head: Head, process: subprocess.Popen[str]) -> None:
    wait_for_commit(run, 5, process)
    first = json.loads(storage.read(f"{run}/attempts/0001.json"))["pid"]
    victims = {first} if rank == 0 else ray_head.ranks(head) - {first}
    assert len(victims) == 1
    os.kill(victims.pop(), signal.SIGKILL)


def test_a_killed_rank_and_a_killed_driver_cost_some_steps_and_no_bit(
    begin: Callable[..., subprocess.Popen[str]], head: Head, held: Fault, straight: str
) -> None:
    run = "s3://tests/killed"
    process = begin(run, **TWENTY)
    kill_a_rank(run, 1, head, process)
    while not storage.exists(f"{run}/attempts/0002.json"):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.kill()
    said = process.communicate()[1]
    assert "rank 1: the process died (killed, out of memory, or crashed); restart 1 of 10" in said
    assert "heartbeat" not in said  # Ray has ended the others
    held.go.set()
    summary, said = end(begin(run, **TWENTY))
    state = record.load(run)
    assert state is not None
    assert (summary["state"], state["attempt"], len(storage.names(f"{run}/attempts"))) == ("SUCCEEDED", 3, 3)
    assert f"continues {run}/checkpoints/step-" in said
    assert_same_bits(run, straight)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_a_restart_and_no_bit(
    begin: Callable[..., subprocess.Popen[str]], head: Head, held: Fault, straight: str, rank: int
) -> None:
    run = f"s3://tests/killed-{rank}"
    process = begin(run, **TWENTY)
    kill_a_rank(run, rank, head, process)
    held.go.set()
    summary, said = end(process)
    assert (summary["state"], summary["restarts"], summary["step"]) == ("SUCCEEDED", 1, 20)
    assert f"rank {rank}: the process died (killed, out of memory, or crashed); restart 1 of 10" in said
    assert "heartbeat" not in said  # Ray has ended the others
    assert_same_bits(run, straight)
    assert "attempt 1" in said and "attempt 2" in said


@pytest.mark.long  # a notice of the cloud, below, ends so too, and so does the hook of a pod, in tests/test_kube.py
def test_sigterm_on_the_driver_commits_first(begin: Callable[..., subprocess.Popen[str]]) -> None:
    fields = {"train": {"num_steps": 5000}, "eval": {"every_steps": 5000}, "checkpoint": {"every_steps": 5000}}
    process = begin("s3://tests/stopped", log={"every_steps": 20}, **fields)
    wait_for_steps("s3://tests/stopped", 120)
    process.terminate()
    summary, said = end(process, 75)
    assert summary["state"] == "PREEMPTED"
    assert checkpoints.step_of(checkpoints.newest("s3://tests/stopped", print)) == summary["step"] > 0
    assert "run the same command to continue" in said


@pytest.mark.long
def test_the_notice_of_a_spot_machine_makes_its_ranks_commit(begin: Callable[..., subprocess.Popen[str]]) -> None:
    """`segdist node watch` makes it a drain with a deadline, until which they train on."""
    rare, run = {"every_steps": 5000}, "s3://tests/drained"
    with ray_head.running(num_cpus=2) as doomed, metadata_server.serving() as machine:
        process = begin(run, on=doomed, train={"num_steps": 5000}, eval=rare, checkpoint=rare, log={"every_steps": 50})
        while not storage.exists(f"{run}/attempts"):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        machine.take_away(120)
        watch = subprocess.run(
            [forks.python(), "-m", "segdist", "node", "watch"],
            env={**os.environ, **doomed.environment, "AWS_EC2_METADATA_SERVICE_ENDPOINT": machine.address},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "notice: terminate in" in watch.stderr and "draining 1 Ray node(s) on this machine" in watch.stderr, (
            watch.stderr
        )
        wait_for_commit(run, 1, process)
        process.terminate()
        summary, said = end(process, 75)
    assert "is being drained. A checkpoint is committed now, and the ranks restart without this node" in said
    assert summary["state"] == "PREEMPTED"
    assert checkpoints.step_of(checkpoints.newest(run, print)) == summary["step"] > 0
    assert "run the same command to continue" in said


@pytest.mark.long  # tests/test_cluster.py has a driver whose ranks find no place
def test_ranks_that_find_no_place_any_more_leave_a_record_of_it(begin: Callable[..., subprocess.Popen[str]]) -> None:
    run = "s3://tests/homeless"
    with ray_head.running(num_cpus=2) as doomed:
        process = begin(run, on=doomed, log={"every_steps": 5}, train={"num_steps": 5000}, scale={"start_seconds": 10})
        wait_for_commit(run, 5, process)
        drain = [forks.python(), "-m", "segdist", "node", "drain", "--seconds", "20"]
        told = subprocess.run(
            drain, env={**os.environ, **doomed.environment}, capture_output=True, text=True, timeout=60
        )
        assert told.returncode == 0, told.stderr  # they left in time
        _, said = process.communicate(timeout=240)
    assert process.returncode == 75, said
    assert "is being drained. A checkpoint is committed now" in said and "restart 1 of" not in said
    assert re.search(
        "error: gave up after .* Run the same command to continue from the newest checkpoint", said, re.DOTALL
    )
    state = record.load(run)
    assert state is not None and state["state"] == "FAILED" and "gave up after" in state["error"]
    newest = checkpoints.step_of(checkpoints.newest(run, print))
    assert newest is not None and 5 <= newest <= state["step"] + 5


def test_a_mistake_that_only_a_rank_can_see_is_one_message(
    begin: Callable[..., subprocess.Popen[str]], data: str
) -> None:
    for entry in storage.walk(data):
        storage.write(f"s3://tests/rotten/{entry.name}", storage.read(f"{data}/{entry.name}"))
    shard = next(e.name for e in storage.walk("s3://tests/rotten/train"))
    whole = bytearray(storage.read(f"s3://tests/rotten/train/{shard}"))
    for at in range(200, len(whole) // 2, 500):
        whole[at] ^= 255
    storage.write(f"s3://tests/rotten/train/{shard}", bytes(whole))
    _, said = end(begin("s3://tests/rotten-run", data={"uri": "s3://tests/rotten"}), 2)
    assert said.count("error:") == 1
    assert "restart" not in said  # no restart mends it
    assert f"s3://tests/rotten/train/{shard}: row group" in said
    assert "has changed since it was written" in said


@pytest.mark.parametrize(
    ("sections", "environment", "message"),
    [
        ({"data": {"uri": "s3://no-such-bucket/data"}}, {}, "has no bucket 'no-such-bucket'"),
        ({"run": {"uri": "s3://no-such-bucket/run"}}, {}, "has no bucket 'no-such-bucket'"),
        ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "does not answer"),
        ({"scale": {"num_ranks": 9}}, {}, "Start at most 2 rank(s)"),
    ],
    ids=["data", "run", "endpoint", "ranks"],
)
def test_a_mistake_is_told_before_ray_is_asked(
    begin: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = sections.pop("run", {"uri": "s3://tests/never"})["uri"]
    began = time.monotonic()
    _, said = end(begin(run, **sections), 2)
    assert said.startswith("error:") and said.count("error:") == 1
    assert message in said.replace("\n", " ")
    assert time.monotonic() - began < 30


def test_credentials_and_rights_are_checked_before_ray_is_asked(
    begin: Callable[..., subprocess.Popen[str]], street_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with guarded_s3.serving() as (address, reader):
        root = boto3.client("s3", endpoint_url=address, **guarded_s3.ROOT)
        for name in ("data", "runs"):
            root.create_bucket(Bucket=name)
        for entry in storage.walk(street_data):
            root.put_object(Bucket="data", Key=entry.name, Body=storage.read(f"{street_data}/{entry.name}"))
        guarded_s3.lock(address)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name, value in reader.items():
            monkeypatch.setenv(name, value)
        _, said = end(begin("s3://runs/run", data={"uri": "s3://data"}), 2)
        assert said.startswith("error:") and said.count("error:") == 1
        assert "s3://runs/run: not allowed to write there (AccessDenied)" in said
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        _, said = end(begin("s3://runs/run", data={"uri": "s3://data"}), 2)
        assert said.startswith("error:") and said.count("error:") == 1
        assert "rejects these credentials (SignatureDoesNotMatch)" in said


def test_a_driver_without_the_token_is_told(
    begin: Callable[..., subprocess.Popen[str]], head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(head.environment, "RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    _, said = end(begin("s3://tests/locked-out"), 2)
    assert "the Ray cluster refused the connection" in said
    assert "provide its token here too" in said


def test_a_hook_with_another_token_is_told(head: Head) -> None:
    wrong = {**os.environ, **head.environment, "RAY_AUTH_TOKEN": "ab" * 32}
    drain = [forks.python(), "-m", "segdist", "node", "drain", "--no-wait"]
    told = subprocess.run(drain, env=wrong, capture_output=True, text=True, timeout=60)
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert re.search(r"error: cannot tell \S+ to drain node \w+: .*InvalidAuthToken", told.stderr), told.stderr


@pytest.mark.long  # the fast test of 2 ranks has a path
def test_a_run_on_files_that_all_ranks_see(begin: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    summary, _ = end(begin(f"file://{tmp_path / 'run'}", train={"num_steps": 1}, optim={"warmup_steps": 0}))
    assert summary["state"] == "SUCCEEDED"
    assert {"run.json", ".ray", "logs"} <= set(storage.names(str(tmp_path / "run")))


def test_what_the_cluster_cannot_give_is_told(begin: Callable[..., subprocess.Popen[str]]) -> None:
    scale = {"num_ranks": 2, "cpus_per_rank": 6, "start_seconds": 3}
    _, said = end(begin("s3://tests/greedy", scale=scale), 2)
    assert "2 rank(s) with 6 CPU each (pack) are requested, but the cluster has room for 1: " in said
    assert ": 8 CPU. Lower scale.num_ranks" in said
    assert not storage.exists("s3://tests/greedy/attempts")


def test_a_cluster_that_is_not_there_is_told(
    begin: Callable[..., subprocess.Popen[str]], head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.environment, "RAY_ADDRESS", f"127.0.0.1:{ray_head.free_ports(1)[0]}")
    _, said = end(begin("s3://tests/nowhere"), 2)
    assert "no Ray cluster answers" in said


GLOO = RuntimeError("[gloo/pair.cc:547] Read error [10.0.0.3]:41042: Connection timed out")
S3 = UnavailableError("s3://b/x: Connection reset by peer")
NCCL = RuntimeError("DistBackendError: NCCL error ... ncclRemoteError: A call failed possibly due to a network error")
OURS = KeyError("masks")


@pytest.mark.parametrize(
    ("failures", "told", "is_lost"),
    [
        (
            {0: GLOO, 2: NCCL},
            r"rank 0, 2 lost the connection to another rank, whose process or machine ended \(.*timed out\)",
            True,
        ),
        ({0: GLOO, 1: RayActorError()}, r"rank 1: the process died \(killed, out of memory, or crashed\)", True),
        ({0: GLOO, 1: OURS}, r"rank 1 failed: KeyError: 'masks'", False),
        ({0: GLOO, 1: S3}, r"rank 1 failed: s3://b/x: Connection reset by peer", False),
        ({0: OURS, 1: OURS}, r"rank 0 failed: KeyError: 'masks'; rank 1 failed: KeyError: 'masks'", False),
    ],
)
def test_the_first_failure_is_told_and_not_what_others_met_for_it(
    failures: dict[int, Exception], told: str, is_lost: bool
) -> None:
    said, lost = describe_failures(failures)
    assert re.fullmatch(told, said) and lost == is_lost


SLOW_MAILBOX = """
import os
import threading
import time

import ray
from segdist.launch.mailbox import Inbox, Mailbox, PolledNotice


def pid(mailbox):
    return os.getpid()


def answered(question):
    try:
        return ray.get(inbox.mailbox.__ray_call__.remote(question), timeout=60)
    except ray.exceptions.ActorUnavailableError:
        return None


ray.init(logging_level="ERROR", log_to_driver=False)
inbox = Inbox()
inbox.mailbox.__ray_call__.remote(lambda mailbox: time.sleep(3))
inbox.mailbox.post.remote("say", "while it was busy")
assert inbox.take(0.5) is None
assert inbox.take(60)[0] == [("say", "while it was busy")]

inbox.ask("stop")
first = ray.get(inbox.mailbox.__ray_call__.remote(pid), timeout=60)
notice = PolledNotice(inbox.mailbox)
telling = threading.Thread(target=notice.tell_and_wait, args=({"step": 4},))
telling.start()
while ("tell", {"step": 4}) not in (inbox.take(60) or [[]])[0]:
    pass
ray.kill(inbox.mailbox, no_restart=False)
told, until = 0, time.monotonic() + 60
while answered(pid) in (None, first) or answered(Mailbox.wish) != "stop" or not told:
    told += [post[0] for post in (inbox.take(5) or [[]])[0]].count("tell")
    assert time.monotonic() < until
while telling.is_alive():
    inbox.mailbox.answer.remote(4, "stop")
    telling.join(1)
assert notice() == "stop"
"""


def test_a_mailbox_that_is_slow_loses_no_post_and_one_that_starts_again_is_told_all_again(head: Head) -> None:
    command = [forks.python(), "-c", SLOW_MAILBOX]
    done = subprocess.run(
        command, env={**os.environ, **head.environment}, capture_output=True, text=True, timeout=200, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


NODES = [
    {"NodeManagerAddress": "a", "Resources": {"CPU": 8, "GPU": 2}, "Labels": {"market": "spot", "ray.io/node-id": "1"}},
    {"NodeManagerAddress": "b", "Resources": {"CPU": 4}, "Labels": {"market": "on-demand"}},
]


def test_a_node_that_drains_takes_no_rank() -> None:
    nodes = [{**NODES[0], "Drains": True}, NODES[1]]
    told = shortage(Scale(launcher="ray", num_ranks=5), {"CPU": 1}, nodes)
    assert told and "has room for 4: a: draining, 8 CPU" in told
    assert shortage(Scale(launcher="ray", num_ranks=4), {"CPU": 1}, nodes) is None


@pytest.mark.parametrize(
    ("scale", "fits"),
    [
        ({"num_ranks": 12}, True),
        ({"num_ranks": 13}, False),
        ({"num_ranks": 8, "placement": "strict_pack"}, True),
        ({"num_ranks": 9, "placement": "strict_pack"}, False),
        ({"num_ranks": 2, "placement": "strict_spread"}, True),
        ({"num_ranks": 3, "placement": "strict_spread"}, False),
        ({"num_ranks": 2, "gpus_per_rank": 1}, True),
        ({"num_ranks": 3, "gpus_per_rank": 1}, False),
        ({"num_ranks": 1, "gpus_per_rank": 0.5}, True),
        ({"num_ranks": 2, "gpus_per_rank": 1, "cpus_per_rank": 5}, False),
        ({"num_ranks": 8, "node_labels": {"market": "spot"}}, True),
        ({"num_ranks": 9, "node_labels": {"market": "spot"}}, False),
        ({"num_ranks": 9, "node_labels": {"market": "spot"}, "first_rank_labels": {"market": "on-demand"}}, True),
        ({"num_ranks": 10, "node_labels": {"market": "spot"}, "first_rank_labels": {"market": "on-demand"}}, False),
        ({"num_ranks": 12, "first_rank_labels": {"market": "on-demand"}}, True),
        ({"num_ranks": 1, "gpus_per_rank": 1, "first_rank_labels": {"market": "on-demand"}}, False),
        ({"num_ranks": 1, "first_rank_labels": {"market": "reserved"}}, False),
    ],
)
def test_a_shortage_is_known_from_the_nodes(scale: dict[str, Any], fits: bool) -> None:
    wanted = Scale.model_validate({"launcher": "ray", "device": "auto", "gpus_per_rank": 0, **scale})
    assert (shortage(wanted, needs(wanted, 2), NODES) is None) == fits


@pytest.mark.parametrize(
    ("device", "gpus", "cluster", "expected"),
    [
        ("auto", None, 0, 0),
        ("auto", None, 4, 1),
        ("cuda", None, 0, 1),
        ("cpu", None, 4, 0),
        ("auto", 0.5, 0, 0.5),
        ("auto", 0, 4, 0),
    ],
)
def test_gpus_are_reserved_where_they_are_used(
    device: str, gpus: float | None, cluster: float, expected: float
) -> None:
    scale = Scale.model_validate({"launcher": "ray", "device": device, "gpus_per_rank": gpus})
    assert needs(scale, cluster).get("GPU", 0) == expected


# -- ray job submit ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submit(
    head: Head, store: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """submit(script, *arguments, ray=[...]): `ray job submit` of the project's folder; S3 comes in the runtime environment."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("segdist", "jobs", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    def submit(script: str, *arguments: str, ray: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = json.dumps({"env_vars": {**store, "RAY_JOB_STOP_WAIT_TIME_S": "60"}})
        return subprocess.run(
            [
                forks.python(), str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", str(folder),
                *ray,
                "--runtime-env-json", environment, "--", "python", f"jobs/{script}.py", *arguments,
            ],
            env={**os.environ, **{k: v for k, v in head.environment.items() if k != "RAY_ADDRESS"}},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return submit


SMALL = [
    "scale.device=cpu",
    "data.crop_size=[32,48]",
    "train.global_batch_size=4",
    "train.micro_batch_size=2",
    "optim.warmup_steps=1",
]


def test_ray_job_submit_does_the_whole_road(
    submit: Callable[..., subprocess.CompletedProcess[str]], street_folder: Path, tmp_path: Path
) -> None:
    for entry in storage.walk(str(street_folder)):
        storage.write(f"s3://tests/photos/{entry.name}", storage.read(f"{street_folder}/{entry.name}"))
    train = [
        "train", "configs/demo.yaml", "data.uri=s3://tests/prepared", "run.uri=s3://tests/job", "scale.num_ranks=2",
        "train.num_steps=2", "eval.num_previews=0", *SMALL,
    ]  # fmt: skip
    for script, *arguments in (
        ["prepare", "s3://tests/photos", "s3://tests/prepared", "--names", "s3://tests/photos/names.txt"],
        train,
        ["eval", "s3://tests/job", "--split", "val", "--json"],
        ["export", "s3://tests/job", "s3://tests/job-export"],
    ):
        done = submit(script, *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        assert "Traceback" not in done.stdout
        if script == "train":
            assert "s3://tests/job: SUCCEEDED at step 2" in done.stdout
            assert "2 rank(s) on cpu" in done.stdout
    assert {"model.safetensors", "config.json", "segdist.json"} <= set(storage.names("s3://tests/job-export"))


@pytest.mark.long  # tests/test_submit.py stops one by the same command
def test_ray_job_stop_commits_first(
    submit: Callable[..., subprocess.CompletedProcess[str]], head: Head, data: str
) -> None:
    run = "s3://tests/job-stopped"
    started = submit(
        "train", "configs/demo.yaml", f"data.uri={data}", f"run.uri={run}", "train.num_steps=5000",
        "checkpoint.every_steps=5000", "eval.every_steps=5000", *SMALL, ray=("--no-wait", "--submission-id", "stopped"),
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    wait_for_steps(run, 120)
    environment = {**os.environ, **{k: v for k, v in head.environment.items() if k != "RAY_ADDRESS"}}
    command = [forks.python(), str(BIN / "ray"), "job", "stop", "--address", head.dashboard, "stopped"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    state = record.load(run)
    assert state is not None and state["state"] == "PREEMPTED"
    assert checkpoints.step_of(checkpoints.newest(run, print)) == state["step"] > 0
