"""Evaluation: scores that are known beforehand, the same on any number of ranks, and what a report says of itself."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SEGFORMER, UNET, prepare, tree, write_pair

from segdist import config, models
from segdist.config import Config, Io
from segdist.data import index as indices
from segdist.data.source import Source
from segdist.data.stream import EvalBatch, eval_units, units_of_rank
from segdist.distributed import World
from segdist.errors import DataError, SharedError, UserError
from segdist.evaluation.boundary import boundary_counts
from segdist.evaluation.evaluate import Evaluation, evaluate
from segdist.evaluation.inference import PLAIN, InferenceSettings
from segdist.evaluation.report import evaluate_checkpoint, protocol, report
from segdist.evaluation.scores import class_iou, scores
from segdist.runs import record, segments
from segdist.runs.checkpoints import digest, read_best, resolve
from segdist.runs.restore import load_trained
from segdist.train.dead_classes import PATIENCE, DeadClasses
from segdist.train.loop import fit

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
ROOT = Path(__file__).parents[1]
SIZES = [
    (32, 48),
    (32, 48),
    (150, 200),
    (33, 47),
    (90, 64),
    (32, 48),
    (64, 90),
    (32, 48),
    (32, 48),
    (40, 41),
    (200, 60),
]
Make = Callable[..., Config]


def draw(folder: Path, sizes: list[tuple[int, int]], values: tuple[int, ...] = (0, 1, 2, 255)) -> str:
    """A prepared data set whose validation pictures have these sizes; its classes can be told from the colours."""
    rng = np.random.default_rng(0)
    for split, all_sizes in (("train", [(32, 48)] * 4), ("val", sizes)):
        for i, size in enumerate(all_sizes):
            mask = rng.choice(np.array(values, np.uint8), size)
            mask[0, : len(values)] = values
            image = (np.where(mask == 255, 3, mask)[..., None] * 60 + rng.integers(0, 40, (*size, 3))).astype(np.uint8)
            write_pair(folder / "src", f"p{i:02d}", image, mask, split)
    prepare(str(folder / "src"), str(folder / "data"), names="a,b,c")
    return str(folder / "data")


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures of very different sizes, two in a row group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segdist.data.write.rows_per_group", lambda largest, num, shuffled: 2)
        return draw(tmp_path_factory.mktemp("varied"), SIZES)


@pytest.fixture(scope="module")
def runs(varied: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs")
    for model in (SEGFORMER, UNET):
        fields = tree(varied, str(root / model["name"]), model=model, optim={"lr": 1e-2}, eval={"every_steps": 4})
        fit(config.from_tree(fields, "test"), ALONE)
    return {name: str(root / name) for name in ("segformer", "unet")}


# -- scores that are known beforehand ----------------------------------------------------------------------------------


def one_hot(batch: EvalBatch, shift: int) -> torch.Tensor:
    classes = torch.where(batch.masks == 255, 0, (batch.masks.long() + shift) % 3)
    return torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0), (2, 0.0)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_mask_itself_scores_one_and_another_class_everywhere_scores_zero(
    varied: str, shift: int, expected: float, batch_size: int
) -> None:
    index = indices.load(varied)
    result = evaluate(
        None, varied, index, "val", None, Io(), batch_size, ALONE, logits_of=lambda batch: one_hot(batch, shift)
    )
    assert result.scores.miou == expected
    assert result.scores.iou == [expected] * 3
    assert int(result.table.sum()) == sum(h * w for h, w in SIZES)
    valid = int(result.table[:255].sum())
    assert result.table[:3].sum(1).tolist() == list(index.split("val").class_pixels)
    true_prob = 1 / (1 + 2 * np.e**-1) if shift == 0 else np.e**-1 / (1 + 2 * np.e**-1)
    assert result.loss == pytest.approx(-np.log(true_prob), rel=1e-6)
    assert 0 < valid < int(result.table.sum())


def test_a_wholly_void_split_has_no_score_and_says_so(tmp_path: Path) -> None:
    data = draw(tmp_path, [(32, 48)] * 3, values=(0, 1, 2, 255))
    for path in sorted((tmp_path / "src" / "val" / "masks").iterdir()):
        write_pair(
            tmp_path / "src", path.stem, np.zeros((32, 48, 3), np.uint8), np.full((32, 48), 255, np.uint8), "val"
        )
    prepare(str(tmp_path / "src"), data, names="a,b,c", overwrite=True)
    result = evaluate(
        None, data, indices.load(data), "val", None, Io(), 2, ALONE, logits_of=lambda b: one_hot(b, 0), per_sample=True
    )
    assert np.isnan([result.scores.miou, result.loss, *result.scores.iou]).all()
    tree = json.loads(record.to_json(report(result, ["a", "b", "c"])))
    assert tree["miou"] is None
    assert tree["loss"] is None
    assert tree["num_samples"] == 3
    assert tree["pictures"]["counts"] == [{}, {}, {}]


# -- any number of ranks -----------------------------------------------------------------------------------------------


class Threads(World):
    """A rank that is a thread: sums and gathers meet at a barrier."""

    def share_with(self, slots: list[Any], barrier: threading.Barrier) -> Threads:
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "barrier", barrier)
        return self

    def gather(self, value: Any) -> list[Any]:
        self.slots[self.rank] = value  # type: ignore[attr-defined]
        self.barrier.wait(60)  # type: ignore[attr-defined]
        values = list(self.slots)  # type: ignore[attr-defined]
        self.barrier.wait(60)  # type: ignore[attr-defined]
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack([part.clone() for part in self.gather(tensor.clone())]).sum(0))

    sum_long_timeout = sum


def on_ranks(num: int, work: Callable[[World], Any]) -> list[Any]:
    """work(world) on every rank: its result, or the exception it raised."""
    slots: list[Any] = [None] * num
    barrier, results = threading.Barrier(num), [None] * num

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, num, CPU).share_with(slots, barrier))
        except Exception as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize(
    ("name", "num_ranks"), [("segformer", 2), ("segformer", 3), ("segformer", 5), ("segformer", 20), ("unet", 2)]
)
def test_any_number_of_ranks_gives_the_very_same_result(
    runs: dict[str, str], varied: str, name: str, num_ranks: int
) -> None:
    index, how = indices.load(varied), InferenceSettings((64, 64), 0.5)

    def work(world: World) -> Evaluation:
        trained = load_trained(runs[name], CPU)
        return evaluate(
            trained.model, varied, index, "val", None, trained.cfg.io, 2, world, settings=how, per_sample=True
        )

    one, many = work(ALONE), on_ranks(num_ranks, work)
    assert one.per_sample is not None
    for result in many:
        assert torch.equal(result.table, one.table)
        assert (result.loss, result.scores.miou, result.num_samples) == (one.loss, one.scores.miou, len(SIZES))
        assert result.per_sample.sample_ids == one.per_sample.sample_ids == [f"p{i:02d}" for i in range(len(SIZES))]
        assert np.array_equal(result.per_sample.counts, one.per_sample.counts)


def test_one_sample_may_meet_many_ranks(tmp_path: Path) -> None:
    data = draw(tmp_path, [(32, 48)])
    index = indices.load(data)
    results = on_ranks(
        3, lambda w: evaluate(None, data, index, "val", None, Io(), 2, w, logits_of=lambda b: one_hot(b, 0))
    )
    assert [r.num_samples for r in results] == [1, 1, 1]
    assert [r.scores.miou for r in results] == [1.0] * 3


def test_a_rank_that_fails_ends_all_and_says_why_once(varied: str) -> None:
    def work(world: World) -> Any:
        def logits_of(batch: EvalBatch) -> torch.Tensor:
            if world.rank == 1:
                raise RuntimeError("out of memory")
            return one_hot(batch, 0)

        return evaluate(None, varied, indices.load(varied), "val", None, Io(), 2, world, logits_of=logits_of)

    results = on_ranks(3, work)
    assert [type(r) for r in results] == [SharedError, RuntimeError, SharedError]
    assert str(results[1]) == "out of memory"


def test_ranks_share_by_pixels(varied: str) -> None:
    split = indices.load(varied).split("val")
    groups = [sum(h * w for h, w in SIZES[i : i + 2]) for i in range(0, len(SIZES), 2)]
    assert split.row_group_pixels().tolist() == groups
    units = eval_units(split.row_group_sizes(), 1)
    for num_ranks in (2, 3, 5):
        shares = [units_of_rank(units, split, rank, num_ranks) for rank in range(num_ranks)]
        assert [unit for share in shares for unit in share] == units
        pixels = [sum(groups[g] * len(rows) // split.row_group_sizes()[g] for g, rows in share) for share in shares]
        assert max(pixels) <= sum(groups) / num_ranks + max(groups) / 2


def test_data_of_an_earlier_version_is_shared_by_samples_and_keeps_its_digest(varied: str) -> None:
    index = indices.load(varied)
    split = index.split("val")
    old_shards = tuple(shard.model_copy(update={"group_pixels": ()}) for shard in split.shards)
    old = index.model_copy(update={"splits": {"val": split.model_copy(update={"shards": old_shards})}})
    assert old.digest("val") == index.digest("val")
    assert old.split("val").row_group_pixels().tolist() == split.row_group_sizes().tolist()


# -- a fixed subset ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[7], [4, 4, 4, 3], [1] * 30])
@pytest.mark.parametrize("num", [1, 2, 5, 7, 1000])
def test_a_subset_is_distinct_spread_and_always_the_same(sizes: list[int], num: int) -> None:
    units = eval_units(np.array(sizes), 3, num)
    assert units == eval_units(np.array(sizes), 3, num)
    rows = [sum(sizes[:group]) + row for group, rows in units for row in rows]
    assert rows == sorted(set(rows))
    assert len(rows) == min(num, sum(sizes))
    assert all(len(rows) <= 3 for _, rows in units)
    if num < sum(sizes):
        part = [i * sum(sizes) // num for i in range(num + 1)]
        assert all(low <= row < high for row, low, high in zip(rows, part, part[1:]))


def test_a_run_may_score_a_subset_and_says_so(make_config: Make, street_data: str) -> None:
    cfg = make_config(eval={"num_samples": 2, "mode": "sliding", "window_size": [16, 16], "flip": True})
    fit(cfg, ALONE)
    rows = [row for row in segments.read_metrics(cfg.run.uri) if row["kind"] == "eval"]
    assert [row["num_samples"] for row in rows] == [2, 2]
    words = (
        "images at their own size / windows of 16x16 px, overlap 0.5, Gaussian weights / single-scale and mirrored / fp32 / "
        "scored at the mask's own size / 2 of 5 samples"
    )
    assert {row["protocol"] for row in rows} == {words}
    best = read_best(cfg.run.uri)
    assert best is not None
    assert best["scored_on"] == f"{indices.load(street_data).digest('val')} / {words}"
    assert evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu")["num_samples"] == 5  # the command scores all


# -- reports -----------------------------------------------------------------------------------------------------------


def test_a_report_carries_its_protocol_its_digests_and_its_pictures(runs: dict[str, str], varied: str) -> None:
    changes = {"mode": "sliding", "window_overlap": 0.25, "scales": [0.5, 1], "flip": True}
    result = evaluate_checkpoint(runs["segformer"], None, "val", 2, "cpu", changes, per_sample=True)
    assert result["protocol"] == (
        "images at their own size / windows of 32x48 px, overlap 0.25, Gaussian weights / scales 0.5, 1 and mirrored / fp32 / "
        "scored at the mask's own size"
    )
    assert result["data_digest"] == indices.load(varied).digest("val")
    assert result["checkpoint_digest"] == digest(resolve(runs["segformer"]))
    assert result["checkpoint_digest"] != digest(resolve(runs["unet"]))
    sides = result["pictures"]
    assert sides["sample_ids"] == [f"p{i:02d}" for i in range(len(SIZES))]
    summed = np.zeros((3, 3), np.int64)
    for one in sides["counts"]:
        for k, counts in one.items():
            summed[:, int(k)] += counts
    with np.errstate(invalid="ignore"):
        iou = summed[0] / (summed[1] + summed[2] - summed[0])
    assert iou.tolist() == list(result["iou"].values())
    assert "pictures" not in evaluate_checkpoint(runs["segformer"], None, "val", 2, "cpu")


def test_the_report_holds_every_score_and_is_made_of_its_pictures(varied: str) -> None:
    """By a predictor that is wrong in the lower half; the interval holds the score, boundaries are those of single pictures."""
    index = indices.load(varied)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def half(batch: EvalBatch) -> torch.Tensor:
        classes = torch.where(batch.masks == 255, 0, batch.masks).long()
        classes[:, classes.shape[1] // 2 :] = (classes[:, classes.shape[1] // 2 :] + 1) % index.labels.num_classes
        seen.extend(zip(classes.to(torch.uint8), batch.masks))
        return F.one_hot(classes, index.labels.num_classes).permute(0, 3, 1, 2).float()

    found = evaluate(
        None, varied, index, "val", None, Io(), 2, ALONE, per_sample=True, boundary=True, logits_of=half
    )  # fmt: skip
    told = report(found, index.labels.names)
    assert told["miou_interval"]["low"] <= told["miou"] <= told["miou_interval"]["high"]
    want = class_iou(sum(boundary_counts(pred, mask, index.labels.num_classes) for pred, mask in seen))  # type: ignore[arg-type]
    np.testing.assert_array_equal(list(told["boundary_iou"].values()), want)
    table = scores(found.table, index.labels.num_classes)
    assert (told["kappa"], told["miou_all"], told["freq_weighted_iou"]) == (
        table.kappa,
        table.miou_all,
        table.freq_weighted_iou,
    )
    assert list(told["dice"].values()) == pytest.approx(table.dice, nan_ok=True)


def test_running_out_of_memory_comes_with_a_remedy(varied: str) -> None:
    def greedy(batch: EvalBatch) -> torch.Tensor:
        return torch.empty(1 << 55)

    with pytest.raises(UserError, match="--mode sliding"):
        evaluate(None, varied, indices.load(varied), "val", None, Io(), 1, ALONE, logits_of=greedy)


def test_images_larger_than_a_block_are_counted_in_blocks(varied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def table() -> torch.Tensor:
        index = indices.load(varied)
        shifts = iter(range(100))
        return evaluate(
            None, varied, index, "val", None, Io(), 2, ALONE, logits_of=lambda b: one_hot(b, next(shifts))
        ).table

    before = table()
    monkeypatch.setattr("segdist.evaluation.confusion._BLOCK_PX", 1000)
    monkeypatch.setattr("segdist.data.stream._AHEAD_PIXELS", 1)
    assert torch.equal(before, table())


def test_protocols_tell_recipes_apart() -> None:
    recipes = [
        PLAIN,
        InferenceSettings(flip=True),
        InferenceSettings(scales=(2.0,)),
        InferenceSettings((8, 8)),
        InferenceSettings((8, 9)),
        InferenceSettings((8, 8), 0.1),
    ]
    assert len({protocol(None, how) for how in recipes}) == len(recipes)
    assert protocol(None) == "images at their own size / whole / single-scale / fp32 / scored at the mask's own size"


def test_a_sample_that_is_never_seen_is_an_error(varied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdist.evaluation.evaluate.units_of_rank", lambda units, *_: units[1:])
    with pytest.raises(DataError, match="expected to evaluate 11 samples once each, but evaluated 9"):
        evaluate(None, varied, indices.load(varied), "val", None, Io(), 2, ALONE, logits_of=lambda b: one_hot(b, 0))


# -- classes that are not learnt ---------------------------------------------------------------------------------------


def test_a_class_that_stays_at_zero_is_said_once_with_its_share_and_remedy(make_config: Make, street_data: str) -> None:
    cfg, index = make_config(), indices.load(street_data)
    alarm, names = DeadClasses(cfg, index), index.labels.names
    fine, dead = dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.5) | {"car": 0.0, "person": float("nan")}
    said = [alarm.update(a) for a in (dead, fine, *[dead] * (PATIENCE + 2))]
    assert [len(lines) for lines in said] == [0] * (PATIENCE + 1) + [1, 0, 0]
    (line,) = said[PATIENCE + 1]
    pixels = index.split("train").class_pixels
    assert "'car' had IoU 0 in the last 3 evaluations" in line
    assert f"{pixels[names.index('car')] / sum(pixels):.3%} of the training pixels" in line
    assert "loss.class_weights=enet" in line
    weighed = DeadClasses(make_config(loss={"class_weights": "enet"}), index)
    assert "enet" not in [weighed.update(dead) for _ in range(PATIENCE)][-1][0]


def test_a_run_warns_of_classes_it_cannot_learn_before_its_first_step_and_of_those_it_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Class d is in no training picture; class c is in both splits and drowned by a constant prediction."""
    rng = np.random.default_rng(0)
    for split, values in (("train", [0] * 200 + [2]), ("val", [0] * 50 + [2, 3])):
        for i in range(4):
            mask = rng.choice(np.array(values, np.uint8), (32, 48))
            mask[0, :2] = 2
            write_pair(tmp_path / "src", f"p{i}", rng.integers(0, 255, (32, 48, 3), dtype=np.uint8), mask, split)
    prepare(str(tmp_path / "src"), str(tmp_path / "data"), names="a,b,c,d")
    fields = tree(str(tmp_path / "data"), str(tmp_path / "run"), train={"num_steps": 6}, eval={"every_steps": 1})
    fit(config.from_tree({**fields, "optim": {"lr": 1e-2}}, "test"), ALONE)
    lines = capfd.readouterr().err.splitlines()
    *_, before = [i for i, line in enumerate(lines) if "no pixel of d in train, but" in line]
    assert before < next(i for i, line in enumerate(lines) if line.startswith("step 1/"))
    assert any("no pixel of b in any split" in line for line in lines[: before + 2])
    assert len([line for line in lines if "class 'c' had IoU 0 in the last 3 evaluations" in line]) == 1
    assert not [line for line in lines if "class 'd' had IoU 0" in line]  # it was said before the first step


