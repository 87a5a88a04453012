"""Real Ray on several machines, namespaces here: one dies, another comes, and the run goes on to the same bits."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import machines
import pytest
import store as stores
import torch
import yaml
from conftest import ROOT, tree
from machines import Machine

from segdist import config, storage
from segdist.distributed import World
from segdist.runs import checkpoints, record, segments
from segdist.train.loop import fit

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
    "train": {"num_steps": 40, "global_batch_size": 6},
    "eval": {"every_steps": 40},
    "checkpoint": {"every_steps": 2},
}


DATA = "s3://tests/data"
SEGDIST = (sys.executable, "-m", "segdist")


@contextmanager
def network(num: int, street_data: str, **environment: str) -> Iterator[list[Machine]]:
    """So many machines, and before them an S3 store with the data set, which they and this process use."""
    with machines.network(1 + num, **environment) as (store, *others):
        store.start(sys.executable, str(ROOT / "demo/s3_server.py"), store.address)
        store.wait_for("http://", 60)
        with stores.joined(store.log.read_text().strip(), "tests") as address:
            for machine in others:
                machine.environment.update(address)
            stores.copy(street_data, DATA)
            yield others


def wait_for_step(step: int, run: str, committed: bool, head: Machine) -> None:
    """Until a run is known to have made, or committed, so many steps; where its driver on the head has not ended before."""
    until = time.monotonic() + 180
    while (_committed(run) if committed else (record.load(run) or {"step": 0})["step"]) < step:
        assert time.monotonic() < until and head.started[-1].poll() in (None, 0), head.log.read_text()[-4000:]
        time.sleep(0.2)


def _committed(run: str) -> int:
    return max((checkpoints.step_of(uri) or 0 for uri in checkpoints.committed(run)), default=0)


def hook(file: str, kind: str) -> list[str]:
    """What the pods of an example in k8s/ run before they go; `kind`: headGroupSpec or workerGroupSpecs."""
    spec = yaml.safe_load((ROOT / "k8s" / file).read_text(encoding="utf-8"))["spec"][kind]
    (container, *_) = (spec[0] if isinstance(spec, list) else spec)["template"]["spec"]["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "segdist" and command[-2] == "--seconds"
    return [*SEGDIST, *command[1:-1], "200"]  # of machines that share two cores


@pytest.mark.long  # tests/test_ray.py kills a rank
def test_a_machine_dies_another_comes_and_the_weights_are_those_of_one_process(
    street_data: str, tmp_path: Path
) -> None:
    with network(3, street_data, **SOON) as (stays, doomed, comes):
        head = stays
        head.start_ray(head, labels=["market=on-demand"])
        doomed.start_ray(head, labels=["market=spot"])
        run, file = "s3://tests/run", tmp_path / "run.yaml"
        scale = {
            "launcher": "ray", "num_ranks": 2, "device": "cpu", "cpu_threads": 1, "placement": "strict_spread",
            "node_labels": {"market": "spot"}, "first_rank_labels": {"market": "on-demand"},
        }  # fmt: skip
        file.write_text(yaml.safe_dump(tree(DATA, run, scale=scale, **RUN)), encoding="utf-8")
        address = {"RAY_ADDRESS": f"{head.address}:6379", "PYTHONPATH": str(ROOT)}
        driver = head.start(*SEGDIST, "train", str(file), **address)
        wait_for_step(4, run, True, head)
        first = json.loads(storage.read(f"{run}/attempts/0001.json"))
        assert first["host"] == stays.name  # of rank 0, which commits

        doomed.die()
        head.wait_for("the cluster has room for 1", 120)
        comes.start_ray(head, labels=["market=spot"])
        assert driver.wait(timeout=240) == 0, head.log.read_text()[-6000:]

        said, state = head.log.read_text(), record.load(run)
        ours = storage.read(f"{checkpoints.newest(run, print)}/model.safetensors")
    assert "; restart 1 of 10 from the newest checkpoint" in said, said[-4000:]
    assert state is not None
    assert (state["state"], state["attempt"]) == ("SUCCEEDED", 2)
    cfg = config.from_tree(tree(street_data, str(tmp_path / "alone"), **RUN), "test")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(cfg, World(0, 1, torch.device("cpu")), lambda metrics: None, lambda: None)
    torch.set_num_threads(before)
    assert storage.read(f"{checkpoints.newest(cfg.run.uri, print)}/model.safetensors") == ours


@pytest.mark.long  # tests/test_kube.py has the hook of a head, tests/test_node.py the hook of a worker whose head is gone
def test_a_cluster_whose_pods_all_go_at_once_commits_and_its_job_ends_as_one_to_be_begun_again(
    street_data: str, tmp_path: Path
) -> None:
    """Each runs the hook of its pod, as when a RayCluster is deleted."""
    rare, run, file = {"every_steps": 5000}, "s3://tests/run", tmp_path / "run.yaml"
    sections = {"train": {"num_steps": 5000}, "eval": rare, "checkpoint": rare, "log": {"every_steps": 5}}
    scale = {"launcher": "ray", "num_ranks": 2, "device": "cpu", "cpu_threads": 1}
    file.write_text(yaml.safe_dump(tree(DATA, run, scale=scale, **sections)), encoding="utf-8")
    with network(3, street_data) as (head, *others):
        head.start_ray(head, num_cpus=0)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.start_ray(head), others))
        names = [f"--env={name}" for name in head.environment if name.startswith("AWS_")]
        address = ["--address", "http://127.0.0.1:8265", "--no-wait"]
        sent = head.start(*SEGDIST, "submit", *names, *address, str(file), PYTHONPATH=str(ROOT))
        assert sent.wait(timeout=180) == 0, head.log.read_text()
        wait_for_step(1, run, False, head)
        kuberays = {"RAY_ADDRESS": f"{head.address}:6379", "PYTHONPATH": str(ROOT)}
        hooks = [head.start(*hook("train/raycluster.yaml", "headGroupSpec"), **kuberays)]
        hooks += [m.start(*hook("train/raycluster.yaml", "workerGroupSpecs"), **kuberays) for m in others]
        assert [one.wait(timeout=240) for one in hooks] == [0, 0, 0], [m.log.read_text() for m in (head, *others)]
        jobs = head.start(str(machines.BIN / "ray"), "job", "list", "--address", "http://127.0.0.1:8265")
        assert jobs.wait(timeout=60) == 0
        said, state = head.log.read_text(), record.load(run)
        newest = checkpoints.step_of(checkpoints.newest(run, print))
    assert "1 driver(s) asked to stop" in said
    assert re.search("FAILED.*exit code 75|driver_exit_code=75", said, re.DOTALL), said[-3000:]
    assert state is not None and state["state"] == "PREEMPTED"
    assert newest == state["step"] > 0


@pytest.mark.long
def test_a_trial_commits_leaves_a_machine_that_drains_and_goes_on_elsewhere(street_data: str, tmp_path: Path) -> None:
    base, file = tmp_path / "run.yaml", tmp_path / "sweep.yaml"
    rare = {"every_steps": 800}
    sections = {"train": {"num_steps": 800}, "eval": rare, "checkpoint": rare}
    base.write_text(yaml.safe_dump(tree(DATA, "s3://tests/unused", **sections)), encoding="utf-8")
    sweep = {
        "uri": "s3://tests/sweep",
        "config": "run.yaml",
        "space": {"optim.lr": {"grid": [1e-3]}},
        "confirm": {"num_best": 0},
    }
    file.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    run = "s3://tests/sweep/trials/0000"
    with network(3, street_data) as (head, *others):
        head.start_ray(head, num_cpus=0)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.start_ray(head), others))
        address = {"RAY_ADDRESS": f"{head.address}:6379", "PYTHONPATH": str(ROOT)}
        driver = head.start(*SEGDIST, "tune", str(file), **address)
        wait_for_step(1, run, False, head)
        host = json.loads(storage.read(f"{run}/attempts/0001.json"))["host"]
        (doomed,) = [machine for machine in others if machine.name == host]
        drain = doomed.start(*SEGDIST, "node", "drain", "--seconds", "100", "--no-wait", PYTHONPATH=str(ROOT))
        assert drain.wait(timeout=60) == 0, doomed.log.read_text()[-4000:]
        head.wait_for("its node is draining", 60)
        assert driver.wait(timeout=450) == 0, head.log.read_text()[-6000:]
        said, state = head.log.read_text(), record.load(run)
        second = [row["step"] for row in segments.read_metrics(run) if row["kind"] == "train" and row["attempt"] == 2]
    assert "It continues from its newest checkpoint" in said
    assert state is not None and (state["state"], state["attempt"], state["step"]) == ("SUCCEEDED", 2, 800)
    assert min(second) > 1  # which only what it committed as it left explains
