from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.metric import pair_table, scores

CASES = json.loads((Path(__file__).parent / "data" / "mean_iou_reference.json").read_text(encoding="utf-8"))["cases"]


def table_of(preds: list[np.ndarray], masks: list[np.ndarray]) -> torch.Tensor:
    pairs = zip(preds, masks, strict=True)
    return sum(
        (pair_table(torch.from_numpy(p), torch.from_numpy(m)) for p, m in pairs),
        torch.zeros(256, 256, dtype=torch.int64),
    )


def same(a: float, b: float | None) -> bool:
    return math.isnan(a) if b is None else a == b


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_scores_are_those_of_evaluate_nan_for_nan(case: dict) -> None:
    preds, masks = ([np.array(x, np.uint8) for x in case[k]] for k in ("pred", "mask"))
    got, want = scores(table_of(preds, masks), case["num_classes"]), case["expected"]
    assert same(got.miou, want["mean_iou"])
    assert same(got.mean_accuracy, want["mean_accuracy"])
    assert same(got.overall_accuracy, want["overall_accuracy"])
    assert all(map(same, got.iou, want["per_category_iou"]))
    assert all(map(same, got.accuracy, want["per_category_accuracy"]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_any_split_of_pixels_merges_to_the_same_table(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    pred, mask = (rng.choice(np.array([0, 1, 2, 200, 255], np.uint8), 40) for _ in range(2))
    whole = table_of([pred], [mask])
    edges = [0, *sorted(cuts), 40]
    parts = [(pred[a:b], mask[a:b]) for a, b in zip(edges, edges[1:])]
    assert torch.equal(whole, table_of(*map(list, zip(*parts))))
    assert whole.sum() == 40


def test_a_perfect_predictor_scores_one_and_a_shifted_one_zero() -> None:
    mask = np.random.default_rng(0).integers(0, 5, (30, 40), dtype=np.uint8)
    assert scores(table_of([mask], [mask]), 5).miou == 1.0
    assert scores(table_of([(mask + 1) % 5], [mask]), 5).miou == 0.0


def test_by_hand() -> None:
    """Mask 0 0 1 void, prediction 0 1 1 1: IoU of class 0 is 1/2, of class 1 is 1/2, class 2 is nowhere."""
    got = scores(table_of([np.array([0, 1, 1, 1], np.uint8)], [np.array([0, 0, 1, 255], np.uint8)]), 3)
    assert got.iou[:2] == [0.5, 0.5]
    assert math.isnan(got.iou[2])
    assert got.miou == 0.5
    assert got.overall_accuracy == 2 / 3
    assert got.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
