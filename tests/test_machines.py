"""Real Ray on several machines, network namespaces here: one dies, another comes, and the run goes on to the same bits."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import machines
import pytest
import store as stores
import torch
import yaml
from conftest import ROOT, tree
from machines import Machine

from segdist import checkpoint, config, record, storage
from segdist.train import fit
from segdist.world import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not machines.can_be_made(), reason="needs root and iproute2, to make network namespaces"),
]
SOON = {  # when Ray's head holds a node that is silent for dead
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
RUN = {
    "data": {"crop_size": [64, 96]},
    "train": {"num_steps": 24, "global_batch_size": 6},
    "eval": {"every_steps": 24},
    "checkpoint": {"every_steps": 2},
}


@pytest.fixture(scope="module")
def net() -> Iterator[list[Machine]]:
    """A store, a head, one machine on demand and three on spot."""
    with machines.network(6, **SOON) as found:
        yield found


@pytest.fixture(scope="module")
def data(net: list[Machine], street_data: str) -> Iterator[str]:
    """The data set in an S3 store on a machine of its own, which all others and this process use."""
    store = net[0]
    store.start(sys.executable, str(ROOT / "demo/s3_server.py"), store.address)
    store.wait_for("http://", 60)
    with stores.joined(store.log.read_text().strip(), "tests") as environment:
        for machine in net:
            machine.environment.update(environment)
        stores.copy(street_data, "s3://tests/data")
        yield "s3://tests/data"


def test_a_machine_dies_another_comes_and_the_weights_are_those_of_one_process(
    net: list[Machine], data: str, street_data: str, tmp_path: Path
) -> None:
    _, head, stays, spot, doomed, comes = net
    head.start_ray(head, num_cpus=0)
    stays.start_ray(head, labels=["market=on-demand"])
    for machine in (spot, doomed):
        machine.start_ray(head, labels=["market=spot"])
    run, file = "s3://tests/run", tmp_path / "run.yaml"
    scale = {
        "launcher": "ray", "num_ranks": 3, "device": "cpu", "cpu_threads": 1, "placement": "strict_spread",
        "node_labels": {"market": "spot"}, "first_rank_labels": {"market": "on-demand"},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(tree(data, run, scale=scale, **RUN)), encoding="utf-8")
    driver = head.start(
        sys.executable, "-m", "segdist", "train", str(file), RAY_ADDRESS=f"{head.address}:6379", PYTHONPATH=str(ROOT)
    )
    until = time.monotonic() + 180
    while (newest := checkpoint.newest(run, print)) is None or checkpoint.step_of(newest) < 4:
        assert driver.poll() is None and time.monotonic() < until, head.log.read_text()[-4000:]
        time.sleep(0.2)
    first = json.loads(storage.read(f"{run}/attempts/0001.json"))
    assert first["pid"] in stays.processes()  # rank 0, which commits

    doomed.die()
    head.wait_for("the cluster has room for 2", 120)
    comes.start_ray(head, labels=["market=spot"])
    assert driver.wait(timeout=240) == 0, head.log.read_text()[-6000:]

    said = head.log.read_text()
    assert "; restart 1 of 10, from the newest checkpoint" in said, said[-4000:]
    state = record.load(run)
    assert state is not None
    assert (state["state"], state["attempt"]) == ("SUCCEEDED", 2)
    cfg = config.from_tree(tree(street_data, str(tmp_path / "alone"), **RUN), "test")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(cfg, World(0, 1, torch.device("cpu")), lambda metrics: None, lambda: None)
    torch.set_num_threads(before)
    theirs, ours = (storage.read(f"{checkpoint.newest(uri, print)}/model.safetensors") for uri in (run, cfg.run.uri))
    assert theirs == ours


@pytest.mark.long
def test_a_trial_commits_leaves_a_machine_that_drains_and_goes_on_elsewhere(street_data: str, tmp_path: Path) -> None:
    with machines.network(4) as (store, head, *others):
        store.start(sys.executable, str(ROOT / "demo/s3_server.py"), store.address)
        store.wait_for("http://", 60)
        with stores.joined(store.log.read_text().strip(), "tests") as environment:
            for machine in (head, *others):
                machine.environment.update(environment)
            stores.copy(street_data, "s3://tests/data")
            head.start_ray(head, num_cpus=0)
            for machine in others:
                machine.start_ray(head)
            base, file = tmp_path / "run.yaml", tmp_path / "sweep.yaml"
            rare = {"every_steps": 300}
            sections = {"train": {"num_steps": 300}, "eval": rare, "checkpoint": rare}
            base.write_text(yaml.safe_dump(tree("s3://tests/data", "s3://tests/unused", **sections)), encoding="utf-8")
            sweep = {
                "uri": "s3://tests/sweep",
                "config": "run.yaml",
                "space": {"optim.lr": {"grid": [1e-3]}},
                "confirm": {"num_best": 0},
            }
            file.write_text(yaml.safe_dump(sweep), encoding="utf-8")
            driver = head.start(
                sys.executable,
                "-m",
                "segdist",
                "tune",
                str(file),
                RAY_ADDRESS=f"{head.address}:6379",
                PYTHONPATH=str(ROOT),
            )
            run, until = "s3://tests/sweep/trials/0000", time.monotonic() + 120
            while not storage.exists(f"{run}/metrics"):
                assert driver.poll() is None and time.monotonic() < until, head.log.read_text()[-4000:]
                time.sleep(0.2)
            pid = json.loads(storage.read(f"{run}/attempts/0001.json"))["pid"]
            (doomed,) = [machine for machine in others if pid in machine.processes()]
            (raylet,) = [
                words for words in map(words_of, doomed.processes()) if words and words[0].endswith("raylet/raylet")
            ]
            (id,) = [word.removeprefix("--node_id=") for word in raylet if word.startswith("--node_id=")]
            drain = head.start(
                str(machines.BIN / "ray"), "drain-node", f"--address={head.address}:6379", f"--node-id={id}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=100",
            )  # fmt: skip
            assert drain.wait(timeout=60) == 0, head.log.read_text()[-4000:]
            head.wait_for("its node is about to go", 60)
            assert driver.wait(timeout=200) == 0, head.log.read_text()[-6000:]
            said, state = head.log.read_text(), record.load(run)
            second = [row["step"] for row in record.read_metrics(run) if row["kind"] == "train" and row["attempt"] == 2]
    assert "it goes on from its newest checkpoint" in said
    assert state is not None and (state["state"], state["attempt"], state["step"]) == ("SUCCEEDED", 2, 300)
    assert min(second) > 1  # which only what it committed as it left explains


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return []
