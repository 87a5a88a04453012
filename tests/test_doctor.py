"""The doctor finds what was broken on purpose, and nothing in what is well."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import forks
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, plain_folder, prepare, tree, write_pair
from PIL import Image

from segdist import config, doctor
from segdist.config import Config
from segdist.data import index, stats, survey
from segdist.data.health import Finding
from segdist.data.importers.layout import ImportOptions
from segdist.data.label_options import LabelOptions
from segdist.data.presets import CONTRACTS
from segdist.distributed import World
from segdist.doctor import run
from segdist.errors import DataError
from segdist.evaluation import evaluate, self_test
from segdist.train.loop import fit

NAMES = "a,b,c"


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A picture of large smooth shapes, as photos are; each seed another one."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def split_folder(folder: Path, values: dict[str, tuple[int, ...]], num: int = 6) -> Path:
    """`num` pairs per split whose masks hold these values, in equal parts."""
    for s, (split, present) in enumerate(values.items()):
        for i in range(num):
            mask = np.resize(np.array(present, np.uint8), (48, 64))
            write_pair(folder, f"{split}{i}", scene(100 * s + i), mask, split)
    return folder


def findings(uri: str, severity: str) -> list[Finding]:
    return [f for f in doctor.examine_data(uri, None) if f.severity == severity]


def prepared(tmp_path: Path, values: dict[str, tuple[int, ...]], num: int = 6) -> str:
    prepare(str(split_folder(tmp_path / "src", values, num)), str(tmp_path / "data"), names=NAMES)
    return str(tmp_path / "data")


WELL = {"train": (0, 1, 2), "val": (0, 1, 2)}


def test_nothing_is_found_in_healthy_data(tmp_path: Path) -> None:
    found = doctor.examine_data(prepared(tmp_path, WELL), None)
    assert {f.severity for f in found} == {"ok"}
    assert any("exactly 1.0" in f.text for f in found)


def test_a_class_that_is_scored_but_cannot_be_learnt_is_an_error(tmp_path: Path) -> None:
    (error,) = findings(prepared(tmp_path, {"train": (0, 1), "val": (0, 1, 2)}), "error")
    assert "no pixel of c in train, but other splits have some" in error.text
    assert "move samples" in error.remedy


def test_a_class_that_val_lacks_and_a_drift_are_warnings(tmp_path: Path) -> None:
    warnings = findings(prepared(tmp_path, {"train": (0, 1, 2), "val": (0, 1)}), "warning")
    assert any("no pixel of c in val" in f.text for f in warnings)
    assert any("differ by 33.3%" in f.text and "most in c: 33.3% and 0.0%" in f.text for f in warnings)


def test_imbalance_comes_with_weights(tmp_path: Path) -> None:
    warnings = findings(prepared(tmp_path, {s: (*[0] * 600, 1, 2, *[0] * 2470) for s in WELL}), "warning")
    (balance,) = [f for f in warnings if f.topic == "balance"]
    assert "a has 3,070 times the pixels of b" in balance.text
    assert "loss.class_weights=enet gives the weights b 49" in balance.remedy
    assert any("few pixels: b (0.03%), c (0.03%)" in f.text for f in warnings)


def test_leaks_and_copies_are_found_and_likenesses_too(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", WELL)
    shutil.copy(source / "train/images/train1.png", source / "val/images/val2.png")
    shutil.copy(source / "train/images/train3.png", source / "train/images/train4.png")
    squeezed = Image.open(source / "train/images/train5.png").resize((32, 24)).resize((64, 48))
    (source / "val/images/val4.png").unlink()
    squeezed.save(source / "val/images/val4.jpg", quality=60)
    prepare(str(source), str(tmp_path / "data"), names=NAMES)
    (error,) = findings(str(tmp_path / "data"), "error")
    assert "1 images are both in train and val: train1 = val2" in error.text
    texts = [f.text for f in findings(str(tmp_path / "data"), "warning")]
    assert any("1 images of train are copies: " in t for t in texts)
    assert any("1 images of train look like an image of val: train5 ~ val4" in t for t in texts)


def test_a_rotten_byte_and_a_missing_shard_are_errors(tmp_path: Path) -> None:
    uri = prepared(tmp_path, WELL)
    (shard,) = (tmp_path / "data" / "train").iterdir()
    whole = shard.read_bytes()
    shard.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    (error,) = findings(uri, "error")
    assert "sha256 differs" in error.text
    shard.unlink()
    (error,) = findings(uri, "error")
    assert "this shard is missing" in error.text


def test_a_contract_that_was_tampered_with_is_an_error(tmp_path: Path) -> None:
    uri = prepared(tmp_path, WELL)
    path = tmp_path / "data" / "index.json"
    told = json.loads(path.read_text())
    told["contract"]["classes"][2]["raw"] = [7]
    path.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"the values or the order of the classes were edited"):
        doctor.examine(uri)
    told["contract"]["classes"][2] |= {"raw": [2], "name": "d", "color": [1, 2, 3]}
    path.write_text(json.dumps(told))
    assert not findings(uri, "error")  # names and colours may be edited


def test_a_sample_of_the_samples_is_the_same_every_time_and_said_to_be_one(tmp_path: Path) -> None:
    uri = prepared(tmp_path, WELL, num=40)
    first, second = (survey.survey_split(uri, index.load(uri), "train", 10) for _ in range(2))
    assert [f.sample_id for f in first.facts] == [f.sample_id for f in second.facts]
    assert 10 <= len(first.facts) < 40
    assert any("of 40 samples (use --all for all) can be read" in f.text for f in doctor.examine_data(uri, 10))


def test_a_broken_metric_fails_its_self_test_and_no_run_begins(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The popular mistake: the prediction, or the mask, is shifted once more on its way to the score."""
    count = evaluate.confusion_matrix
    monkeypatch.setattr(evaluate, "confusion_matrix", lambda pred, masks: count((pred + 1) % 7, masks))
    cfg = make_config()
    tested = self_test.self_test(cfg.data.uri, index.load(cfg.data.uri), "val", cfg.io)
    assert tested.severity == "error"
    assert "scores 0.0 instead of 1.0" in tested.text
    with pytest.raises(DataError, match="Do not trust any score"):
        fit(cfg, World(0, 1, torch.device("cpu")))
    assert not (Path(cfg.run.uri) / "checkpoints").exists()


