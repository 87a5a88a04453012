"""Predictions are what evaluation scores, and no larger than was allowed."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SEGFORMER, tree
from PIL import Image

import segdist
from segdist import config, storage
from segdist.cli import app
from segdist.data import index as indices
from segdist.distributed import World
from segdist.errors import ConfigError, StorageError, UserError
from segdist.evaluation.confusion import confusion_matrix
from segdist.evaluation.evaluate import evaluate
from segdist.evaluation.inference import inference_settings
from segdist.evaluation.report import override_eval
from segdist.models.segmenter import infer
from segdist.predict import batches, files, inputs
from segdist.predict.files import predict_files
from segdist.runs.restore import Trained, load_trained
from segdist.train.loop import fit

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = str(tmp_path_factory.mktemp("predict") / "run")
    fit(config.from_tree(tree(street_data, run, model=SEGFORMER, optim={"lr": 1e-2}), "test"), ALONE)
    return load_trained(run, ALONE.device)


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "sliding", "window_size": [16, 20]}, {"mode": "sliding", "scales": [0.5, 1.5], "flip": True}],
    ids=["whole", "sliding", "views"],
)
def test_a_prediction_is_what_evaluation_scores(
    trained: Trained, street_data: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from test_prepare import read_back

    used = dataclasses.replace(trained, cfg=override_eval(trained.cfg, {**changes, "batch_size": 1}))
    index, found = indices.load(street_data), read_back(street_data, "val")
    (tmp_path / "images").mkdir()
    for sample_id, (image, _) in found.items():
        Image.fromarray(image).save(tmp_path / "images" / f"{sample_id}.png")
    predict_files(used, [str(tmp_path / "images")], str(tmp_path / "out"))
    table = torch.zeros(256, 256, dtype=torch.int64)
    for sample_id, (_, raw) in found.items():
        pred = np.array(Image.open(tmp_path / "out" / f"{sample_id}.png"))
        table += confusion_matrix(torch.from_numpy(pred), torch.from_numpy(index.labels.table(np.uint8)[raw]))
    how = inference_settings(used.cfg.eval, used.cfg.data.crop_size)
    result = evaluate(used.model, street_data, index, "val", None, used.cfg.io, 1, ALONE, settings=how)
    assert torch.equal(result.table, table)


@pytest.fixture
def album(street_folder: Path, tmp_path: Path) -> Path:
    """Six images, two of them in a folder within."""
    for i in range(6):
        place = tmp_path / "album" / ("day2" if i > 3 else "") / f"{i:04d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(street_folder / "images" / f"{i:04d}.jpg", place)
    return tmp_path / "album"


def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model sees from now on."""
    honest, sizes = batches.classify_batch, []
    monkeypatch.setattr(
        batches,
        "classify_batch",
        lambda trained, images, keep: sizes.append(len(images)) or honest(trained, images, keep),
    )
    return sizes


