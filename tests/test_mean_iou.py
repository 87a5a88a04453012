"""MeanIoU is evaluate's mean_iou to the last bit, and plain where the original is not."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import slow_scores
import torch
from PIL import Image

from segdist.errors import UserError
from segdist.evaluation.confusion import confusion_matrix
from segdist.evaluation.hf_mean_iou import MeanIoU, _as_bytes
from segdist.evaluation.scores import scores

CASES = json.loads((Path(__file__).parent / "data" / "mean_iou_reference.json").read_text(encoding="utf-8"))["cases"]
PRED = np.array([[0, 1, 2], [2, 1, 0]])
MASK = np.array([[0, 1, 1], [2, 255, 0]])
OPTIONS: dict[str, Any] = {"num_labels": 3, "ignore_index": 255}


def same(got: dict[str, Any], want: dict[str, Any]) -> bool:
    """The same keys in the same order and equal values, not nearly: NaN for NaN."""
    return list(got) == list(want) and all(np.array_equal(got[k], want[k], equal_nan=True) for k in want)


def original(case: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the original computed; null is NaN."""
    return {name: np.array(value, np.float64)[()] for name, value in case["expected"].items()}  # None becomes NaN


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_the_reference_and_mean_iou_give_what_the_original_computed(case: dict[str, Any]) -> None:
    options = {"num_labels": case["num_classes"], "ignore_index": case["ignore_index"]}
    assert same(slow_scores.mean_iou(case["pred"], case["mask"], **options), original(case))
    assert same(MeanIoU().compute(predictions=case["pred"], references=case["mask"], **options), original(case))


DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "int32", "int64", "float32", "float64"]
FORMS = {"numpy": lambda x: x, "list": lambda x: x.tolist(), "torch": lambda x: torch.from_numpy(x.copy())}


def drawn(rng: np.random.Generator, num_labels: int, voids: list[int]) -> np.ndarray:
    """One map of a random type, size and layout that holds classes, values that are none, and void."""
    dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
    shape = tuple(rng.integers(1, 9, 2))
    low, high = (0, 1) if dtype.kind == "b" else (-(2**31), 2**31 - 1)
    if dtype.kind in "ui":
        low, high = max(low, np.iinfo(dtype).min), min(high, np.iinfo(dtype).max)
    values = rng.integers(0, num_labels + 3, shape)
    values = np.where(rng.random(shape) < 0.2, rng.choice(voids, shape), values).clip(low, high).astype(dtype)
    return values.T if rng.random() < 0.2 else values[::-1] if rng.random() < 0.2 else values


def random_case(rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, Any]]:
    """Predictions and references of several sizes and types, and every option at times."""
    num_labels = int(rng.choice([1, 2, 3, 7, 19, 150, 254, 255, 256, 300]))
    refs = [drawn(rng, num_labels, [0, 255, 254, -100, 65535, 10**6]) for _ in range(rng.integers(1, 4))]
    preds = []
    for ref in refs:
        pred = rng.integers(0, num_labels + 2, ref.shape)
        pred = np.where(rng.random(ref.shape) < 0.6, ref, pred)
        preds.append(
            pred.astype(rng.choice(["int64", "int32"])) if pred.max() > 255 or pred.min() < 0 else pred.astype(np.uint8)
        )
    options: dict[str, Any] = {
        "num_labels": num_labels,
        "ignore_index": [255, 0, 1, 254, -100, 65535, None][rng.integers(7)],
    }
    if rng.random() < 0.4:
        options["nan_to_num"] = [0, -1, 0.5][rng.integers(3)]
    if rng.random() < 0.4:
        old, new = rng.integers(0, num_labels + 2, (2, 4)).tolist()
        options["label_map"] = dict(zip(old, new))
    if rng.random() < 0.4 and num_labels <= 254:
        options["reduce_labels"] = bool(rng.random() < 0.8)
    return preds, refs, options


