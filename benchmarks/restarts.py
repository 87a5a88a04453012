"""How long a run stands still when something dies: from the death to the first update after it.

The machines are network namespaces on a bridge (tests/machines.py; root and iproute2): a store, a head without ranks, and one
machine more than there are ranks, so that nobody waits for machines. What dies is a rank's process (SIGKILL), or a machine that
falls silent: with Ray's own patience, and with the one that `QUICK` sets. `python benchmarks/restarts.py [--times 3]`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "tests")]
import machines
import store as stores
import streets
from machines import Machine

from segdist import storage
from segdist.data.label_options import LabelOptions
from segdist.data.prepare import prepare
from segdist.runs import segments

QUICK = {  # the head asks every second, and holds a node for dead that was silent three times
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
TREE = {
    "data": {"uri": "s3://tests/data", "crop_size": [64, 96]},
    "model": {"name": "segformer", "size": "tiny"},
    "train": {"num_steps": 100_000, "global_batch_size": 4, "micro_batch_size": 2},
    "eval": {"every_steps": 100_000, "num_previews": 0},
    "checkpoint": {"every_steps": 20},
    "scale": {"launcher": "ray", "num_ranks": 2, "device": "cpu", "cpu_threads": 1, "placement": "strict_spread"},
    "log": {"every_steps": 1},
}


class Run:
    """A training on the machines, and what dies of it."""

    def __init__(self, head: Machine, others: list[Machine], folder: Path) -> None:
        self.uri, self.head, self.others, self.attempt = "s3://tests/run", head, others, 1
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump({**TREE, "run": {"uri": self.uri}}), encoding="utf-8")
        command = [sys.executable, "-m", "segdist", "train", str(file)]
        self.driver = head.start(*command, RAY_ADDRESS=f"{head.address}:6379", PYTHONPATH=str(ROOT))
        self.first_update()

    def first_update(self) -> float:
        """When this attempt made its first update, once it is known."""
        until = time.monotonic() + 400
        while True:
            rows = segments.read_metrics(self.uri)
            times = [row["time"] for row in rows if row["kind"] == "train" and row["attempt"] == self.attempt]
            if times:
                return min(times)
            if self.driver.poll() is not None or time.monotonic() > until:
                raise SystemExit(self.head.log.read_text()[-4000:])
            time.sleep(1)

    def stood_still(self, kill: Callable[[Machine, int], None]) -> float:
        """Seconds from the death of a rank, that is not rank 0, to the first update of the next attempt."""
        time.sleep(5)  # past a commit
        [(machine, pid)] = [
            (m, p) for m in self.others if m.name != self.first_host() for p in m.processes() if is_rank(p)
        ]
        died = time.time()
        kill(machine, pid)
        self.attempt += 1
        return self.first_update() - died

    def first_host(self) -> str:
        return str(json.loads(storage.read(f"{self.uri}/attempts/{self.attempt:04d}.json"))["host"])

    def take_away(self, machine: Machine, pid: int) -> None:
        """Cut off before it dies, so that nobody hears of it; then it comes back, empty, as the spare one for the next time."""
        machines._ip("link", "set", machine.cable, "down")
        machine.die()
        machines._ip("link", "set", machine.cable, "up")
        machine.log.write_text("")
        machine.boot()
        machine.start_ray(self.head)


def is_rank(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
    except OSError:
        return False


def measured(environment: dict[str, str], times: int, with_processes: bool) -> dict[str, list[float]]:
    with machines.network(5, **environment) as (store, head, *others), tempfile.TemporaryDirectory() as name:
        store.start(sys.executable, str(ROOT / "demo/s3_server.py"), store.address)
        store.wait_for("http://", 60)
        with stores.joined(store.log.read_text().strip(), "tests") as settings:
            for machine in (head, *others):
                machine.environment.update(settings)
            streets.draw_folder(Path(name, "streets"), 40, 192, 128, seed=1)
            prepare(f"{name}/streets", "s3://tests/data", "folder", LabelOptions(names=f"{name}/streets/names.txt"))
            head.start_ray(head, num_cpus=0)
            for machine in others:
                machine.start_ray(head)
            run = Run(head, others, Path(name))
            found = {}
            if with_processes:
                found["process"] = [run.stood_still(lambda _, pid: os.kill(pid, signal.SIGKILL)) for _ in range(times)]
            found["machine"] = [run.stood_still(run.take_away) for _ in range(times)]
            Machine.signal(run.driver, signal.SIGTERM)
            try:
                run.driver.wait(timeout=120)
            except subprocess.TimeoutExpired:
                run.driver.kill()
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    own = measured({}, given.times, with_processes=True)
    quick = measured(QUICK, given.times, with_processes=False)
    print("| what dies | seconds until the next update | each |")
    print("| --- | --- | --- |")
    for what, found in (
        ("a rank's process", own["process"]),
        ("a machine, Ray's own patience", own["machine"]),
        ("a machine, a quick head", quick["machine"]),
    ):
        print(f"| {what} | {statistics.median(found):.0f} | {', '.join(f'{one:.0f}' for one in found)} |")


if __name__ == "__main__":
    main()
