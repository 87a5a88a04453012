"""`segdist compare`: who is better, whether it is more than chance, and what does not compare at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import slow_scores

from segdist.errors import UserError
from segdist.evaluation.bootstrap import bootstrap_difference
from segdist.evaluation.compare import compare
from segdist.runs.record import to_json

NAMES = ["sky", "road", "car", "never"]


def report(right: float, num: int = 60, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The report of a model that is right with this probability, on pictures of three of the four classes."""
    data, noise = np.random.default_rng(1), np.random.default_rng(seed)
    masks = [data.choice([0, 1, 2, 255], 200, p=[0.4, 0.3, 0.2, 0.1]) for _ in range(num)]
    preds = [np.where(noise.random(200) < right, m % 255, (m + 1) % 3) for m in masks]
    hit, true, predicted = slow_scores.areas(preds, masks, 255)
    iou = [slow_scores.ratio(hit[k], true[k] + predicted[k] - hit[k]) for k in range(4)]
    counts = []
    for pred, mask in zip(preds, masks):
        parts = slow_scores.areas([pred], [mask], 255)
        counts.append({str(k): [part[k] for part in parts] for k in range(4) if parts[1][k] + parts[2][k]})
    tree = {
        "miou": slow_scores.mean(np.array(iou)),
        "iou": dict(zip(NAMES, iou)),
        "num_samples": num,
        "protocol": "whole / fp32",
        "checkpoint": f"runs/{right}",
        "checkpoint_digest": f"digest of {right}",
        "data": "data/streets",
        "split": "val",
        "data_digest": "d" * 64,
        "pictures": {"sample_ids": [f"p{i}" for i in range(num)], "counts": counts},
    }
    return {k: v for k, v in {**tree, **changes}.items() if v is not ...}


def write(folder: Path, name: str, tree: Any) -> str:
    path = folder / f"{name}.json"
    path.write_text(to_json(tree) if isinstance(tree, dict) else tree, encoding="utf-8")
    return str(path)


def compared(folder: Path, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return compare(write(folder, "a", a), write(folder, "b", b))


def test_the_better_model_is_named_with_its_interval(tmp_path: Path) -> None:
    worse, better = report(0.7), report(0.8, seed=1)
    got = compared(tmp_path, worse, better)
    difference = better["miou"] - worse["miou"]
    assert got["verdict"] == "B"
    assert got["miou"] == {"a": worse["miou"], "b": better["miou"], "difference": difference}
    low, high = got["interval"]["low"], got["interval"]["high"]
    assert 0 < low < difference < high
    assert got["sentence"] == f"B is better by {difference:.4f} (95% confidence interval {low:.4f} to {high:.4f})."
    assert got["iou"]["road"]["difference"] == pytest.approx(better["iou"]["road"] - worse["iou"]["road"])
    assert math.isnan(got["iou"]["never"]["difference"])
    back = compared(tmp_path, better, worse)
    assert back["verdict"] == "A"
    assert back["sentence"] == got["sentence"].replace("B is", "A is")


def test_two_of_the_same_quality_have_no_clear_difference(tmp_path: Path) -> None:
    got = compared(tmp_path, report(0.7), report(0.7, seed=2, checkpoint_digest="other"))
    assert got["verdict"] == "none"
    assert got["sentence"].startswith("No clear difference: B - A is ")
    assert got["interval"]["low"] <= 0 <= got["interval"]["high"]
    same = compared(tmp_path, report(0.7), report(0.7))
    assert same["verdict"] == "none"
    assert same["sentence"].endswith("Both are the same checkpoint.")


def test_pictures_are_matched_by_their_names_not_by_their_order(tmp_path: Path) -> None:
    a, b = report(0.7), report(0.72, seed=1)
    shuffled = json.loads(json.dumps(b))
    order = np.random.default_rng(3).permutation(60).tolist()
    shuffled["pictures"] = {key: [b["pictures"][key][i] for i in order] for key in b["pictures"]}
    assert compared(tmp_path, a, shuffled)["interval"] == compared(tmp_path, a, b)["interval"]
    dense = [
        np.array(
            [
                [row.get(str(k), [0, 0, 0])[part] for k in range(4)]
                for row in tree["pictures"]["counts"]
                for part in range(3)
            ]
        )
        for tree in (a, b)
    ]
    want = bootstrap_difference(dense[0].reshape(60, 3, 4), dense[1].reshape(60, 3, 4), 2000)
    got = compared(tmp_path, a, b)["interval"]
    assert (got["low"], got["high"]) == (want.low, want.high)


def test_without_pictures_in_both_no_verdict_is_given(tmp_path: Path) -> None:
    for a, b in ((report(0.7, pictures=...), report(0.8)), (report(0.7), report(0.8, pictures=None))):
        got = compared(tmp_path, a, b)
        assert (got["verdict"], got["interval"]) == ("unknown", None)
        assert "B's mIoU is higher by" in got["sentence"]
        assert "--pictures" in got["sentence"]


def test_few_pictures_are_said_to_be_few(tmp_path: Path) -> None:
    assert "only 5 samples" in compared(tmp_path, report(0.5, num=5), report(0.9, num=5))["sentence"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_digest": "e" * 64}, "data digests"),
        ({"split": "test"}, "--split"),
        ({"protocol": "sliding / fp32"}, "protocols differ"),
        ({"iou": {"sky": 0.1, "road": 0.1, "bus": 0.1, "never": None}, "pictures": None}, "'bus'|'car'"),
        ({"iou": {"road": 0.1, "sky": 0.1, "car": 0.1, "never": None}, "pictures": None}, "their order"),
        ({"data_digest": ...}, "data_digest"),
        ({"miou": None}, "nothing to compare"),
        ({"miou": 0.5}, "do not add up"),
    ],
    ids=lambda v: str(list(v)) if isinstance(v, dict) else "",
)
def test_what_does_not_compare_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        compared(tmp_path, report(0.7), report(0.8, **change))
    with pytest.raises(UserError, match=says):
        compared(tmp_path, report(0.8, **change), report(0.7))


