"""Real gloo: 1, 2, 3 and 4 ranks are one run (1 and 3 in every test run).

Under `exact` the weights, buffers, losses and pair tables are equal bit for bit; under `ddp` the loss stays in a band; in
a float64 model the formula agrees to 1e-9, whoever adds. Micro-batches are spread unevenly (four over three ranks), void
is too, SegFormer has dropout and drop path, both have BatchNorm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SEGFORMER, UNET, tree
from ranks import Outcome, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RANKS = [1, pytest.param(2, marks=pytest.mark.long), 3, pytest.param(4, marks=pytest.mark.long)]
STEPS = 3
STRATEGIES = ("exact", "ddp")
MICRO_BATCHES = (1, 2, 4, 8)
PLAIN = [
    pytest.param(size, n, marks=[pytest.mark.long] if n in (2, 4) else [])
    for size in MICRO_BATCHES
    for n in range(1, 5)
    if n * size <= 8
]
DDP_LOSS_BAND = {
    "segformer": 1e-4,
    "unet": 2e-2,
}  # addition in another order, which BatchNorm over few pixels amplifies


def run_of(data: str, folder: Path, name: str, /, **sections: Any) -> dict[str, Any]:
    """A run of eight images per step, which is scored at its end."""
    train = {"num_steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2, **sections.pop("train", {})}
    every = {"eval": {"every_steps": train["num_steps"], "batch_size": 2}, "checkpoint": {"every_steps": 5}}
    return tree(data, str(folder / f"run-{name}"), train=train, **every, **sections)


def plan_of(data: str, folder: Path, num_ranks: int) -> list[dict[str, Any]]:
    """Every run that is compared over ranks, and each strategy's formula."""
    plan = []
    for model in (SEGFORMER, UNET):
        for strategy in STRATEGIES:
            name = f"{model['name']}-{strategy}"
            run = run_of(data, folder, name, model=model, train={"strategy": strategy})
            plan += [{"name": name, "tree": run}, {"name": f"{name}-formula", "tree": run, "formula": "whole"}]
    for size in MICRO_BATCHES:
        if num_ranks <= 8 // size:
            run = run_of(data, folder, "plain", train={"micro_batch_size": size})
            plan.append({"name": f"plain-{size}", "tree": run, "formula": "plain"})
    return plan


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def outcomes_on(street_data: str, root: Path) -> Callable[[int], dict[str, Outcome]]:
    """What came of the plan on so many ranks, once each."""

    @functools.cache
    def outcomes_on(num_ranks: int) -> dict[str, Outcome]:
        folder = root / f"on{num_ranks}"
        return launch(num_ranks, plan_of(street_data, folder, num_ranks), folder)

    return outcomes_on


def assert_equal(one: Outcome, many: Outcome) -> None:
    assert one[0].keys() == many[0].keys()
    for name in one[0]:
        assert torch.equal(one[0][name], many[0][name]), name
    assert one[1] == many[1]


@pytest.mark.parametrize("num_ranks", RANKS[1:])
@pytest.mark.parametrize("model", ["segformer", "unet"])
def test_exact_gives_the_same_bits_on_any_number_of_ranks(
    outcomes_on: Callable[[int], dict[str, Outcome]], model: str, num_ranks: int
) -> None:
    assert_equal(outcomes_on(1)[f"{model}-exact"], outcomes_on(num_ranks)[f"{model}-exact"])
    assert sum(outcomes_on(1)[f"{model}-exact"][1]["table"]) == 5 * 32 * 48


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("model", ["segformer", "unet"])
def test_ddp_stays_in_a_band_of_the_exact_loss(
    outcomes_on: Callable[[int], dict[str, Outcome]], model: str, num_ranks: int
) -> None:
    exact, ddp = (outcomes_on(n)[f"{model}-{s}"][1]["losses"] for n, s in ((1, "exact"), (num_ranks, "ddp")))
    assert len(exact) == STEPS
    assert ddp == pytest.approx(exact, rel=DDP_LOSS_BAND[model])


def assert_close(one: Outcome, other: Outcome) -> None:
    assert other[1]["losses"] == pytest.approx(one[1]["losses"], rel=1e-9)
    for name in one[0]:
        assert torch.allclose(other[0][name], one[0][name], rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("model", ["segformer", "unet"])
def test_the_formula_in_float64_is_the_same_on_any_ranks_and_strategies(
    outcomes_on: Callable[[int], dict[str, Outcome]], model: str, num_ranks: int
) -> None:
    """With BatchNorm, dropout and drop path, which belong to a micro-batch."""
    for strategy in STRATEGIES:
        assert_close(outcomes_on(1)[f"{model}-exact-formula"], outcomes_on(num_ranks)[f"{model}-{strategy}-formula"])


@pytest.mark.parametrize(("size", "num_ranks"), PLAIN)
def test_without_batchnorm_and_dropout_the_micro_batch_does_not_matter_either(
    outcomes_on: Callable[[int], dict[str, Outcome]], size: int, num_ranks: int
) -> None:
    assert_close(outcomes_on(1)["plain-1"], outcomes_on(num_ranks)[f"plain-{size}"])


@pytest.mark.parametrize("model", [SEGFORMER, UNET], ids=lambda m: m["name"])
def test_ranks_may_come_and_go_under_exact_and_no_bit_changes(street_data: str, tmp_path: Path, model: dict) -> None:
    """Five steps on two ranks, the next five on three, with averaged weights and an encoder that is let in between."""
    whole = {
        "model": model,
        "train": {"num_steps": 10, "strategy": "exact"},
        "optim": {"ema_decay": 0.9, "freeze_encoder_steps": 6, "name": "sgd", "layer_decay": 0.9},
    }
    still = launch(1, [{"name": "still", "tree": run_of(street_data, tmp_path, "still", **whole)}], tmp_path / "still")
    moved = run_of(street_data, tmp_path, "moved", **whole)
    launch(2, [{"name": "moved", "tree": moved, "stop": 5}], tmp_path / "before")
    after = launch(3, [{"name": "moved", "tree": moved}], tmp_path / "after")
    assert len(after["moved"][1]["losses"]) == 10
    assert_equal(still["still"], after["moved"])


@pytest.mark.parametrize("num_ranks", RANKS[1:])
def test_previews_are_the_same_picture_on_any_number_of_ranks(
    outcomes_on: Callable[[int], dict[str, Outcome]], root: Path, num_ranks: int
) -> None:
    one, many = (root / f"on{n}" / "run-segformer-exact" / "previews" for n in (1, num_ranks))
    assert [p.name for p in sorted(many.iterdir())] == [f"step-{STEPS:08d}.png"]
    assert all((one / p.name).read_bytes() == p.read_bytes() for p in many.iterdir())