@pytest.mark.parametrize("name", sorted(CONTRACTS))
def test_every_preset_scores_its_perfect_predictor_one(tmp_path: Path, name: str) -> None:
    """Masks of all raw values that the preset names, prepared, streamed and scored as in any evaluation."""
    values = np.array(sorted(CONTRACTS[name].known_values), np.uint8)
    source = plain_folder(tmp_path / "src", 6, tuple(values.tolist()), size=(16, len(values)))
    prepare(str(source), str(tmp_path / "data"), names=name)
    (tested,) = [f for f in doctor.examine_data(str(tmp_path / "data"), None) if f.topic == "self-test"]
    assert tested.severity == "ok"
    loaded = index.load(str(tmp_path / "data"))
    assert min(loaded.split("train").class_pixels) > 0
    assert (loaded.split("val").void_pixels > 0) == bool(CONTRACTS[name].void)


def test_masks_that_are_all_void_are_said(tmp_path: Path) -> None:
    uri = prepared(tmp_path, {"train": (0, 1, 2), "val": (255,)})
    texts = [f.text for f in findings(uri, "warning")]
    assert any("100% of the pixels of val are void" in t for t in texts)
    assert any("all void" in t for t in texts)


def test_a_run_is_judged_by_the_splits_it_uses(tmp_path: Path) -> None:
    uri = prepared(tmp_path, {"aaa": (0, 1, 2), "fold": (0, 1), "holdout": (0, 1, 2)})
    cfg = config.from_tree(
        tree(uri, str(tmp_path / "run"), data={"train_split": "fold", "val_split": "holdout"}), "test"
    )
    errors = [f.text for f in doctor.examine_run(cfg, None) if f.severity == "error"]
    assert any("no pixel of c in fold, but other splits have some" in text for text in errors)