def test_pictures_that_are_not_the_same_or_damaged_are_refused(tmp_path: Path) -> None:
    a, b = report(0.7), report(0.8)
    b["pictures"]["sample_ids"][3] = "elsewhere"
    with pytest.raises(UserError, match="'elsewhere' is in only one"):
        compared(tmp_path, a, b)
    for damage in ({"sample_ids": ["p0"] * 60}, {"sample_ids": ["p0"]}, {"counts": [{"7": [1, 1, 1]}] * 60}):
        broken = report(0.8)
        broken["pictures"] |= damage
        with pytest.raises(UserError, match="do not add up"):
            compared(tmp_path, a, broken)


BOUNDARY: dict[str, Any] = {
    "mean_boundary_iou": 0.4,
    "boundary_iou": {"sky": 0.2, "road": 0.6, "car": 0.4, "never": None},
}
HIGHER: dict[str, Any] = {
    "mean_boundary_iou": 0.5,
    "boundary_iou": {"sky": 0.1, "road": 0.8, "car": 0.6, "never": None},
}


def test_boundary_iou_is_compared_where_both_have_it(tmp_path: Path) -> None:
    got = compared(tmp_path, report(0.7, **BOUNDARY), report(0.8, **HIGHER))
    assert got["mean_boundary_iou"] == {"a": 0.4, "b": 0.5, "difference": pytest.approx(0.1)}
    assert list(got["boundary_iou"]) == NAMES
    assert got["boundary_iou"]["sky"]["difference"] == pytest.approx(-0.1)
    assert math.isnan(got["boundary_iou"]["never"]["difference"])
    for a, b in ((report(0.7, **BOUNDARY), report(0.8)), (report(0.7), report(0.8, **BOUNDARY))):
        assert not {"boundary_iou", "mean_boundary_iou"} & set(compared(tmp_path, a, b))


@pytest.mark.parametrize(
    "damage",
    [
        {"mean_boundary_iou": 0.45},
        {"mean_boundary_iou": None},
        {"boundary_iou": {"sky": 0.2, "road": 0.6, "bus": 0.4, "never": None}},
        {"boundary_iou": {"sky": 0.2, "road": 0.6, "car": 0.4}},
    ],
)
def test_a_boundary_iou_that_is_not_of_its_report_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    broken = report(0.8, **(BOUNDARY | damage))
    with pytest.raises(UserError, match=r"b\.json: its Boundary IoU"):
        compared(tmp_path, report(0.7, **BOUNDARY), broken)


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"miou": "high"}', "null"])
def test_a_file_that_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"b\.json: not a report"):
        compare(write(tmp_path, "a", report(0.7)), write(tmp_path, "b", text))
    with pytest.raises(UserError, match=r"none\.json"):
        compare(str(tmp_path / "none.json"), str(tmp_path / "none.json"))


def test_the_command_prints_a_table_a_sentence_and_json(tmp_path: Path) -> None:
    a = write(tmp_path, "a", report(0.7, **BOUNDARY))
    b = write(tmp_path, "b", report(0.8, split="test"))
    command = ["-m", "segdist", "compare"]
    done = forks.run([*command, a, a, "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "none"
    assert "No clear difference" in done.stderr
    assert "road" in done.stderr
    assert "absent" in done.stderr
    assert "boundary B" in done.stderr
    assert "0.6000" in done.stderr
    refused = forks.run([*command, a, b])
    assert refused.returncode == 2
    assert "--split" in refused.stderr