# -- real ranks, and real memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segformer", pytest.param("unet", marks=pytest.mark.long)])
def test_ranks_evaluate_by_command_and_print_the_same_json_once(
    runs: dict[str, str], tmp_path: Path, name: str
) -> None:
    options = ["--mode", "sliding", "--window", "64x64", "--scales", "1,1.5", "--flip", "--pictures", "--json"]
    outs = []
    for num_ranks in (1, 2):
        file = str(tmp_path / f"{num_ranks}.json")
        done = forks.ranks(
            num_ranks, ["-m", "segdist", "evaluate", runs[name], "--device", "cpu", "--out", file, *options]
        )
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert done.stderr.count("mean accuracy") == 1
        assert json.loads(Path(file).read_text(encoding="utf-8")) == json.loads(line)
        outs.append(json.loads(line))
    assert outs[0] == outs[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "many", [pytest.param((2, 3), marks=pytest.mark.long), (5,)], ids=["some", "more than samples"]
)
def test_real_ranks_agree_to_the_integer(
    runs: dict[str, str], varied: str, tmp_path: Path, many: tuple[int, ...]
) -> None:
    """1, 2, 3 and 5 processes under gloo; the last has ranks without a sample."""
    program = str(Path(__file__).with_name("ranks_program.py"))
    plan = [
        {"name": f"{name}-{split}", "run": runs[name], "data": varied, "split": split}
        for name in runs
        for split in ("train", "val")
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    found = {}
    for num_ranks in (1, *many):
        done = forks.ranks(num_ranks, [program, "scores", str(tmp_path / "plan.json"), str(tmp_path)])
        assert done.returncode == 0, done.stderr[-3000:]
        found[num_ranks] = [json.loads((tmp_path / f"{item['name']}.json").read_text()) for item in plan]
    assert [item["num_samples"] for item in found[1]] == [4, 11, 4, 11]
    for num_ranks in many:
        assert found[num_ranks] == found[1]


@pytest.mark.slow
def test_ranks_name_a_mistake_once(runs: dict[str, str]) -> None:
    done = forks.ranks(2, ["-m", "segdist", "evaluate", runs["segformer"], "--device", "cpu", "--split", "nowhere"])
    assert done.returncode != 0
    assert done.stderr.count("no split 'nowhere', only train, val") == 1


@pytest.mark.slow
def test_a_rank_may_come_long_after_the_others(varied: str, tmp_path: Path) -> None:
    """A picture takes one rank longer than the time that ranks wait for one another in a step."""
    program = str(Path(__file__).with_name("ranks_program.py"))
    done = forks.ranks(2, [program, "late", varied, str(tmp_path / "seen")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "seen").read_text(encoding="utf-8") == "11"


@pytest.mark.slow
@pytest.mark.long
def test_twelve_megapixels_of_150_classes_take_less_than_two_gib() -> None:
    """At once, its logits alone would take 7.2 GB. benchmarks/results/evaluation.md has a hundred megapixels."""
    program = [sys.executable, str(ROOT / "benchmarks" / "evaluation.py"), "memory"]
    size = ["--side", "3464", "--classes", "150", "--overlap", "0.25"]
    done = subprocess.run([*program, *size], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["counted_pixels"] == 3464**2
    assert result["peak_mb"] - result["floor_mb"] < 900  # 500, and what threads take
    assert result["peak_mb"] < 2048


def test_pictures_beyond_pillows_limit_are_read_where_prepare_allowed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    data = draw(tmp_path, [(32, 48)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # above twice this, Pillow raises
    result = evaluate(None, data, indices.load(data), "val", None, Io(), 1, ALONE, logits_of=lambda b: one_hot(b, 0))
    assert result.scores.miou == 1


def test_a_stored_image_of_another_size_than_its_row_says_is_never_decoded(
    varied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segdist.data import stream

    sample = Source(varied, indices.load(varied), "val").fetch(0).sample(0)
    monkeypatch.setattr(stream, "decode_image", lambda data: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"sample 'p00': the image is 32x48, but its mask is 32x47 \(height x width\)"):
        stream.Decoder(indices.load(varied).labels, varied)(dataclasses.replace(sample, width=47))


def test_a_model_stays_as_it_was(varied: str) -> None:
    model = models.build(config.Segformer(size="tiny"), ["a", "b", "c"]).train()
    evaluate(model, varied, indices.load(varied), "val", None, Io(), 2, ALONE, settings=InferenceSettings((64, 64)))
    assert model.training
