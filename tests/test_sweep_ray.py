"""Sweeps on a real Ray, one machine: killed and launched again, stopped, judged, failing. Runs and sweep.json are the truth.

Ray and the trials' processes share two cores, so these tests are slow; each starts as few trials as it can. One of them
starts a Ray of its own, as `segdist tune` does without a cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
import store as stores
import torch
import yaml
from conftest import tree
from ray_head import Head

from segdist import config, storage
from segdist.distributed import World
from segdist.runs import checkpoints, record, snapshot
from segdist.sweep import ledger, plan
from segdist.sweep.ledger import FAILED, STOPPED, SUCCEEDED, Trial
from segdist.train.loop import fit

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
SIX = {"train": {"num_steps": 6}, "eval": {"every_steps": 2, "num_previews": 0}, "optim": {"warmup_steps": 0}}


@pytest.fixture(scope="module")
def store(street_data: str) -> Iterator[str]:
    """A bucket of an S3 server, which this process uses too; the data set is in it."""
    with stores.serving("tests", forks.python()):
        stores.copy(street_data, "s3://tests/data")
        yield "s3://tests"


class Running:
    """A `segdist tune` that runs."""

    def __init__(self, on: Head | None, file: Path, *overrides: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | (on.environment if on else {})
        self.process = subprocess.Popen(
            [forks.python(), "-m", "segdist", "tune", str(file), *overrides, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.said: list[str] = []

    def hear(self, pattern: str, times: int = 1) -> None:
        """Reads on until so many lines have said that. It may have ended before."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.said.append(line)
            times -= re.search(pattern, line) is not None
            if times <= 0:
                return

    def end(self, code: int = 0) -> tuple[dict[str, Any], str]:
        """(the JSON, everything people saw)."""
        out, err = self.process.communicate(timeout=600)
        said = "".join(self.said) + err
        assert self.process.returncode == code, said
        assert "Traceback" not in said
        return json.loads(out) if out else {}, said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Write = Callable[..., Path]


@pytest.fixture
def write(street_data: str, tmp_path: Path) -> Write:
    """write(uri=..., space=...) -> the file of a sweep of small runs, all to be told apart by their learning rates."""

    def write(base: dict[str, Any] | None = None, data: str = street_data, **fields: Any) -> Path:
        sections = {**SIX, **(base or {})}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree(data, "unused", **sections)), encoding="utf-8")
        asked = {"uri": str(tmp_path / "sweep"), "config": "base.yaml", "confirm": {"num_best": 0}, **fields}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
        return tmp_path / "sweep.yaml"

    return write


@pytest.fixture
def tune(head: Head) -> Iterator[Callable[..., Running]]:
    """tune(file, override, ...) -> `segdist tune` on the cluster; with on=None, on a Ray of its own."""
    begun: list[Running] = []

    def tune(file: Path, *overrides: str, on: Head | None = head) -> Running:
        begun.append(Running(on, file, *overrides))
        return begun[-1]

    yield tune
    for one in begun:
        with contextlib.suppress(ProcessLookupError):
            one.process.kill()