def test_2000_random_evaluations_agree_with_the_reference_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    metric, used = MeanIoU(), set()
    for i in range(2000):
        preds, refs, options = random_case(rng)
        form = FORMS[list(FORMS)[i % 3]]
        half = len(preds) // 2
        if half:
            metric.add_batch(predictions=[form(p) for p in preds[:half]], references=[form(r) for r in refs[:half]])
        metric.add(prediction=form(preds[half]), reference=form(refs[half]))
        rest = {"predictions": [form(p) for p in preds[half + 1 :]], "references": [form(r) for r in refs[half + 1 :]]}
        got = metric.compute(**(rest if len(preds) > half + 1 else {}), **options)
        assert same(got, slow_scores.mean_iou(preds, refs, **options)), (i, options)
        used |= options.keys()
    assert used == {"num_labels", "ignore_index", "nan_to_num", "label_map", "reduce_labels"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_bytes_are_taken_of_values_that_fit_whatever_the_type_and_order_of_bytes(kind: str, order: str) -> None:
    low, high = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    values = {sign * 2**i + j for i in range(64) for sign in (1, -1) for j in (-1, 0, 1)} | {
        256 * i for i in range(256)
    }
    for value in (v for v in values if low <= v <= high):
        found = _as_bytes(np.array([[0, value]], order + kind))
        assert (found is None) == (not 0 <= value <= 255), value
        assert found is None or found.tolist() == [[0, value]]
    if high > 600:
        given = np.array([[0, 256, 512]], order + kind)
        found = MeanIoU().compute(predictions=[given], references=[given], num_labels=600, ignore_index=None)
        assert np.flatnonzero(~np.isnan(found["per_category_iou"])).tolist() == [0, 256, 512]


def test_all_forms_of_pictures_give_the_same() -> None:
    expected = slow_scores.mean_iou([PRED, PRED[:1]], [MASK, MASK[:1]], **OPTIONS)
    forms = {
        "lists": [x.tolist() for x in (PRED, PRED[:1], MASK, MASK[:1])],
        "pil": [Image.fromarray(x.astype(np.uint8)) for x in (PRED, PRED[:1], MASK, MASK[:1])],
        "torch": [torch.tensor(x) for x in (PRED, PRED[:1], MASK, MASK[:1])],
        "read-only": [
            np.frombuffer(x.astype(np.uint8).tobytes(), np.uint8).reshape(x.shape)
            for x in (PRED, PRED[:1], MASK, MASK[:1])
        ],
    }
    for name, (p0, p1, m0, m1) in forms.items():
        assert same(MeanIoU().compute(predictions=[p0, p1], references=[m0, m1], **OPTIONS), expected), name
    palette = Image.fromarray(MASK.astype(np.uint8))
    palette.putpalette(list(range(256)) * 3)
    assert same(
        MeanIoU().compute(predictions=[PRED], references=[palette], **OPTIONS),
        slow_scores.mean_iou([PRED], [MASK], **OPTIONS),
    )
    whole = slow_scores.mean_iou([PRED, PRED], [MASK, MASK], **OPTIONS)
    for batch in (np.stack, lambda x: torch.tensor(np.stack(x))):
        got = MeanIoU().compute(predictions=batch([PRED, PRED]), references=batch([MASK, MASK]), **OPTIONS)
        assert same(got, whole)


def test_mean_iou_and_scores_are_one_definition() -> None:
    rng = np.random.default_rng(4)
    for num_classes in (2, 19, 150, 255):
        pred, mask = rng.integers(0, num_classes, (2, 40, 50), np.uint8)
        mask[rng.random(mask.shape) < 0.1] = 255
        ours = scores(confusion_matrix(torch.from_numpy(pred), torch.from_numpy(mask)), num_classes)
        got = MeanIoU().compute(predictions=[pred], references=[mask], num_labels=num_classes, ignore_index=255)
        assert got["mean_iou"] == ours.miou
        assert np.array_equal(got["per_category_iou"], ours.iou, equal_nan=True)
        assert np.array_equal(got["per_category_accuracy"], ours.accuracy, equal_nan=True)
        assert (got["mean_accuracy"], got["overall_accuracy"]) == (ours.mean_accuracy, ours.overall_accuracy)


def test_the_types_are_those_of_the_original() -> None:
    for options in (OPTIONS, OPTIONS | {"nan_to_num": 0}):
        got = MeanIoU().compute(predictions=[PRED], references=[MASK], **options)
        assert [type(v) for v in got.values()] == [np.float64] * 3 + [np.ndarray] * 2
        assert got["per_category_iou"].dtype == got["per_category_accuracy"].dtype == np.float64


def test_compute_empties_the_metric_and_len_counts_pictures() -> None:
    metric = MeanIoU()
    metric.add(prediction=PRED, reference=MASK)
    metric.add(predictions=PRED, references=MASK)  # the original takes both names
    metric.add_batch(predictions=[1 - PRED % 2], references=[MASK])
    assert len(metric) == 3
    metric.compute(**OPTIONS)
    assert len(metric) == 0
    fresh = metric.compute(predictions=[PRED], references=[MASK], **OPTIONS)
    assert same(fresh, slow_scores.mean_iou([PRED], [MASK], **OPTIONS))


def test_a_mistake_in_the_options_loses_nothing_and_counts_nothing_twice() -> None:
    metric = MeanIoU()
    metric.add(prediction=PRED, reference=MASK)
    with pytest.raises(UserError, match="num_labels"):
        metric.compute(predictions=[PRED], references=[MASK], num_labels="3", ignore_index=255)
    with pytest.raises(TypeError, match="ignore_index"):
        metric.compute(num_labels=3)
    with pytest.raises(TypeError, match="ignore_idx"):
        metric.compute(num_labels=3, ignore_index=255, ignore_idx=255)
    assert len(metric) == 1
    assert same(metric.compute(**OPTIONS), slow_scores.mean_iou([PRED], [MASK], **OPTIONS))


def test_help_names_the_options_and_only_two_must_be_given() -> None:
    for compute in (MeanIoU.compute, MeanIoU().compute):
        given = inspect.signature(compute).parameters
        assert [name for name in given if name != "self"] == [
            "predictions", "references", "num_labels", "ignore_index", "nan_to_num", "label_map", "reduce_labels",
        ]  # fmt: skip
        required = {name for name, p in given.items() if p.default is p.empty} - {"self"}
        assert required == {"num_labels", "ignore_index"}
    assert "reduce_labels (bool)" in (MeanIoU().compute.__doc__ or "")


def test_a_batch_that_is_refused_counts_not_at_all() -> None:
    metric = MeanIoU()
    for wrong in (MASK[:1], np.full((2, 3), 0.5)):
        with pytest.raises(UserError):
            metric.add_batch(predictions=[PRED, PRED], references=[MASK, wrong])
    assert len(metric) == 0
    with pytest.raises(UserError, match="no images"):
        metric.compute(**OPTIONS)


def test_the_private_compute_that_tutorials_call_keeps_what_was_added() -> None:
    metric = MeanIoU()
    metric.add(prediction=1 - PRED % 2, reference=MASK)
    expected = slow_scores.mean_iou([PRED], [MASK], **OPTIONS)
    assert same(metric._compute(predictions=[PRED], references=[MASK], **OPTIONS), expected)
    assert same(metric._compute([PRED], [MASK], 3, 255), expected)
    assert len(metric) == 1


def test_it_pickles_and_copies_with_what_it_has_seen() -> None:
    metric = MeanIoU()
    metric.add(prediction=PRED, reference=MASK)
    metric.add(prediction=PRED, reference=np.where(MASK == 255, -100, MASK))
    expected = slow_scores.mean_iou([PRED, PRED], [MASK, np.where(MASK == 255, -100, MASK)], **OPTIONS)
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert len(twin) == 2
        assert same(twin.compute(**OPTIONS), expected)
    assert len(metric) == 2


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [
        ([PRED], [MASK.T], "resize the logits"),
        ([PRED, PRED], [MASK], "2 predictions, but 1 references"),
        (Image.fromarray(PRED.astype(np.uint8)), Image.fromarray(MASK.astype(np.uint8)), "Use add for a single image"),
        ([PRED], None, "references are missing"),
        (None, [MASK], "predictions are missing"),
        ([], [], "no images"),
        ([PRED], [MASK + 0.5], "not whole numbers"),
        ([PRED], [np.where(MASK == 255, np.nan, MASK)], "not whole numbers"),
        ([np.stack([PRED] * 3, -1)], [np.stack([MASK] * 3, -1)], "argmax"),
        ([PRED], [np.where(MASK == 255, 2**40, MASK)], "1099511627776"),
        ([PRED], [np.where(MASK == 255, np.uint64(2**63), MASK.astype(np.uint64))], "32-bit"),
        ([PRED], [[[0, 1], [2]]], "rows of different lengths"),
        (["pred.png"], ["mask.png"], "opens no files"),
        ([PRED], [MASK.astype(str)], "not whole numbers"),
        ([np.arange(5000).reshape(50, 100)], [np.arange(5000).reshape(50, 100)], "different values"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_counted_is_said_plainly(predictions: Any, references: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        MeanIoU().compute(predictions=predictions, references=references, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_labels": 0, "ignore_index": 255}, "at least 1"),
        ({"num_labels": 3.0, "ignore_index": 255}, "num_labels"),
        ({"num_labels": 3, "ignore_index": "255"}, "ignore_index"),
        (OPTIONS | {"label_map": {"1": 0}}, "label_map"),
        (OPTIONS | {"label_map": {1: "road"}}, "label_map"),
        ({"num_labels": 255, "ignore_index": 255, "reduce_labels": True}, "255th class"),
    ],
)
def test_options_that_the_original_takes_amiss_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        MeanIoU().compute(predictions=[PRED], references=[MASK], **options)


def test_several_processes_over_files_are_refused_and_unknown_inputs_too() -> None:
    with pytest.raises(UserError, match="confusion_matrix"):
        MeanIoU(num_process=2, process_id=0)
    for call in (MeanIoU().add, MeanIoU().add_batch):
        with pytest.raises(UserError, match="'sources'"):
            call(sources=[PRED])


def test_a_label_map_swaps_classes_at_once_and_void_may_be_of_any_value() -> None:
    swapped = MeanIoU().compute(predictions=[PRED % 2], references=[1 - PRED % 2], label_map={0: 1, 1: 0}, **OPTIONS)
    assert swapped["mean_iou"] == 1
    for void in (-100, 255, 65535, 2**31 - 1):
        mask = np.where(MASK == 255, void, MASK)
        got = MeanIoU().compute(predictions=[PRED], references=[mask], num_labels=3, ignore_index=void)
        assert same(got, slow_scores.mean_iou([PRED], [MASK], **OPTIONS))


def test_nothing_is_written_and_nothing_fetched(tmp_path: Path) -> None:
    code = """
import socket
def refuse(*a, **k): raise AssertionError("network")
socket.socket.connect = socket.create_connection = refuse
import numpy as np
from segdist.metric import MeanIoU
metric = MeanIoU()
metric.add_batch(predictions=np.zeros((2, 3, 4), int), references=np.zeros((2, 3, 4), int))
assert metric.compute(num_labels=2, ignore_index=255)["overall_accuracy"] == 1
"""
    homes = {
        "HF_HOME": str(tmp_path),
        "HF_EVALUATE_CACHE": str(tmp_path / "e"),
        "HF_METRICS_CACHE": str(tmp_path / "m"),
    }
    forks.run(["-c", code], check=True, bare=True, env=os.environ | homes)
    assert not [p for p in tmp_path.rglob("*") if "mean" in p.name or p.suffix in (".arrow", ".lock")]


def test_it_combines_with_other_metrics_of_evaluate() -> None:
    import evaluate

    both = evaluate.combine([MeanIoU(), MeanIoU()])
    both.add_batch(predictions=[PRED], references=[MASK])
    result = both.compute(**OPTIONS)
    assert result["mean_io_u_0_mean_iou"] == slow_scores.mean_iou([PRED], [MASK], **OPTIONS)["mean_iou"]
