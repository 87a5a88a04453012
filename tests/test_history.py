"""The history of a run: what the records say, as rows, files and curves."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageColor
from typer.testing import CliRunner

from segdist.cli import app
from segdist.config import Config
from segdist.distributed import World
from segdist.errors import UserError
from segdist.evaluation import figures
from segdist.runs import history, segments
from segdist.train.loop import fit

ALONE = World(0, 1, torch.device("cpu"))


def train(step: int, loss: float | None) -> dict[str, Any]:
    return {"step": step, "kind": "train", "loss": loss, "lr": step / 100, "epoch": step / 10, "images_per_second": 5.0}


def scored(step: int, miou: float) -> dict[str, Any]:
    means = {"overall_accuracy": 0.9, "mean_accuracy": 0.8, "mean_dice": 0.7}
    return {"step": step, "kind": "eval", "loss": 0.5, "miou": miou, **means}


ROWS = [
    train(10, 4.0),
    train(20, 2.0),
    scored(20, 0.3),
    train(25, 1.0),
    train(40, 2.0),
    scored(40, 0.4),
    train(50, 1.0),
]


def test_a_row_is_an_evaluation_with_the_mean_loss_of_the_steps_before_it() -> None:
    first, second, last = history.history(reversed(ROWS))
    assert first == {
        "step": 20, "epoch": 2.0, "lr": 0.2, "loss": 3.0, "val_loss": 0.5, "accuracy": 0.9, "mean_accuracy": 0.8,
        "f1": 0.7, "miou": 0.3, "images_per_second": 5.0,
    }  # fmt: skip
    assert second["loss"] == pytest.approx((5 * 1.0 + 15 * 2.0) / 20)
    assert (last["step"], last["loss"], last["miou"]) == (50, 1.0, None)


def test_all_records_have_a_row_each() -> None:
    table = history.history(ROWS, every=True)
    assert [row["step"] for row in table] == [10, 20, 25, 40, 50]
    assert [row["loss"] for row in table] == [4.0, 2.0, 1.0, 2.0, 1.0]
    assert [row["miou"] for row in table] == [None, 0.3, None, 0.4, None]


def test_numbers_that_are_not_known_are_empty_cells() -> None:
    table = history.history([train(10, None), scored(10, 0.5) | {"miou": None}])
    assert table[0]["loss"] is None
    lines = list(csv.DictReader(history.text(table, ".tsv").splitlines(), delimiter="\t"))
    assert lines[0]["loss"] == lines[0]["miou"] == ""
    assert json.loads(history.text(table, ".json"))[0]["loss"] is None


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    segments.write_metrics(str(tmp_path), 1, 1, [train(10, 4.0), train(20, 9.0), scored(20, 0.1)])
    segments.write_metrics(str(tmp_path), 2, 1, [train(20, 2.0), scored(20, 0.3)])
    (row,) = history.history(history.records(str(tmp_path)))
    assert (row["loss"], row["miou"]) == (3.0, 0.3)


def test_a_folder_without_metrics_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no metrics"):
        history.records(str(tmp_path / "nothing"))


def test_the_command_writes_what_training_recorded(make_config: Callable[..., Config], tmp_path: Path) -> None:
    cfg = make_config(train={"num_steps": 6})
    fit(cfg, ALONE)
    run, table, plot = cfg.run.uri, tmp_path / "h.tsv", tmp_path / "h.png"
    done = CliRunner().invoke(app, ["history", run, "--out", str(table), "--plot", str(plot), "--json"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    evaluated = [row for row in segments.read_metrics(run) if row["kind"] == "eval"]
    assert [float(row["miou"]) for row in rows] == [row["miou"] for row in evaluated]
    assert [float(row["f1"]) for row in rows] == [row["mean_dice"] for row in evaluated]
    assert float(rows[0]["epoch"]) == pytest.approx(2 / 3)  # of 15 samples in batches of 4
    assert json.loads(done.stdout.splitlines()[-1])["history"][2]["step"] == 6
    assert plot.read_bytes().startswith(b"\x89PNG")
    for wrong in (["--out", "h.xlsx"], ["--plot", "h.jpg"]):
        assert isinstance(CliRunner().invoke(app, ["history", run, *wrong]).exception, UserError)


def test_a_learning_curve_has_each_line_that_was_recorded() -> None:
    picture = np.asarray(figures.learning_curve(ROWS, "run"))
    for _, _, _, ink in (line for lines in figures._PANELS.values() for line in lines):
        assert (picture == ImageColor.getrgb(ink)).all(2).any(), ink
    training_alone = np.asarray(figures.learning_curve([train(10, 4.0), train(20, 2.0)]))
    assert not (training_alone == (213, 94, 0)).all(2).any()  # no validation
    with pytest.raises(UserError, match="no steps yet"):
        figures.learning_curve([])


@pytest.mark.parametrize("losses", [[1.0], [0.0, 0.0], [1e-9, 1e9], [None, 1.0], [math.inf, 1.0]])
def test_odd_losses_are_drawn_too(losses: list[float | None]) -> None:
    rows = [train(10 * (i + 1), loss) for i, loss in enumerate(losses)]
    assert figures.learning_curve(rows).width > 500


def test_one_spike_does_not_flatten_the_rest_of_a_curve() -> None:
    assert figures._upper_limit([1.0] * 100 + [1e9]) == pytest.approx(1.05)
    assert figures._upper_limit([1.0, 2.0]) == pytest.approx(2.1)
    assert figures._upper_limit([]) == figures._upper_limit([0.0]) == 1.0
