"""Real torchrun, real gloo: 1, 2, 3 and 4 ranks are one run.

Under `exact` the weights, buffers, losses and pair tables are equal bit for bit; under `ddp` the loss stays in a band; in
a float64 model the formula agrees to 1e-9, whoever adds. Micro-batches are spread unevenly (four over three ranks), void
is too, SegFormer has dropout and drop path, U-Net has BatchNorm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SEGFORMER, UNET, tree
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RANKS = (1, 2, 3, 4)
STEPS = 5
DDP_LOSS_BAND = {
    "segformer": 1e-4,
    "unet": 2e-2,
}  # fp32 addition order alone; a wrong divisor moves losses by 1e-1 and more
Outcome = tuple[dict[str, torch.Tensor], dict[str, Any]]


def launch(num_ranks: int, mode: str, plan: list[dict[str, Any]], folder: Path) -> dict[str, Outcome]:
    """Runs the plan on so many ranks; (state, results) by name."""
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    program = [str(Path(__file__).with_name("ranks_program.py")), mode, str(folder / "plan.json"), str(folder)]
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)] if num_ranks > 1 else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, *program], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        item["name"]: (
            load_file(folder / f"{item['name']}.safetensors"),
            json.loads((folder / f"{item['name']}.json").read_text(encoding="utf-8")),
        )
        for item in plan
    }


def plan_of(data: str, folder: Path, strategies: tuple[str, ...]) -> list[dict[str, Any]]:
    plan = []
    for model in (SEGFORMER, UNET):
        for strategy in strategies:
            name = f"{model['name']}-{strategy}"
            train = {"num_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2, "strategy": strategy}
            run = tree(
                data,
                str(folder / f"run-{name}"),
                model=model,
                train=train,
                eval={"every_steps": 5, "batch_size": 2},
                checkpoint={"every_steps": 5},
            )
            plan.append({"name": name, "tree": run})
    return plan


@pytest.fixture(scope="module")
def outcomes(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Outcome]]:
    root = tmp_path_factory.mktemp("ranks")
    return {
        n: launch(n, "main", plan_of(street_data, root / f"on{n}", ("exact", "ddp")), root / f"on{n}") for n in RANKS
    }


@pytest.mark.parametrize("num_ranks", RANKS[1:])
@pytest.mark.parametrize("model", ["segformer", "unet"])
def test_exact_gives_the_same_bits_on_any_number_of_ranks(
    outcomes: dict[int, dict[str, Outcome]], model: str, num_ranks: int
) -> None:
    (one, about_one), (many, about_many) = outcomes[1][f"{model}-exact"], outcomes[num_ranks][f"{model}-exact"]
    assert one.keys() == many.keys()
    for name in one:
        assert torch.equal(one[name], many[name]), name
    assert about_one["losses"] == about_many["losses"]
    assert about_one["table"] == about_many["table"]
    assert sum(about_one["table"]) == 5 * 32 * 48


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("model", ["segformer", "unet"])
def test_ddp_stays_in_a_band_of_the_exact_loss(
    outcomes: dict[int, dict[str, Outcome]], model: str, num_ranks: int
) -> None:
    exact, ddp = (outcomes[n][f"{model}-{s}"][1]["losses"] for n, s in ((1, "exact"), (num_ranks, "ddp")))
    assert len(exact) == STEPS
    assert ddp == pytest.approx(exact, rel=DDP_LOSS_BAND[model])


def test_the_formula_in_float64_is_the_same_on_any_ranks_and_strategies(street_data: str, tmp_path: Path) -> None:
    outcome = {
        n: launch(n, "formula", plan_of(street_data, tmp_path / f"on{n}", ("exact", "ddp")), tmp_path / f"on{n}")
        for n in (1, 3)
    }
    for model in ("segformer", "unet"):
        one, about_one = outcome[1][f"{model}-exact"]
        for n, strategy in ((1, "ddp"), (3, "exact"), (3, "ddp")):
            many, about_many = outcome[n][f"{model}-{strategy}"]
            assert about_many["losses"] == pytest.approx(about_one["losses"], rel=1e-9)
            for name in one:
                assert torch.allclose(many[name], one[name], rtol=1e-9, atol=1e-9), (model, n, strategy, name)
