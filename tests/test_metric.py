from __future__ import annotations

import json
import math
from pathlib import Path

import forks
import numpy as np
import pytest
import slow_scores
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segdist
from segdist.evaluation import bootstrap, boundary, confusion
from segdist.evaluation.bootstrap import bootstrap_difference, bootstrap_miou
from segdist.evaluation.boundary import boundary_counts
from segdist.evaluation.confusion import class_counts, confusion_matrix
from segdist.evaluation.scores import class_iou, scores

CASES = json.loads((Path(__file__).parent / "data" / "mean_iou_reference.json").read_text(encoding="utf-8"))["cases"]


def table_of(preds: list[np.ndarray], masks: list[np.ndarray]) -> torch.Tensor:
    pairs = zip(preds, masks, strict=True)
    return sum(
        (confusion_matrix(torch.from_numpy(p), torch.from_numpy(m)) for p, m in pairs),
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


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(0, 9), width=st.integers(1, 40), run=st.integers(1, 60))
def test_the_table_is_the_count_of_pairs_whether_runs_are_long_or_short(
    seed: int, height: int, width: int, run: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confusion, "_BLOCK_PX", 100)
        check_the_table(np.random.default_rng(seed), height, width, run)


def check_the_table(rng: np.random.Generator, height: int, width: int, run: int) -> None:
    pred, mask = (np.repeat(rng.integers(0, 256, 400, np.uint8), run)[: height * width] for _ in range(2))
    pred, mask = pred.reshape(height, width).T, np.roll(mask, run // 2).reshape(height, width).T
    want = np.zeros((256, 256), np.int64)
    for p, m in zip(pred.ravel(), mask.ravel()):
        want[m, p] += 1
    got = confusion_matrix(torch.from_numpy(pred), torch.from_numpy(mask))
    assert got.dtype == torch.int64
    assert np.array_equal(got.numpy(), want)


def test_a_gpu_counts_in_blocks_what_a_cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic alone: here, on a CPU."""
    pred, mask = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    want = confusion_matrix(pred, mask)
    assert int(want.sum()) == 3 * 70 * 50
    for block in (999, 1 << 24):
        monkeypatch.setattr(confusion, "_DEVICE_BLOCK_PX", block)
        got = confusion._device_table(pred.transpose(1, 2), mask.transpose(1, 2))
        assert got.dtype == torch.int64
        assert torch.equal(got, want)


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


def test_the_module_s_3x3_example_by_hand() -> None:
    mask = np.array([[0, 0, 1], [0, 1, 1], [2, 255, 255]], np.uint8)
    pred = np.array([[0, 0, 1], [1, 1, 2], [2, 0, 1]], np.uint8)
    got = scores(table_of([pred], [mask]), 3)
    assert got.confusion == [[2, 1, 0], [0, 2, 1], [0, 0, 1]]
    assert got.iou == pytest.approx([2 / 3, 1 / 2, 1 / 2])
    assert got.miou == pytest.approx(5 / 9)
    assert got.accuracy == got.recall == pytest.approx([2 / 3, 2 / 3, 1])
    assert got.mean_accuracy == pytest.approx(7 / 9)
    assert got.precision == pytest.approx([1, 2 / 3, 1 / 2])
    assert got.mean_precision == pytest.approx(13 / 18)
    assert got.dice == pytest.approx([4 / 5, 2 / 3, 2 / 3])
    assert got.mean_dice == pytest.approx(32 / 45)
    assert got.overall_accuracy == pytest.approx(5 / 7)
    assert got.freq_weighted_iou == pytest.approx(4 / 7)
    assert got.kappa == pytest.approx(9 / 16)
    wider = scores(table_of([pred], [mask]), 5)  # two classes that are nowhere
    assert wider.miou == got.miou == pytest.approx(got.miou_all)
    assert wider.miou_all == pytest.approx(5 / 9 * 3 / 5)
    assert [wider.kappa, wider.freq_weighted_iou, wider.mean_dice] == [got.kappa, got.freq_weighted_iou, got.mean_dice]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """A prediction, its mask with void, and the number of classes."""
    num_classes, seed, right = draw(st.integers(2, 12)), draw(st.integers(0, 2**32)), draw(st.floats(0, 1))
    rng = np.random.default_rng(seed)
    classes = rng.choice(num_classes, draw(st.integers(1, num_classes)), replace=False)  # some may be absent
    mask = rng.choice(classes, (7, 9)).astype(np.uint8)
    pred = np.where(rng.random(mask.shape) < right, mask, rng.choice(num_classes, mask.shape)).astype(np.uint8)
    mask[rng.random(mask.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 255
    return pred, mask, num_classes


def close(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) < 1e-12


@settings(max_examples=200, deadline=None)
@given(pictures())
def test_every_score_is_what_its_definition_says_pixel_by_pixel(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    pred, mask, num_classes = case
    got = scores(table_of([pred], [mask]), num_classes)
    hit, true, predicted = slow_scores.areas([pred], [mask], 255)
    num_pixels = sum(true.values())
    for k in range(num_classes):
        i, t, p = hit[k], true[k], predicted[k]
        assert close(got.iou[k], slow_scores.ratio(i, t + p - i))
        assert close(got.recall[k], slow_scores.ratio(i, t))
        assert close(got.precision[k], slow_scores.ratio(i, p))
        assert close(got.dice[k], slow_scores.ratio(2 * i, t + p))
    absent_as_zero = [slow_scores.ratio(hit[k], true[k] + predicted[k] - hit[k]) for k in range(num_classes)]
    assert close(got.miou_all, sum(0 if math.isnan(x) else x for x in absent_as_zero) / num_classes)
    agree = slow_scores.ratio(sum(hit.values()), num_pixels)
    chance = slow_scores.ratio(sum(true[k] * predicted[k] for k in range(num_classes)), num_pixels**2)
    assert close(got.kappa, slow_scores.ratio(agree - chance, 1 - chance))
    weighted = sum(true[k] * got.iou[k] for k in range(num_classes) if true[k])
    assert close(got.freq_weighted_iou, slow_scores.ratio(weighted, num_pixels))
    assert close(got.mean_dice, slow_scores.mean(np.array(got.dice)))
    assert close(got.mean_precision, slow_scores.mean(np.array(got.precision)))


@settings(max_examples=200, deadline=None)
@given(pictures(), st.integers(0, 2**32))
def test_scores_keep_their_order_and_do_not_depend_on_the_names_of_classes(
    case: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    pred, mask, num_classes = case
    got = scores(table_of([pred], [mask]), num_classes)
    for iou, dice, precision, recall in zip(got.iou, got.dice, got.precision, got.recall):
        assert math.isnan(iou) == math.isnan(dice)
        if not math.isnan(iou):
            assert close(dice, 2 * iou / (1 + iou))
            assert 0 <= iou <= dice <= 1
        assert not precision < iou  # NaN where there is no precision
        assert not recall < iou
    if (mask != 255).any():
        assert got.miou_all <= got.miou + 1e-12
        assert got.freq_weighted_iou <= got.overall_accuracy + 1e-12
        assert not got.kappa > 1
    names = np.random.default_rng(seed).permutation(num_classes)
    other = np.append(names, np.full(256 - num_classes, 255)).astype(np.uint8)
    renamed = scores(table_of([other[pred]], [other[mask]]), num_classes)
    assert all(close(got.iou[k], renamed.iou[names[k]]) for k in range(num_classes))
    for name in ("miou", "miou_all", "mean_dice", "mean_precision", "freq_weighted_iou", "kappa", "overall_accuracy"):
        assert close(getattr(got, name), getattr(renamed, name)), name


def test_kappa_is_zero_for_chance_and_one_for_agreement() -> None:
    mask = np.array([[0] * 6 + [1] * 2], np.uint8)
    assert scores(table_of([np.zeros_like(mask)], [mask]), 2).kappa == 0
    assert scores(table_of([mask], [mask]), 2).kappa == 1
    assert scores(table_of([1 - mask], [mask]), 2).kappa < 0


def drawn_counts(rng: np.random.Generator, num: int, num_classes: int, right: float) -> np.ndarray:
    """int64 (N, 3, K) of random pictures; most hold few classes."""
    counts = []
    for _ in range(num):
        classes = rng.choice(num_classes, rng.integers(1, 4))
        mask = rng.choice(classes, 60).astype(np.uint8)
        pred = np.where(rng.random(60) < right, mask, rng.choice(classes, 60)).astype(np.uint8)
        counts.append(class_counts(table_of([pred], [mask]), num_classes))
    return np.stack(counts)


def test_class_counts_are_the_pixels_of_each_class_and_add() -> None:
    rng = np.random.default_rng(0)
    preds, masks = (list(rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 6, 5))) for _ in range(2))
    for i in range(2):
        hit, true, predicted = slow_scores.areas([preds[i]], [masks[i]], 255)
        got = class_counts(table_of([preds[i]], [masks[i]]), 4)
        assert got.dtype == np.int64
        assert got.tolist() == [[area[k] for k in range(4)] for area in (hit, true, predicted)]
    parts = sum(class_counts(table_of([p], [m]), 4) for p, m in zip(preds, masks))
    assert np.array_equal(parts, class_counts(table_of(preds, masks), 4))
    assert scores(table_of(preds, masks), 4).iou == class_iou(parts).tolist()


def test_the_bootstrap_is_that_of_a_naive_loop_over_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    a, b = drawn_counts(rng, 13, 5, 0.5), drawn_counts(rng, 13, 5, 0.7)
    monkeypatch.setattr(bootstrap, "_CHUNK_BYTES", 8 * 13 * 7)  # several chunks, the last one short
    weights = np.concatenate(list(bootstrap._resamples(13, 50, 3)))
    assert weights.shape == (50, 13)
    assert (weights.sum(1) == 13).all()
    mious: dict[str, list[float]] = {"a": [], "b": []}
    for row in weights.astype(int):
        again = [i for i, times in enumerate(row) for _ in range(times)]
        for name, counts in (("a", a), ("b", b)):
            iou = []
            for k in range(5):
                hit, true, predicted = (sum(int(counts[i, part, k]) for i in again) for part in range(3))
                iou.append(slow_scores.ratio(hit, true + predicted - hit))
            mious[name].append(slow_scores.mean(np.array(iou)))
    got = bootstrap_miou(a, num_resamples=50, level=0.9, seed=3)
    assert (got.level, got.num_resamples) == (0.9, 50)
    assert [got.low, got.high] == pytest.approx(np.quantile(mious["a"], [0.05, 0.95]).tolist(), abs=1e-12)
    difference = bootstrap_difference(a, b, num_resamples=50, level=0.9, seed=3)
    want = np.quantile(np.array(mious["b"]) - np.array(mious["a"]), [0.05, 0.95]).tolist()
    assert [difference.low, difference.high] == pytest.approx(want, abs=1e-12)


def test_chunks_of_memory_and_a_seed_decide_the_bootstrap_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = drawn_counts(np.random.default_rng(2), 9, 4, 0.5)
    whole = bootstrap_miou(counts, 40, seed=5)
    assert bootstrap_miou(counts, 40, seed=5) == whole
    assert bootstrap_miou(counts, 40, seed=6) != whole
    monkeypatch.setattr(bootstrap, "_CHUNK_BYTES", 1)  # one resample at a time
    assert bootstrap_miou(counts, 40, seed=5) == whole


def test_the_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    """Pictures of two classes, each with an accuracy of its own: 300 data sets of 60 pictures, intervals of 90 %."""
    rng = np.random.default_rng(7)

    def draw(num: int) -> np.ndarray:
        sizes, right = rng.integers(20, 80, (num, 2)), rng.beta(4, 2, (num, 2))
        hit = rng.binomial(sizes, right)
        return np.stack([hit, sizes, hit + (sizes - hit)[:, ::-1]], 1)

    truth = scores_of_counts(draw(200_000))
    intervals = [bootstrap_miou(draw(60), 300, 0.9, seed=i) for i in range(300)]
    assert 0.84 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.95


def scores_of_counts(counts: np.ndarray) -> float:
    return float(np.nanmean(class_iou(counts.sum(0))))


def test_a_paired_difference_is_narrower_than_the_models_apart_and_zero_for_the_same_model() -> None:
    rng = np.random.default_rng(3)
    hard = rng.beta(2, 2, (80, 1))  # what makes a picture hard is so for both
    sizes = np.full((80, 2), 500)
    models = [rng.binomial(sizes, hard * quality) for quality in (0.9, 0.92)]
    a, b = (np.stack([hit, sizes, hit + (sizes - hit)[:, ::-1]], 1) for hit in models)
    paired, alone = bootstrap_difference(a, b), bootstrap_miou(a)
    assert 0 < paired.high - paired.low < (alone.high - alone.low) / 3
    assert paired.low < scores_of_counts(b) - scores_of_counts(a) < paired.high
    same_model = bootstrap_difference(a, a)
    assert (same_model.low, same_model.high) == (0, 0)
    flipped = bootstrap_difference(b, a)
    assert [flipped.low, flipped.high] == pytest.approx([-paired.high, -paired.low])


def test_pictures_that_are_all_void_give_an_interval_of_nan() -> None:
    got = bootstrap_miou(np.zeros((3, 3, 2), np.int64), 10)
    assert math.isnan(got.low) and math.isnan(got.high)
    assert got.num_resamples == 0


def blobs(rng: np.random.Generator, height: int, width: int, num_classes: int) -> np.ndarray:
    """uint8 (H, W): rectangles of classes over one another."""
    mask = np.full((height, width), rng.integers(num_classes), np.uint8)
    for _ in range(int(rng.integers(1, 7))):
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = rng.integers(
            num_classes
        )
    return mask


def counts_by_erosion(pred: np.ndarray, mask: np.ndarray, num_classes: int, reach: int) -> list[list[int]]:
    """Class by class, as the paper does it."""
    parts = []
    for k in range(num_classes):
        true, predicted = (slow_scores.boundary(x == k, reach) for x in (mask, pred))
        parts.append([int((true & predicted).sum()), int(true.sum()), int(predicted.sum())])
    return [list(row) for row in zip(*parts)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.integers(2, 5), st.floats(0.01, 0.4))
def test_boundary_counts_are_those_of_eroding_each_class_for_itself(
    seed: int, height: int, width: int, num_classes: int, ratio: float
) -> None:
    rng = np.random.default_rng(seed)
    pred, mask = (blobs(rng, height, width, num_classes) for _ in range(2))
    got = boundary_counts(torch.from_numpy(pred), torch.from_numpy(mask), num_classes, ratio)
    reach = boundary.boundary_width_px(height, width, ratio)
    assert got.dtype == np.int64
    assert got.tolist() == counts_by_erosion(pred, mask, num_classes, reach)


@pytest.mark.parametrize(
    ("height", "width", "reach"), [(1, 1, 1), (30, 40, 1), (512, 512, 14), (768, 1024, 26), (1024, 2048, 46)]
)
def test_the_boundary_is_two_percent_of_the_diagonal_wide(height: int, width: int, reach: int) -> None:
    assert boundary.boundary_width_px(height, width) == reach


def test_boundary_iou_by_hand() -> None:
    """7x7 px, reach 1: a 3x3 square of class 1 in the middle, predicted one px to the right."""
    mask, pred = np.zeros((7, 7), np.uint8), np.zeros((7, 7), np.uint8)
    mask[2:5, 2:5], pred[2:5, 3:6] = 1, 1
    got = boundary_counts(torch.from_numpy(pred), torch.from_numpy(mask), 2)
    assert got[:, 1].tolist() == [4, 8, 8]  # a ring of 8 px each; the rings share two px above and two below
    assert class_iou(got)[1] == 4 / 12
    perfect = boundary_counts(torch.from_numpy(mask), torch.from_numpy(mask), 2)
    assert class_iou(perfect).tolist() == [1, 1]


def test_void_counts_nowhere_and_is_nobody_s_contour() -> None:
    """Wherever void lies, the counts are those of comparing just the pixels that are known, one by one."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        pred, mask = blobs(rng, 14, 17, 3), blobs(rng, 14, 17, 3)
        mask[blobs(rng, 14, 17, 3) == 0] = 255
        reach = boundary.boundary_width_px(14, 17, 0.1)
        on: dict[str, np.ndarray] = {}
        for name, classes in (("pred", pred), ("mask", mask)):
            on[name] = np.zeros(mask.shape, bool)
            for y, x in np.argwhere(mask != 255):
                if min(y, x, 13 - y, 16 - x) < reach:
                    on[name][y, x] = True
                    continue
                window = (slice(y - reach, y + reach + 1), slice(x - reach, x + reach + 1))
                on[name][y, x] = (classes[window][mask[window] != 255] != classes[y, x]).any()
        want = [
            [int((on["mask"] & on["pred"] & (mask == k) & (pred == k)).sum()) for k in range(3)],
            [int((on["mask"] & (mask == k)).sum()) for k in range(3)],
            [int((on["pred"] & (pred == k)).sum()) for k in range(3)],
        ]
        got = boundary_counts(torch.from_numpy(pred), torch.from_numpy(mask), 3, 0.1)
        assert got.tolist() == want


def test_importing_the_metric_does_not_load_evaluate_but_its_mean_iou_does() -> None:
    code = (
        "import sys, segdist; from segdist.evaluation import scores; assert 'evaluate' not in sys.modules; "
        "segdist.MeanIoU; assert 'evaluate' in sys.modules; import segdist.metric as m; assert m.MeanIoU is segdist.MeanIoU"
    )
    forks.run(["-c", code], check=True, bare=True)
    with pytest.raises(AttributeError, match="no attribute 'MeanIuO'"):
        segdist.MeanIuO  # noqa: B018