def alone(cfg: config.Config, run: Path) -> str:
    """The same run, without a sweep."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    fit(config.update_section(cfg, "run", {"uri": str(run)}), World(0, 1, torch.device("cpu")))
    torch.set_num_threads(before)
    return str(run)


def assert_same_bits(run: str, other: str) -> None:
    ours, theirs = (snapshot.load_model(checkpoints.committed(uri)[0]) for uri in (run, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def trials_of(uri: str) -> dict[str, Trial]:
    return {trial.id: trial for trial in ledger.read(uri)[1]}


@pytest.mark.parametrize(
    ("rates", "kills"),
    [  # only one of the rates can work
        ([1e-9, 5e-3, 1e-8], ((r"^trial \d{4}", 4),)),
        pytest.param(
            [1e-9, 1e-8, 5e-3, 1e-7], ((r"^trial \d{4}", 5), (r"^trial 000\d-seed", 2)), marks=pytest.mark.long
        ),  # in the search, and in what confirms it
    ],
    ids=["once", "twice"],
)
def test_a_sweep_whose_driver_is_killed_goes_on_and_loses_nothing(
    write: Write,
    tune: Callable[..., Running],
    store: str,
    tmp_path: Path,
    rates: list[float],
    kills: tuple[tuple[str, int], ...],
) -> None:
    uri = f"{store}/sweep-{len(kills)}"
    file = write(uri=uri, data=f"{store}/data", space={"optim.lr": {"grid": rates}}, confirm={"num_best": 1})
    rng, done = random.Random(), dict[str, int]()
    for words, most in kills:
        one = tune(file)
        one.hear(words, rng.randint(1, most))
        time.sleep(rng.uniform(0, 1))
        one.kill()
        known = ledger.load(uri)
        assert known is not None
        done |= {
            trial["id"]: record.newest_attempt(f"{uri}/{trial['run']}")
            for trial in known["trials"]
            if trial["state"] == SUCCEEDED
        }
    summary, said = tune(file).end()
    trials = trials_of(uri)
    assert summary["state"] == SUCCEEDED and summary["best_values"] == {"optim.lr": 5e-3}, (done, said)
    assert [trial.values["optim.lr"] for trial in trials.values()] == [*rates, 5e-3]
    for trial in trials.values():
        assert (trial.state, [score.step for score in trial.scores]) == (SUCCEEDED, [2, 4, 6])
    assert {id: record.newest_attempt(f"{uri}/{trials[id].run}") for id in done} == done  # none was run again
    attempts = {id: record.newest_attempt(f"{uri}/{trial.run}") for id, trial in trials.items()}
    often = max(attempts, key=lambda id: attempts[id])
    cfg = plan.read(str(file)).config(trials[often].values, "", trials[often].seed)
    assert_same_bits(f"{uri}/{trials[often].run}", alone(cfg, tmp_path / "alone"))
    assert config.loads(storage.read(f"{uri}/best.yaml"), "best.yaml").optim.lr == 5e-3
    again, said = tune(file).end()
    assert "is finished. Nothing to do" in said and again["best_score"] == summary["best_score"]


@pytest.mark.long
def test_a_population_really_exploits(write: Write, tune: Callable[..., Running], tmp_path: Path) -> None:
    file = write(
        base={
            "train": {"num_steps": 16},
            "checkpoint": {"every_steps": 2, "keep_last": 50},
            "optim": {"warmup_steps": 0, "schedule": "constant"},
            "scale": {"device": "cpu", "cpu_threads": 1, "cpus_per_rank": 0.5},
        },
        space={"optim.lr": {"choice": [1e-9, 3e-3]}},  # two, of which one is the worse whoever comes first
        scheduler={"name": "pbt", "quantile": 0.5},
        budget={"num_trials": 2},
    )
    summary, _ = tune(file).end()
    uri = summary["sweep_uri"]
    facts, trials = ledger.read(uri)
    assert facts["exploits"], "no trial went on from another's weights"
    assert all(trial.state == SUCCEEDED and trial.step == 16 for trial in trials)
    exploit = facts["exploits"][-1]
    loser = trials_of(uri)[exploit["trial"]]
    assert exploit["from"] != loser.id and loser.run.startswith(f"trials/{loser.id}-from-{exploit['from']}-step-")
    assert loser.values == exploit["values"] and loser.offset == exploit["step"] and loser.parent
    asked = plan.read(str(file))
    rest = asked.continued(asked.config(loser.values, ""), loser.offset, loser.parent)
    assert_same_bits(f"{uri}/{loser.run}", alone(rest, tmp_path / "alone"))
    best = max(trials, key=lambda trial: trial.best("miou") or 0)
    assert summary["best_trial"] == best.id


def test_one_failure_is_a_result_and_the_same_failure_of_all_ends_a_sweep(
    write: Write, tune: Callable[..., Running]
) -> None:
    file = write(space={"optim.lr": {"grid": [1e30, 5e-3, 1e29]}}, scheduler={"name": "asha"})
    summary, said = tune(file).end()
    trials = trials_of(summary["sweep_uri"])
    assert [trial.state for trial in trials.values()] == [FAILED, SUCCEEDED, FAILED]
    assert all("Training diverged" in (trial.reason or "") for trial in trials.values() if trial.state == FAILED)
    assert "trial 0000 FAILED" in said and summary["best_trial"] == "0001"

    uri = f"{summary['sweep_uri']}-2"
    rates = [1e30, 1e29, 1e28, 1e27, 1e26, 1e25]
    file = write(uri=uri, space={"optim.lr": {"grid": rates}}, max_concurrent=1)  # nothing runs when it is said to stop
    _, said = tune(file).end(2)
    assert re.search("trials so far failed in the same way: Training diverged", said)
    states = [trial.state for trial in trials_of(uri).values()]
    assert states.count(FAILED) >= 3 and len(states) < 6


def first_metrics(run: Path, attempt: int) -> None:
    """Waits until an attempt at a run has written some."""
    until = time.monotonic() + 240
    while not any(name.startswith(f"{attempt:04d}-") for name in storage.names(str(run / "metrics"))):
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_stopped_sweep_commits_where_it_is_and_goes_on(
    write: Write, tune: Callable[..., Running], tmp_path: Path, num_ranks: int
) -> None:
    rare = {"every_steps": 100_000}
    base = {"train": {"num_steps": 100_000}, "eval": {**rare, "num_previews": 0}, "checkpoint": rare}
    scale = {"launcher": "ray", "num_ranks": num_ranks, "device": "cpu", "cpu_threads": 1}
    file = write(base={**base, "scale": scale, "log": {"every_steps": 1}}, space={"optim.lr": {"grid": [5e-3]}})
    run = tmp_path / "sweep" / "trials" / "0000"
    reached = []
    for attempt in (1, 2):
        one = tune(file)
        first_metrics(run, attempt)
        one.process.send_signal(signal.SIGINT)
        one.end(75)
        (waits,) = trials_of(str(tmp_path / "sweep")).values()
        known = record.load(str(run))
        assert waits.state == ledger.WAITING and known is not None and known["state"] == record.PREEMPTED
        step = checkpoints.step_of(checkpoints.committed(str(run))[0])
        assert step == known["step"] > 0
        reached.append(step)
    assert reached[0] < reached[1]
    assert record.newest_attempt(str(run)) == 2


@pytest.mark.long
def test_weak_trials_of_two_ranks_end_early_and_keep_what_they_reached(
    write: Write, tune: Callable[..., Running], tmp_path: Path
) -> None:
    two = {"launcher": "ray", "num_ranks": 2, "device": "cpu", "cpu_threads": 1, "cpus_per_rank": 1}
    file = write(  # one at a time, so that the weak trial reaches step 4 second
        base={"scale": two}, space={"optim.lr": {"grid": [5e-3, 1e-9]}}, scheduler={"name": "asha", "grace_steps": 4},
        max_concurrent=1,
    )  # fmt: skip
    summary, said = tune(file).end()
    uri = summary["sweep_uri"]
    first, second = trials_of(uri).values()
    assert (first.state, second.state) == (SUCCEEDED, STOPPED), said
    assert second.reason == "by asha, after step 4"
    # the verdict held for the next step
    assert checkpoints.step_of(checkpoints.committed(f"{uri}/{second.run}")[0]) == 5
    known = record.load(f"{uri}/{second.run}")
    assert known is not None and known["state"] == record.PREEMPTED
    cfg = config.update_section(
        plan.read(str(file)).config(first.values, ""), "scale", {"launcher": "local", "num_ranks": 1}
    )
    assert_same_bits(f"{uri}/{first.run}", alone(cfg, tmp_path / "alone"))


def test_hyperband_pauses_and_goes_on(write: Write, tune: Callable[..., Running]) -> None:
    file = write(  # of four steps: a bracket of three trials that go to the end, and one of three that halves at step 2
        base={"train": {"num_steps": 4}},
        space={"optim.lr": {"grid": [1e-9, 2e-9, 3e-9, 1e-8, 5e-3, 2e-8]}},
        scheduler={"name": "hyperband", "reduction_factor": 2.0},
    )
    summary, said = tune(file).end()
    trials = trials_of(summary["sweep_uri"])
    assert summary["best_values"] == {"optim.lr": 5e-3}, said
    assert {trial.state for trial in trials.values()} == {SUCCEEDED, STOPPED}
    assert any(record.newest_attempt(f"{summary['sweep_uri']}/{trial.run}") > 1 for trial in trials.values())


@pytest.mark.long
def test_a_budget_of_time_ends_a_sweep_which_a_greater_one_continues(
    write: Write, tune: Callable[..., Running]
) -> None:
    file = write(space={"optim.lr": {"grid": [5e-3, 1e-9]}}, budget={"hours": 1e-6}, max_concurrent=1)
    summary, said = tune(file).end()
    assert "the budget of 1e-06 hours (budget.hours) is spent" in said and summary["state"] == SUCCEEDED
    summary, _ = tune(file, "budget.hours=1", on=None).end()
    assert summary["trials"] == {SUCCEEDED: 2}
