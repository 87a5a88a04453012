"""Real torchrun, real gloo, real DeepSpeed: every strategy walks one loss curve, and a run may change between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SEGFORMER, UNET, tree

from segdist import record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 60
BAND = 1e-3  # of the losses over STEPS steps, relative; what addition in another order moves is below 1e-4
ZERO = {f"zero{n}": {"strategy": "deepspeed", "zero_stage": n} for n in (1, 2, 3)}
OFFLOAD = {"strategy": "deepspeed", "zero_stage": 2, "zero_offload": True}


def run_of(data: str, folder: Path, name: str, /, **train: Any) -> dict[str, Any]:
    """A run of three groups per step, so that two ranks have two and one, of a model without BatchNorm's noise."""
    sections = {"num_steps": STEPS, "global_batch_size": 6, "micro_batch_size": 2, **train}
    every = {"every_steps": STEPS}
    return tree(data, str(folder / name), train=sections, eval=every, checkpoint=every)


def launch(num_ranks: int, items: list[dict[str, Any]], folder: Path) -> None:
    """Trains the items on so many ranks."""
    plan = folder / f"plan{len(list(folder.glob('plan*')))}.json"
    plan.write_text(json.dumps([{"stop": None, "wrong": None, **item} for item in items]), encoding="utf-8")
    program = [str(Path(__file__).with_name("ranks_program.py")), "curves", str(plan), ""]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": str(Path(sys.executable).parent)}  # no compiler
    done = subprocess.run(
        [sys.executable, *torchrun, *program], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: dict[str, Any]) -> list[float]:
    return [row["loss"] for row in record.read_metrics(run["run"]["uri"]) if row["kind"] == "train"]


def apart(curve: list[float], other: list[float]) -> float:
    """The largest relative distance of two loss curves."""
    assert len(curve) == len(other)
    return max(abs(a - b) / b for a, b in zip(curve, other))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def curve(street_data: str, folder: Path) -> list[float]:
    """Losses of the run under `exact` on one rank."""
    run = run_of(street_data, folder, "exact", strategy="exact")
    launch(1, [{"name": "exact", "tree": run}], folder)
    return losses(run)


def test_every_strategy_walks_the_same_curve_and_wrong_divisors_do_not(
    street_data: str, folder: Path, curve: list[float]
) -> None:
    right = {"ddp": {"strategy": "ddp"}, **ZERO, "offload": OFFLOAD}
    wrong = {"not times ranks", "mean per group"}
    runs = {name: run_of(street_data, folder, name, **train) for name, train in right.items()}
    runs |= {name: run_of(street_data, folder, name, strategy="ddp") for name in wrong}
    launch(2, [{"name": n, "tree": t, "wrong": n if n in wrong else None} for n, t in runs.items()], folder)
    distance = {name: apart(losses(run), curve) for name, run in runs.items()}
    assert all(distance[name] < BAND for name in right), distance
    assert all(distance[name] > 3 * BAND for name in wrong if name != "mean per group"), distance


@pytest.mark.parametrize("model", [SEGFORMER, UNET], ids=lambda m: m["name"])
def test_a_run_goes_on_under_another_strategy_on_other_ranks(street_data: str, folder: Path, model: dict) -> None:
    """ZeRO-3 on two ranks, then DDP on one, then ZeRO-1 on three, then exact on two."""
    name = f"changing {model['name']}"

    def part(**train: Any) -> dict[str, Any]:
        return run_of(street_data, folder, name, **{"num_steps": 12, **train}) | {"model": model}

    stages = [(2, ZERO["zero3"]), (1, {"strategy": "ddp"}), (3, ZERO["zero1"]), (2, {"strategy": "exact"})]
    for num_ranks, train in stages:
        stop = 3 if train["strategy"] != "exact" else None
        launch(num_ranks, [{"name": name, "tree": part(**train), "stop": stop}], folder)
    still = part(strategy="exact") | {"run": {"uri": str(folder / f"still {model['name']}")}}
    launch(1, [{"name": "still", "tree": still}], folder)
    band = 2e-2 if model is UNET else BAND  # BatchNorm over few pixels amplifies rounding
    assert apart(losses(part()), losses(still)) < band
    state = record.load(part()["run"]["uri"])
    assert state is not None and state["state"] == "SUCCEEDED" and state["step"] == 12
