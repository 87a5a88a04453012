"""A machine that is to go: the notice of EC2, from a stand-in for its metadata service. tests/test_ray.py has the drain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import metadata_server
import pytest
from metadata_server import Machine

from segdist.cluster import node
from segdist.errors import UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with metadata_server.serving() as machine:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.address + "/")
        monkeypatch.setattr(node, "_POLL_SECONDS", 0.02)
        yield machine


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """(seconds, why) of every drain that was wished for; Ray takes them all."""
    wishes: list[tuple[float, str]] = []

    def drain(seconds: float, why: str) -> bool:
        wishes.append((seconds, why))
        return True

    monkeypatch.setattr(node, "_drain_in_subprocess", drain)
    return wishes


def test_a_notice_becomes_a_drain_with_its_deadline(machine: Machine, drained: list[Any]) -> None:
    machine.take_away(100)
    node.watch()
    [(seconds, why)] = drained
    assert 95 < seconds <= 100
    assert why == "spot notice: terminate"


def test_it_waits_for_as_long_as_there_is_no_notice(
    machine: Machine, drained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0

    def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        assert drained == []
        if rounds == 5:
            machine.take_away(60, "stop")

    monkeypatch.setattr(node.time, "sleep", sleep)
    node.watch()
    assert rounds == 5
    assert drained[0][1] == "spot notice: stop"
    assert sum(method == "PUT" for method, _ in machine.asked) == 1  # the token is kept


def test_a_token_that_expired_is_asked_for_again(machine: Machine) -> None:
    metadata = node.Metadata()
    assert metadata.notice() is None
    machine.token = "another"
    machine.take_away(30)
    assert metadata.notice() is not None
    assert [method for method, _ in machine.asked] == ["PUT", "GET", "GET", "PUT", "GET"]


def test_an_outage_of_the_service_is_warned_of_once_and_outlived(
    machine: Machine, drained: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.take_away(100)
    kind = node._lifecycle

    def then_fail(metadata: Any) -> str:
        found = kind(metadata)
        machine.failing = 3
        return found

    monkeypatch.setattr(node, "_lifecycle", then_fail)
    node.watch()
    assert len(drained) == 1
    assert capsys.readouterr().err.count("no answer from the EC2 metadata service") == 1


def test_ray_that_is_not_there_is_asked_again_until_it_accepts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each drain is a process of its own, because Ray's client ends its process if the head does not answer."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # no node of this cluster runs here
    monkeypatch.setattr(node, "_POLL_SECONDS", 0.01)
    drain, results = node._drain_in_subprocess, list[bool]()

    def drain_twice(seconds: float, reason: str) -> bool:
        results.append(drain(seconds, reason))
        return len(results) == 2

    monkeypatch.setattr(node, "_drain_in_subprocess", drain_twice)
    machine.take_away(3600)
    node.watch()
    assert results == [False, False]
    assert capfd.readouterr().err.count("there is nothing to drain") == 2


def test_a_machine_without_ray_is_watched_until_it_goes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def refuse(seconds: float, reason: str) -> bool:
        asked.append(seconds)
        machine.take_away(-1)
        return False

    monkeypatch.setattr(node, "_drain_in_subprocess", refuse)
    machine.take_away(3600)
    node.watch()
    assert len(asked) == 1


def test_an_on_demand_machine_is_not_watched(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.life_cycle = "on-demand"
    machine.take_away(1)
    node.watch()
    assert "this machine is on-demand" in capsys.readouterr().err


def test_a_machine_that_is_not_of_ec2_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_server.serving() as gone:
        address = gone.address
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
    monkeypatch.setattr(node, "_START_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"no EC2 metadata service answers .*HttpPutResponseHopLimit"):
        node.watch()


RAYLET = ["/opt/ray/raylet", "--node_id=aa", "--gcs-address=10.0.0.1:6379"]


def working(monkeypatch: pytest.MonkeyPatch, lines: list[list[str]]) -> None:
    """Lets this machine have one node of Ray, with processes of these command lines, and a rank of another cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    others = [(1, 0, RAYLET), (90, 80, ["ray::RayTrainWorker.execute"])]
    monkeypatch.setattr(node, "_processes", lambda: [*others, *((10 + i, 1, line) for i, line in enumerate(lines))])


def test_work_is_known_by_the_names_that_ray_gives_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [["ray::IDLE"], ["ray::RayTrainWorker.execute"], ["python", "train.py"]]
    working(monkeypatch, lines)
    began = time.monotonic()
    assert not node.wait_for_work(0.1)
    assert time.monotonic() - began >= 0.1
    del lines[1]
    assert node.wait_for_work(0.1)


def test_only_nodes_of_the_cluster_that_is_meant_are_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        (1, 0, [*RAYLET, "--head"]),
        (2, 0, ["/opt/ray/raylet", "--node_id=bb", "--gcs-address=10.0.0.1:7000"]),
        (3, 0, ["/opt/ray/gcs_server", "--gcs-address=10.0.0.1:6379"]),
    ]
    monkeypatch.setattr(node, "_processes", lambda: lines)
    first, second = node.Node("aa", "10.0.0.1:6379", 1), node.Node("bb", "10.0.0.1:7000", 2)
    for address in ("", "http://127.0.0.1:8265", "ray://10.0.0.1:10001"):  # which name no port of a node
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert node.nodes_here() == [first, second]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:7000")
    assert node.nodes_here() == [second]


def test_where_ray_cannot_be_told_its_work_is_waited_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When Kubernetes deletes a whole cluster, the head's name is gone before its workers are."""
    monkeypatch.setattr(node, "_drain_in_subprocess", lambda seconds, why: False)
    lines = [["ray::RayTrainWorker.execute"], ["ray::IDLE"]]
    working(monkeypatch, lines)
    asked = 0

    def sleep(seconds: float) -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            del lines[0]

    monkeypatch.setattr(node.time, "sleep", sleep)
    assert node.drain_and_wait(60, "why") == 0
    assert asked == 5
    assert "cannot tell Ray to drain this machine" in " ".join(capsys.readouterr().err.split())
    assert node.drain_and_wait(60, "why") == 2  # nothing works here any more
    lines.insert(0, ["ray::JobSupervisor.run"])
    monkeypatch.setattr(node, "_drain_in_subprocess", lambda seconds, why: True)
    assert node.drain_and_wait(0.01, "why") == 75
    assert "still running here after 0.01 s: 1 job(s)" in capsys.readouterr().err


@pytest.mark.long
def test_a_head_that_does_not_answer_costs_the_hook_less_than_its_time() -> None:
    """Ray's client then ends the process that it is in."""
    with subprocess.Popen(
        ["bash", "-c", 'exec -a raylet "$0" -c "import time; time.sleep(60)" --node_id=aa --gcs-address=nowhere.invalid:7',
         sys.executable]
    ) as raylet:  # fmt: skip
        try:
            began = time.monotonic()
            environment = {**os.environ, "RAY_ADDRESS": "nowhere.invalid:7", "RAY_AUTH_MODE": "disabled"}
            command = [sys.executable, "-m", "segdist", "node", "drain", "--no-wait", "--seconds", "60"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
        finally:
            raylet.kill()
    assert done.returncode != 0
    assert "draining" not in done.stderr
    assert time.monotonic() - began < node._DRAIN_SECONDS + 30  # of a busy machine