def test_likenesses_within_a_split_are_a_note(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", WELL)
    squeezed = Image.open(source / "train/images/train5.png").resize((32, 24)).resize((64, 48))
    squeezed.save(source / "train/images/train4.png")
    prepare(str(source), str(tmp_path / "data"), names=NAMES)
    (note,) = findings(str(tmp_path / "data"), "note")
    assert "2 images of train look like another image of it: train" in note.text


def test_classes_in_few_samples_come_with_repeat_factors(tmp_path: Path) -> None:
    """Class c is in 1 of 40 samples: sqrt(0.1 / 0.025) = 2 copies."""
    source = split_folder(tmp_path / "src", WELL, num=40)
    for path in sorted((source / "train/masks").iterdir())[1:]:
        Image.fromarray(np.resize(np.array([0, 1], np.uint8), (48, 64))).save(path)
    prepare(str(source), str(tmp_path / "data"), names=NAMES)
    assert any("repeat factors: c 2.0x" in f.text for f in findings(str(tmp_path / "data"), "note"))
    assert any("hard to learn: c in 1 of 40" in f.text for f in findings(str(tmp_path / "data"), "warning"))


def test_grey_images_among_others_and_turns_left_in_images_are_noted(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", WELL)
    Image.open(source / "train/images/train1.png").convert("L").save(source / "train/images/train1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned, it would not fit its mask
    (source / "train/images/train2.png").unlink()
    Image.fromarray(scene(2)).save(source / "train/images/train2.jpg", exif=exif, quality=95)
    prepare(str(source), str(tmp_path / "data"), names=NAMES)
    texts = [f.text for f in findings(str(tmp_path / "data"), "note")]
    assert any("grey and colour images are mixed" in t for t in texts)
    assert any("1 images have an EXIF rotation" in t for t in texts)


def test_a_disk_without_room_for_checkpoints_is_an_error(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    (error,) = [f for f in doctor.examine_run(make_config(), 5) if f.severity == "error"]
    assert (error.topic, error.remedy[:9]) == ("disk", "Free some")


def test_training_says_before_the_first_step_what_may_spoil_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = prepared(tmp_path, {"train": (0, 1), "val": (0, 1, 2)})
    cfg = config.from_tree(tree(uri, str(tmp_path / "run"), train={"num_steps": 2}), "test")
    fit(cfg, World(0, 1, torch.device("cpu")))
    said = capsys.readouterr().err
    assert said.index("warning: no pixel of c in train") < said.index("step 1/2")


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_told_all_its_mistakes_at_once(tmp_path: Path) -> None:
    source = plain_folder(tmp_path / "src", 8)
    (source / "masks/p1.png").write_bytes(b"no picture")
    Image.new("L", (5, 5)).save(source / "masks/p2.png")
    Image.new("L", (12, 8), 77).save(source / "masks/p3.png")
    found = doctor.examine(str(source), declared=LabelOptions(NAMES))
    errors = [f.text for f in found if f.severity == "error"]
    assert len(errors) == 3
    assert any("p1.png: not an image" in t for t in errors)
    assert any("p2.png: the image is 8x12 but its mask is 5x5" in t for t in errors)
    assert any("p3.png: unknown mask value 77 (96 pixels)" in t for t in errors)
    well = doctor.examine(str(plain_folder(tmp_path / "well")), declared=LabelOptions(NAMES))
    assert {f.severity for f in well} == {"ok"}


def test_unpaired_names_are_one_finding_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", WELL)
    for name in ("train/masks/train1.png", "train/masks/train2.png", "train/images/train3.png"):
        (source / name).unlink()
    Image.new("L", (64, 48), 77).save(source / "val/masks/val0.png")
    errors = {
        f.topic: f.text for f in doctor.examine(str(source), declared=LabelOptions(NAMES)) if f.severity == "error"
    }
    assert set(errors) == {"unpaired", "file"}
    assert "train1.png: this image has no mask" in errors["unpaired"]
    assert "3 files are unpaired in all" in errors["unpaired"]
    assert "val0.png: unknown mask value 77" in errors["file"]


def test_a_folder_is_searched_for_leaks_copies_and_absent_classes(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", {"train": (0, 1), "val": (0, 1, 2)})
    shutil.copy(source / "train/images/train1.png", source / "val/images/val2.png")
    shutil.copy(source / "train/images/train3.png", source / "train/images/train4.png")
    Image.open(source / "train/images/train5.png").save(source / "val/images/val4.png", compress_level=1)
    found = doctor.examine(str(source), declared=LabelOptions(NAMES))
    texts = {severity: [f.text for f in found if f.severity == severity] for severity in ("error", "warning")}
    assert any("1 images are both in train and val: train1 = val2" in t for t in texts["error"])
    assert any("no pixel of c in train, but other splits have some" in t for t in texts["error"])
    assert any("1 images of train are copies: train3 = train4" in t for t in texts["warning"])
    assert any("1 images of train look like an image of val: train5 ~ val4" in t for t in texts["warning"])
    assert not any("among" in f.text for f in found)


def test_a_folder_and_what_is_prepared_of_it_get_the_same_findings(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", {"train": (0, 1, *[2] * 500), "val": (0, 1)})
    prepare(str(source), str(tmp_path / "data"), names=NAMES)
    of_folder, of_data = (
        doctor.examine(str(source), declared=LabelOptions(NAMES)),
        doctor.examine(str(tmp_path / "data")),
    )
    topics = {"classes of train", "classes of val", "balance", "drift", "samples of train", "samples of val", "leaks"}
    assert [f for f in of_folder if f.topic in topics] == [f for f in of_data if f.topic in topics]
    assert topics <= {f.topic for f in of_folder}


def test_what_a_sample_of_a_folder_shows_is_said_to_be_of_a_sample(tmp_path: Path) -> None:
    """All are read, some are compared."""
    source = split_folder(tmp_path / "src", WELL, num=20)
    for split in WELL:
        for i in range(1, 20):
            shutil.copy(source / "train/images/train0.png", source / f"{split}/images/{split}{i}.png")
    Image.new("L", (64, 48), 77).save(source / "train/masks/train7.png")
    found = doctor.examine(str(source), sample=5, declared=LabelOptions(NAMES))
    assert any("train7.png: unknown mask value 77" in f.text for f in found)
    (copies,) = [f for f in found if f.topic == "duplicates" and "of val are copies" in f.text]
    assert copies.text.endswith("(among 5 of 20 of val. Use --all for all)")
    (leaks,) = [f for f in found if f.topic == "leaks" and f.severity == "error"]
    assert "of 19 of train and 5 of 20 of val. Use --all for all)" in leaks.text
    assert any("cover only the 39 pairs that can be prepared" in f.text for f in found)


def test_names_that_prepare_would_refuse_are_an_error_of_the_folder(tmp_path: Path) -> None:
    source = str(plain_folder(tmp_path / "src", values=(0, 255)))
    (error,) = [f for f in doctor.examine(source, declared=LabelOptions("a,b")) if f.severity == "error"]
    assert "only class 'a' has pixels in any split" in error.text
    assert "--names background=0,object=255" in error.text


def test_a_folder_is_judged_as_prepare_would_take_it(tmp_path: Path) -> None:
    ones = str(plain_folder(tmp_path / "ones", values=(0, 1, 2, 3)))
    assert {f.severity for f in doctor.examine(ones, declared=LabelOptions(NAMES, first=1))} == {"ok"}
    for asked, message in (
        ({"layout": "bogus"}, "unknown --format 'bogus'"),
        ({"options": ImportOptions(subset="x")}, "--format folder does not support --subset"),
        ({"target": str(tmp_path / "nothing")}, "this folder does not exist"),
        ({"target": str(plain_folder(tmp_path / "one", 1))}, "found only one pair"),
    ):
        (error,) = doctor.examine(**{"target": ones, **asked})  # type: ignore[arg-type]
        assert message in error.text


# -- runs -------------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forks.run(["-m", "segdist", "doctor", *arguments], cwd=ROOT)


@pytest.mark.slow
def test_a_run_is_rehearsed_and_leaves_nothing_behind(street_data: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree(street_data, str(tmp_path / "run"))), encoding="utf-8")
    done = command(str(path), "optim.warmup_steps=3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["healthy"]
    assert {"storage", "rehearsal", "disk", "device", "self-test"} <= {f["topic"] for f in told["findings"]}
    assert not list((tmp_path / "run").rglob("*"))
    wrong = command(str(path), "optim.lr=1e30", "optim.clip_grad_norm=null", "--json")
    assert wrong.returncode == 2
    (error,) = [f for f in json.loads(wrong.stdout)["findings"] if f["severity"] == "error"]
    assert error["topic"] == "rehearsal"
    assert "diverged" in error["text"]


@pytest.mark.parametrize(
    "sections",
    [
        {"train": {"micro_batch_size": "auto"}},
        {"train": {"strategy": "ddp", "precision": "fp16"}},
        {"train": {"strategy": "deepspeed", "zero_offload": True}},
        {"optim": {"freeze_encoder_steps": 3, "ema_decay": 0.9}},
    ],
    ids=["auto", "fp16", "deepspeed", "freeze"],
)
def test_whatever_can_be_trained_can_be_rehearsed(make_config: Callable[..., Config], sections: dict) -> None:
    assert {f.topic: f.severity for f in run.examine(make_config(**sections))}["rehearsal"] == "ok"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"global_batch_size": 64, "micro_batch_size": 64}}, "64"),
        ({"data": {"val_split": "vall"}}, "Did you mean 'val'"),
        ({"loss": {"class_weights": [1.0, 2.0]}}, "class_weights has 2 numbers, but the dataset has 7 classes"),
    ],
)
def test_what_does_not_fit_is_an_error(make_config: Callable[..., Config], sections: dict, message: str) -> None:
    errors = [f for f in doctor.examine_run(make_config(**sections), 5) if f.severity == "error"]
    assert any(message in f.text for f in errors), errors


def test_crops_that_are_mostly_padding_are_said(make_config: Callable[..., Config]) -> None:
    cfg = make_config(data={"crop_size": [64, 64], "scale_range": [0.5, 1.5]})
    (warning,) = [f for f in doctor.examine_run(cfg, 5) if f.topic == "crop"]
    assert (
        "crops are 64x64 px (height x width), but the largest image at the largest scale is only 48x72 px"
        in warning.text
    )


def test_ranks_that_this_machine_cannot_hold_are_an_error(make_config: Callable[..., Config]) -> None:
    cfg = make_config(scale={"launcher": "ray", "num_ranks": 2, "cpus_per_rank": 512.0})
    (error,) = [f for f in doctor.examine_run(cfg, 5) if f.severity == "error"]
    assert "2 rank(s) with 512 CPU each (pack) are requested, but the cluster has room for 0" in error.text


def test_a_run_folder_that_cannot_be_written_is_an_error(make_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    errors = [
        f for f in doctor.examine_run(make_config(run={"uri": str(tmp_path / "file/run")}), 5) if f.severity == "error"
    ]
    assert any(f.topic == "storage" and "file" in f.text for f in errors)


# -- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_numpy(street_data: str, street_folder: Path) -> None:
    found = stats.compute_stats(street_data, "train", None)
    names = [p.stem for p in sorted((street_folder / "images").iterdir())][:15]
    pixels = np.concatenate(
        [np.asarray(Image.open(p)).reshape(-1, 3) for n in names for p in (street_folder / "images").glob(f"{n}.*")]
    )
    masks = np.stack([np.asarray(Image.open(street_folder / "masks" / f"{n}.png")) for n in names])
    assert np.allclose(found["mean"], (pixels / 255).mean(0), atol=1e-12)
    assert np.allclose(found["std"], (pixels / 255).std(0), atol=1e-9)
    assert list(found["samples"].values()) == [(masks == k).any((1, 2)).sum() for k in range(7)]
    counts = np.array([(masks == k).sum() for k in range(7)])
    assert list(found["pixels"].values()) == [*counts, (masks == 255).sum()]

    shown = [
        np.mean([m[m != 255].size for m in masks if (m == k).any()]) * (masks == k).any((1, 2)).sum() for k in range(7)
    ]
    frequency = np.divide(counts, shown, where=counts > 0, out=np.zeros(7))
    want = np.divide(np.median(frequency[frequency > 0]), frequency, where=counts > 0, out=np.zeros(7))
    assert np.allclose(found["class_weights"]["median"], want, rtol=1e-3)
    inverse = np.divide(1.0, counts, where=counts > 0, out=np.zeros(7))
    assert np.allclose(found["class_weights"]["inverse"], inverse / inverse[counts > 0].mean(), rtol=1e-3)
    assert np.allclose(found["class_weights"]["enet"], (counts > 0) / np.log(1.02 + counts / counts.sum()), rtol=1e-3)


def test_a_class_that_no_picture_read_shows_gets_no_median_weight(tmp_path: Path) -> None:
    source = split_folder(tmp_path / "src", WELL, num=40)
    for path in sorted((source / "train/masks").iterdir())[1:]:
        Image.fromarray(np.resize(np.array([0, 1], np.uint8), (48, 64))).save(path)
    prepare(str(source), str(tmp_path / "data"), names=NAMES)
    found = [stats.compute_stats(str(tmp_path / "data"), "train", n)["class_weights"] for n in (None, 1)]
    assert found[0]["median"][2] > found[0]["median"][0]
    assert all(w > 0 for weights in found[1].values() for w in weights)


def test_statistics_are_written_as_yaml_and_as_a_picture(street_data: str, tmp_path: Path) -> None:
    done = forks.run(["-m", "segdist", "stats", street_data, "--split", "val", "--out", str(tmp_path), "--json"])
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "stats.yaml").read_text()) == json.loads(done.stdout)
    with Image.open(io.BytesIO((tmp_path / "stats.png").read_bytes())) as shown:
        assert shown.width > 500


def test_hashes_know_a_picture_again_and_tell_others_apart() -> None:
    pictures = [Image.fromarray(scene(i, (96, 128))) for i in range(60)]
    hashes = [survey.difference_hash(p) for p in pictures]
    small = [survey.difference_hash(p.resize((64, 48))) for p in pictures]
    assert np.mean([(a ^ b).bit_count() <= 4 for a, b in zip(hashes, small)]) > 0.95
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 8