def test_folders_keep_their_shape_and_images_of_one_size_share_a_pass(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sizes = tmp_path / "out", seen(monkeypatch)
    done = predict_files(trained, [str(album)], str(out), kinds=["color", "overlay"])
    assert sizes == [3, 3]  # eval.batch_size of the run
    names = ["0000", "0001", "0002", "0003", "day2/0004", "day2/0005"]
    assert [Path(d["mask"]).relative_to(out).with_suffix("").as_posix() for d in done] == names
    palette = trained.labels.palette()
    with (out / "shares.csv").open() as file:
        rows = list(csv.DictReader(file))
    for found, row in zip(done, rows, strict=True):
        classes = np.array(Image.open(found["mask"]))
        assert np.array_equal(np.array(Image.open(found["color"])), palette[classes])
        assert Image.open(found["overlay"]).width > 48
        assert row["image"] == found["image"]
        for k, name in enumerate(trained.labels.names):
            assert float(row[name]) == pytest.approx((classes == k).mean(), abs=1e-6)
            assert found["shares"][name] == (classes == k).mean()


def test_patterns_choose_images(trained: Trained, album: Path, tmp_path: Path) -> None:
    done = predict_files(trained, [f"{album}/000[13].jpg", f"{album}/day2/*.jpg"], str(tmp_path / "out"))
    assert [Path(d["image"]).name for d in done] == ["0001.jpg", "0003.jpg", "0004.jpg", "0005.jpg"]
    done = predict_files(trained, [f"{album}/**/000[45].*"], str(tmp_path / "deep"))
    assert sorted(p.name for p in (tmp_path / "deep" / "day2").glob("*[45].png")) == ["0004.png", "0005.png"]
    assert len(done) == 2
    for pattern, number in (("**", 6), ("**/*.jpg", 6), ("*.jpg", 4), ("*/*.jpg", 2), ("d*/0004.jpg", 1)):
        assert len(inputs.find_images([f"{album}/{pattern}"], str(tmp_path / "out"))) == number, pattern
    (album / "odd [1]").mkdir()
    shutil.copy(album / "0000.jpg", album / "odd [1]")
    assert len(inputs.find_images([f"{album}/odd [1]/*.jpg"], str(tmp_path / "out"))) == 1


def test_a_pattern_that_matches_nothing_says_what_is_there(trained: Trained, album: Path, tmp_path: Path) -> None:
    (album / "notes.txt").write_text("")
    for given, words in (
        (
            "*.tif",
            r"\*\.tif: no image matches this pattern. .*album contains 6 \.jpg, 1 \.txt "
            r"\(0000\.jpg, 0001\.jpg, 0002\.jpg and 4 more\)",
        ),
        ("*.txt", r"no image matches this pattern. .*album contains 6 \.jpg"),
        ("day3/*.jpg", r"no image matches this pattern. .*day3 does not exist"),
        ("day3", r"day3: no such image or folder"),
    ):
        with pytest.raises(UserError, match=words):
            predict_files(trained, [f"{album}/{given}"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_images_of_one_stem_keep_their_suffix_and_no_others_do(
    trained: Trained, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("0001.png", "day2/0001.png", "0002_overlay.png"):
        Image.open(album / "0000.jpg").save(album / other)
    out = tmp_path / "out"
    first = predict_files(trained, [str(album)], str(out))
    assert capsys.readouterr().err.count("differ only in their extension, so their results keep it: 0001.jpg.png") == 1
    names = {str(Path(d["mask"]).relative_to(out)): Path(d["image"]).relative_to(album).as_posix() for d in first}
    assert names == {
        "0000.png": "0000.jpg", "0001.jpg.png": "0001.jpg", "0001.png.png": "0001.png", "0002.jpg.png": "0002.jpg",
        "0002_overlay.png.png": "0002_overlay.png", "0003.png": "0003.jpg", "day2/0001.png": "day2/0001.png",
        "day2/0004.png": "day2/0004.jpg", "day2/0005.png": "day2/0005.jpg",
    }  # fmt: skip
    every = [str(p) for p in album.rglob("*.*")]
    for given in (every, every[::-1], [*every, str(album)]):  # files that are given one by one, too
        again = predict_files(trained, given, str(tmp_path / "files"))
        assert {d["image"]: d["mask"].removeprefix(str(tmp_path / "files")) for d in again} == {
            d["image"]: d["mask"].removeprefix(str(out)) for d in first
        }


def test_images_of_one_name_in_several_folders_lie_as_these_do(trained: Trained, album: Path, tmp_path: Path) -> None:
    shutil.copy(album / "0001.jpg", album / "day2" / "0000.jpg")
    out = tmp_path / "out"
    for given in ([f"{album}/0000.jpg", f"{album}/day2/0000.jpg"], [f"{album}/day2", f"{album}/0000.jpg"]):
        done = predict_files(trained, given, str(out))
        assert {"0000.png", "day2/0000.png"} <= {Path(d["mask"]).relative_to(out).as_posix() for d in done}


def test_the_tables_name_an_image_once_when_another_of_its_stem_joins_it(
    trained: Trained, album: Path, tmp_path: Path
) -> None:
    predict_files(trained, [str(album)], str(tmp_path / "out"))
    Image.open(album / "0000.jpg").save(album / "0001.png")
    done = predict_files(trained, [str(album)], str(tmp_path / "out"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "shares.jsonl").read_text().splitlines()]
    assert sorted(row["image"] for row in rows) == sorted(d["image"] for d in done)


def test_a_prediction_goes_on_where_it_stopped(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = predict_files(trained, [str(album)], str(out))
    whole = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    (out / "0001_overlay.png").unlink()
    (out / "0002.png").write_bytes((out / "0002.png").read_bytes()[:60])
    (out / "shares.csv").unlink()
    sizes = seen(monkeypatch)
    assert predict_files(trained, [str(album)], str(out)) == first
    assert sum(sizes) == 2
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == whole
    predict_files(trained, [str(album)], str(out), overwrite=True)
    assert sum(sizes) == 2 + 6


def one(folder: Path, street_folder: Path, number: int) -> Path:
    """FOLDER with 0001.jpg in it, which is image `number` of the streets."""
    folder.mkdir(exist_ok=True)
    shutil.copy(street_folder / "images" / f"{number:04d}.jpg", folder / "0001.jpg")
    return folder


def shares_of(mask: Path, trained: Trained) -> dict[str, float]:
    classes = np.array(Image.open(mask))
    return {name: (classes == k).mean() for k, name in enumerate(trained.labels.names)}


def test_the_result_of_one_image_is_never_handed_to_another_of_the_same_name(
    trained: Trained, street_folder: Path, tmp_path: Path
) -> None:
    a, b, out = one(tmp_path / "a", street_folder, 1), one(tmp_path / "b", street_folder, 2), tmp_path / "out"
    predict_files(trained, [str(a)], str(out))
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert str(tmp_path).encode() not in before[out / "0001.png"]  # masks are handed on, and places may be private
    with pytest.raises(
        UserError,
        match=r"out/0001\.png is the result of another image \(0001\.jpg\), not of .*b/0001.* or use --overwrite",
    ):
        predict_files(trained, [str(b)], str(out))
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    (alone,) = predict_files(trained, [str(b)], str(tmp_path / "alone"))
    (done,) = predict_files(trained, [str(b)], str(out), overwrite=True)
    assert done["shares"] == alone["shares"] == shares_of(out / "0001.png", trained)
    assert [json.loads(line) for line in (out / "shares.jsonl").read_text().splitlines()] == [done]


def test_an_image_that_changed_is_predicted_anew_and_a_copy_is_not(
    trained: Trained, street_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, out = one(tmp_path / "a", street_folder, 1), tmp_path / "out"
    predict_files(trained, [str(a)], str(out))
    shutil.copytree(a, tmp_path / "copy")
    sizes = seen(monkeypatch)
    for again in (a, tmp_path / "copy"):
        predict_files(trained, [str(again)], str(out))
    assert not sizes
    one(a, street_folder, 2)
    (alone,) = predict_files(trained, [str(a)], str(tmp_path / "alone"), kinds=[])
    (done,) = predict_files(trained, [str(a)], str(out), kinds=[])
    assert sizes == [1, 1]
    assert done["shares"] == alone["shares"] == shares_of(out / "0001.png", trained)
    predict_files(trained, [str(a)], str(out), kinds=["overlay"])  # the overlay there is of what the image was
    assert sizes == [1, 1, 1]
    predict_files(trained, [str(a)], str(out), kinds=["color"])
    predict_files(trained, [str(a)], str(out), kinds=["color", "overlay"])
    assert sizes == [1, 1, 1, 1]


def test_a_cut_off_prediction_of_a_changed_image_is_made_anew(
    trained: Trained, street_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, out, honest = one(tmp_path / "a", street_folder, 1), tmp_path / "out", files.storage.write
    predict_files(trained, [str(a)], str(out))
    one(a, street_folder, 2)
    for name in ("0001_overlay.png", "0001.png"):

        def full(uri: str, data: bytes, name: str = name) -> None:
            if uri.endswith(f"/{name}"):
                raise StorageError(f"{uri}: no space left on device")
            honest(uri, data)

        with monkeypatch.context() as patch:
            patch.setattr(files.storage, "write", full)
            with pytest.raises(StorageError, match="no space"):
                predict_files(trained, [str(a)], str(out))
    predict_files(trained, [str(a)], str(out))
    predict_files(trained, [str(a)], str(tmp_path / "alone"))
    for name in ("0001.png", "0001_overlay.png"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_tables_keep_the_rows_of_earlier_calls_also_where_the_folder_was_moved(
    trained: Trained, album: Path, tmp_path: Path
) -> None:
    first = predict_files(trained, [f"{album}/000[01].jpg"], str(tmp_path / "out"))
    second = predict_files(trained, [f"{album}/day2/*.jpg"], str(tmp_path / "out"), overwrite=True)
    lines = (tmp_path / "out" / "shares.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == first + second
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "moved" / "0001.png").unlink()
    predict_files(trained, [f"{album}/day2/0005.jpg", f"{album}/0003.jpg"], str(tmp_path / "moved"))
    rows = [json.loads(line) for line in (tmp_path / "moved" / "shares.jsonl").read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0000.jpg", "0004.jpg", "0005.jpg", "0003.jpg"]
    assert all(Path(row[kind]).is_file() for row in rows for kind in ("mask", "overlay"))
    with (tmp_path / "moved" / "shares.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [row["image"] for row in rows]
    (tmp_path / "moved" / "shares.jsonl").write_text(json.dumps(rows[0]) + "\n{")
    with pytest.raises(UserError, match=r"shares\.jsonl: line 2 is damaged. Delete this file"):
        predict_files(trained, [f"{album}/0003.jpg"], str(tmp_path / "moved"))


def test_a_mask_that_is_nobodys_is_not_overwritten(trained: Trained, album: Path, tmp_path: Path) -> None:
    Image.new("L", (48, 32)).save(tmp_path / "0001.png")
    before = {p: p.read_bytes() for p in tmp_path.glob("*.*")}
    with pytest.raises(UserError, match=r"0001\.png does not name the image it belongs to. Choose another --out"):
        predict_files(trained, [f"{album}/0001.jpg"], str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.glob("*.*")} == before
    predict_files(trained, [f"{album}/0001.jpg"], str(tmp_path), overwrite=True)
    assert len(predict_files(trained, [f"{album}/0001.jpg"], str(tmp_path))) == 1


def test_masks_of_an_earlier_model_are_not_passed_over(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, out = dataclasses.replace(trained, cfg=override_eval(trained.cfg, {"flip": True})), str(tmp_path / "out")
    predict_files(trained, [str(album)], out)
    predict_files(other, [f"{album}/0000.jpg"], out, overwrite=True)
    assert len((tmp_path / "out" / "shares.jsonl").read_text().splitlines()) == 1
    sizes = seen(monkeypatch)
    predict_files(other, [str(album)], out)
    assert sum(sizes) == 5


def test_a_listing_that_tells_of_content_spares_reading_the_images(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, tag, reads = storage.walk, "1", []
    monkeypatch.setattr(storage, "walk", lambda uri: [dataclasses.replace(e, tag=tag) for e in honest(uri)])
    predict_files(trained, [str(album)], str(tmp_path / "out"))
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda uri: reads.append(uri) or read(uri))
    sizes = seen(monkeypatch)
    predict_files(trained, [str(album)], str(tmp_path / "out"))
    assert not [uri for uri in reads if uri.endswith(".jpg")]
    tag = "2"  # the same content, copied to a store that tells of it otherwise
    predict_files(trained, [str(album)], str(tmp_path / "out"))
    assert len([uri for uri in reads if uri.endswith(".jpg")]) == 6 and not sizes


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "sliding", "window_size": [16, 20]}, {"mode": "sliding", "scales": [0.5, 1.5], "flip": True}],
    ids=["whole", "sliding", "views"],
)
def test_probabilities_are_those_of_the_mask_and_change_no_pixel_of_it(
    trained: Trained, album: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    used = dataclasses.replace(trained, cfg=override_eval(trained.cfg, changes))
    plain = predict_files(used, [str(album)], str(tmp_path / "plain"))
    done = predict_files(used, [str(album)], str(tmp_path / "out"), kinds=["probabilities"])
    for one, other in zip(done, plain, strict=True):
        classes = np.array(Image.open(one["mask"]))
        assert np.array_equal(classes, np.array(Image.open(other["mask"])))
        with np.load(one["probabilities"], allow_pickle=False) as file:
            assert list(file["names"]) == trained.labels.names
            found = file["probabilities"]
        assert found.dtype == np.float16 and found.shape == (7, *classes.shape)
        assert np.abs(found.astype(np.float32).sum(0) - 1).max() < 5e-3
        best = np.sort(found.astype(np.float32), 0)[-2:]
        clear = best[1] - best[0] > 2e-3
        assert clear.mean() > 0.5
        assert np.array_equal(found.argmax(0)[clear], classes[clear])
    if not changes:
        pixels = torch.from_numpy(np.array(Image.open(done[0]["image"]))).permute(2, 0, 1)[None]
        wide = torch.nn.functional.interpolate(infer(used.model, pixels), (32, 48), mode="bilinear")
        with np.load(done[0]["probabilities"]) as file:
            assert np.abs(wide.softmax(1)[0].numpy() - file["probabilities"]).max() < 1e-3


def test_shares_are_there_as_json_too(trained: Trained, album: Path, tmp_path: Path) -> None:
    done = predict_files(trained, [str(album)], str(tmp_path / "out"))
    lines = (tmp_path / "out" / "shares.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done


def test_probabilities_that_do_not_fit_are_refused_with_a_remedy_and_the_others_come(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (96, 64)).save(album / "large.png")
    monkeypatch.setattr(batches, "_MOST_BYTES", 2 * 7 * 48 * 32)
    with pytest.raises(
        UserError,
        match=r"large\.png: the probabilities of 7 classes at 64x96 px \(height x width\) take .* without --save prob",
    ):
        predict_files(trained, [str(album)], str(tmp_path / "out"), kinds=["probabilities"])
    assert len(list((tmp_path / "out").rglob("*_probabilities.npz"))) == 6
    assert len(predict_files(trained, [str(album)], str(tmp_path / "masks"))) == 7


def test_probabilities_of_a_batch_are_bounded(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_KEPT_BYTES", 2 * 7 * 48 * 32 * 2)
    sizes = seen(monkeypatch)
    predict_files(trained, [str(album)], str(tmp_path / "out"), kinds=["probabilities"])
    assert sizes == [2, 2, 2]


def test_a_model_in_python_predicts_what_the_command_does(trained: Trained, album: Path, tmp_path: Path) -> None:
    (there,) = predict_files(trained, [str(album / "0000.jpg")], str(tmp_path / "out"))
    model = segdist.load(Path(trained.uri), device="cpu")
    assert model.names == trained.labels.names
    pixels = np.array(Image.open(album / "0000.jpg"))
    for given in (album / "0000.jpg", str(album / "0000.jpg"), Image.open(album / "0000.jpg"), pixels):
        found = model.predict(given)
        assert np.array_equal(found.classes, np.array(Image.open(there["mask"])))
        assert found.shares == there["shares"]
    assert found.mask().tobytes() == Image.open(there["mask"]).tobytes()
    assert found.overlay().tobytes() == Image.open(there["overlay"]).tobytes()
    with pytest.raises(UserError, match=r"must be uint8 pixels of shape \(H, W, 3\), not float64 \(4, 4\)"):
        model.predict(np.zeros((4, 4)))
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        segdist.loud  # noqa: B018


def test_an_out_among_the_images_is_refused_also_when_it_is_there(trained: Trained, album: Path) -> None:
    for out in (album, album / "predictions", album / "day2"):
        for given in (str(album), f"{album}/**/*.jpg"):
            with pytest.raises(
                UserError, match=r"lies inside .*album, where images are searched.*Give a folder outside"
            ):
                predict_files(trained, [given], str(out))
    assert not (album / "predictions").exists()
    assert len(predict_files(trained, [str(album / "day2")], str(album / "predictions"))) == 2
    assert len(predict_files(trained, [str(album / "0000.jpg")], str(album / "beside"))) == 1
    assert len(predict_files(trained, [f"{album}/d*/*.jpg"], str(album / "results"))) == 2
    with pytest.raises(UserError, match="Give a folder outside"):
        predict_files(trained, [f"{album}/d*/*.jpg"], str(album))


def test_predictions_of_another_model_or_look_are_never_mixed(trained: Trained, album: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    predict_files(trained, [str(album)], out)
    other = dataclasses.replace(trained, cfg=override_eval(trained.cfg, {"flip": True}))
    with pytest.raises(
        UserError, match=r"holds predictions of .* or with other settings. Choose another --out, or use --overwrite"
    ):
        predict_files(other, [str(album)], out)
    assert len(predict_files(other, [str(album)], out, overwrite=True)) == 6
    with pytest.raises(UserError, match="or with other settings"):
        predict_files(trained, [str(album)], out)


def test_ten_bad_images_are_listed_at_the_end_and_the_others_are_there(
    trained: Trained, album: Path, tmp_path: Path
) -> None:
    for i in range(10):
        (album / f"00{i}b.jpg").write_bytes((album / "0000.jpg").read_bytes()[: 100 + i])
    with pytest.raises(UserError) as error:
        predict_files(trained, [str(album)], str(tmp_path / "out"))
    assert str(error.value).count("b.jpg: ") == 10
    assert "10 of 16 images could not be read. The results of the others are in" in str(error.value)
    assert len(list((tmp_path / "out").rglob("*_overlay.png"))) == 6
    assert len((tmp_path / "out" / "shares.csv").read_text().splitlines()) == 7


def test_a_disk_that_is_full_ends_the_work_with_its_reason(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = files.storage.write

    def full(uri: str, data: bytes) -> None:
        if uri.endswith("0002.png"):
            raise StorageError(f"{uri}: no space left on device")
        honest(uri, data)

    monkeypatch.setattr(files.storage, "write", full)
    with pytest.raises(StorageError, match=r"0002\.png: no space left"):
        predict_files(trained, [str(album)], str(tmp_path / "out"))


def test_a_prediction_that_is_stopped_says_so_and_its_tables_hold_what_is_done(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, out = batches.classify_batch, tmp_path / "out"

    def stopped(trained: Trained, images: list[np.ndarray], keep: torch.Tensor | None = None) -> np.ndarray:
        if list(out.glob("*.png")):
            raise KeyboardInterrupt
        return honest(trained, images, keep)

    command = ["predict", trained.uri, str(album), "--out", str(out), "--batch-size", "2", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(batches, "classify_batch", stopped)
        patch.setattr(files, "_WRITING", 1)
        assert app(command, standalone_mode=False) == 130
    rows = [json.loads(line) for line in (out / "shares.jsonl").read_text().splitlines()]
    assert 0 < len(rows) < 6
    assert {Path(row["mask"]) for row in rows} == {p for p in out.rglob("*.png") if "overlay" not in p.name}
    said = capsys.readouterr().err
    assert said.count("stopped: ") == 1
    assert f"stopped: {len(rows)} of 6 images are in {out}. Run the same command to continue" in said
    app(command, standalone_mode=False)
    assert f"{len(rows)} of 6 images already have results" in capsys.readouterr().err
    assert len((out / "shares.csv").read_text().splitlines()) == 7


def test_a_log_file_gets_a_line_of_progress_now_and_then(
    trained: Trained, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_files(trained, [f"{album}/000[01].jpg"], str(tmp_path / "out"))
    assert "predicting" not in capsys.readouterr().err
    monkeypatch.setattr(files.console, "_LINE_SECONDS", 0.0)
    predict_files(trained, [str(album)], str(tmp_path / "out"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predicting")]
    assert [line.split(",")[0] for line in lines] == [f"predicting {n}/6" for n in (3, 4, 5, 6)]
    assert all(re.fullmatch(r".*, \d[\d.e+]* per second", line) for line in lines)


def test_a_picture_is_as_large_as_was_allowed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # above twice this, Pillow raises
    Image.new("RGB", (1001, 1000)).save(tmp_path / "large.png")
    with pytest.raises(
        UserError, match=r"large\.png: 1000x1001 pixels \(height x width\) exceed --max-megapixels 1\. Raise"
    ):
        predict_files(trained, [str(tmp_path / "large.png")], str(tmp_path / "out"), max_megapixels=1)
    (done,) = predict_files(trained, [str(tmp_path / "large.png")], str(tmp_path / "out"), max_megapixels=2)
    assert Image.open(done["mask"]).size == (1001, 1000)


def test_a_run_that_slides_may_be_seen_whole(trained: Trained) -> None:
    sliding = override_eval(trained.cfg, {"mode": "sliding", "window_size": [16, 20]})
    assert override_eval(sliding, {"mode": "whole"}).eval.window_size is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--window", "wide"], "--window 'wide': not a list of numbers. For example: 512x512"),
        (["--mode", "sliding", "--window", "512"], "--window '512': 2 numbers are needed. For example: 512x512"),
        (["--window", "512x512"], "--window [512, 512] needs --mode sliding"),
        (["--mode", "sliding", "--window", "0x9"], "--window: Input should be greater than or equal to 1; it is 0"),
        (["--scales", "1,9"], "--scales: Input should be less than or equal to 8; it is 9.0"),
        (["--scales", "1;2"], "--scales '1;2': not a list of numbers. For example: 0.5,1,1.5"),
        (["--overlap", "1.5"], "--overlap: Input should be less than or equal to 0.95; it is 1.5"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_an_option_that_means_nothing_is_refused(
    trained: Trained, command: str, option: list[str], message: str
) -> None:
    with pytest.raises((UserError, ConfigError)) as error:
        app(
            [command, trained.uri, *(["x.png", "--out", "y"] if command == "predict" else []), *option],
            standalone_mode=False,
        )
    assert message in str(error.value)
    assert "eval." not in str(error.value)
