"""Previews: image, truth and prediction of a few samples, as every evaluation leaves them."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from segdist import console, storage
from segdist.cli import app
from segdist.config import Config
from segdist.data.labels import plain
from segdist.data.stream import EvalBatch
from segdist.distributed import World
from segdist.errors import StorageError, UserError
from segdist.evaluation import figures, previews
from segdist.evaluation.previews import Previews, grid
from segdist.evaluation.report import evaluate_checkpoint
from segdist.train.loop import fit

ALONE = World(0, 1, torch.device("cpu"))
Make = Callable[..., Config]


def shown(num_rows: int, wanted: Previews, size: tuple[int, int] = (30, 40)) -> Previews:
    """Previews that saw samples s0, s1, ... of one size, whose predictions are right in their left half alone."""
    for row in range(num_rows):
        image = torch.full((1, 3, *size), 100, dtype=torch.uint8)
        mask = torch.ones((1, *size), dtype=torch.uint8)
        mask[:, : size[0] // 2] = 255
        pred = torch.ones_like(mask)
        pred[:, :, size[1] // 2 :] = 0
        wanted.add(EvalBatch(image, mask, [f"s{row}"], [row]), pred)
    return wanted


def test_every_evaluation_leaves_a_picture_of_the_same_samples(make_config: Make) -> None:
    cfg = make_config(eval={"num_previews": 2})
    fit(cfg, ALONE)
    folder = Path(cfg.run.uri) / "previews"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002.png", "step-00000004.png"]
    sizes = {Image.open(p).size for p in folder.iterdir()}
    assert len({width for width, _ in sizes}) == 1
    images = [np.asarray(Image.open(p).convert("RGB"))[60:240, :280] for p in sorted(folder.iterdir())]
    assert (images[0] == images[1]).all()  # the first column is of the data, and does not learn


def test_a_run_may_leave_none(make_config: Make) -> None:
    cfg = make_config(eval={"num_previews": 0})
    fit(cfg, ALONE)
    assert not (Path(cfg.run.uri) / "previews").exists()


@pytest.mark.parametrize("error", [StorageError("no room"), RuntimeError("a bug")])
def test_a_picture_that_cannot_be_written_is_a_warning_and_ends_no_run(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    said: list[str] = []
    write = storage.write

    def refuse(uri: str, data: bytes) -> None:
        if "/previews/" in uri:
            raise error
        write(uri, data)

    monkeypatch.setattr(storage, "write", refuse)
    monkeypatch.setattr(console, "say", said.append)
    summary = fit(make_config(), ALONE)
    assert summary["state"] == "SUCCEEDED"
    assert f"warning: could not write the previews of step 4: {error}" in said


def test_ids_choose_samples_in_their_order_and_an_unknown_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    drawn = shown(5, Previews(5, 4, None, ["s3", "s1"])).gather(ALONE)
    assert [one.sample_id for one in drawn] == ["s3", "s1"] and not said
    drawn = shown(5, Previews(5, 4, None, ["s3", "s9"])).gather(ALONE)
    assert [one.sample_id for one in drawn] == ["s3"]
    assert said == ["warning: the split has no sample 's9'; skipping these previews"]


def test_without_ids_so_many_of_those_that_are_scored_are_kept() -> None:
    assert [one.row for one in shown(3, Previews(3, 8)).gather(ALONE)] == [0, 1, 2]
    rows = [one.row for one in shown(100, Previews(100, 4)).gather(ALONE)]
    assert rows == [one.row for one in shown(100, Previews(100, 4)).gather(ALONE)]
    assert [row // 25 for row in rows] == [0, 1, 2, 3]
    assert shown(100, Previews(100, 0)).gather(ALONE) == []


def test_the_share_of_right_pixels_is_of_valid_ones_at_the_masks_own_size() -> None:
    (one,) = shown(1, Previews(1, 1), (1000, 2000)).gather(ALONE)
    assert one.accuracy == 0.5
    assert one.mask.shape == one.pred.shape == one.image.shape[:2] == (144, 288)
    image = torch.zeros((1, 3, 4, 4), dtype=torch.uint8)
    void = Previews(1, 1)
    void.add(EvalBatch(image, torch.full((1, 4, 4), 255, dtype=torch.uint8), ["v"], [0]), image[:, 0])
    assert void.gather(ALONE)[0].accuracy is None


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (40, 60)])
def test_three_columns_show_image_truth_and_prediction(size: tuple[int, int]) -> None:
    drawn = shown(2, Previews(2, 2), size).gather(ALONE)
    labels = plain(["sky", "a" * 200])
    picture = np.asarray(grid(drawn, labels, "title"))
    assert picture.ndim == 3
    for name in ("mask", "pred"):
        tile = figures.blended(drawn[0].image, getattr(drawn[0], name), labels)
        assert tile.shape == drawn[0].image.shape
    if size == (40, 60):
        tile = figures.blended(drawn[0].image, drawn[0].pred, labels)
        column = (picture.shape[1] - 12) // 3
        top = 12 + 30 + 24
        assert (picture[top : top + tile.shape[0], 12 + 2 * column : 12 + 2 * column + tile.shape[1]] == tile).all()


def test_evaluate_draws_chosen_samples_of_a_checkpoint(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_config(eval={"num_previews": 0})
    fit(cfg, ALONE)
    out = tmp_path / "out" / "val.png"
    result = evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu", per_sample=True, previews=str(out))
    assert Image.open(out).size[0] == 3 * 300 + 12
    ids = result["pictures"]["sample_ids"]
    evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu", previews=str(out), preview_ids=ids[:1])
    one = Image.open(io.BytesIO(out.read_bytes()))
    evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu", previews=str(out), preview_ids=ids[:2])
    assert Image.open(out).height > one.height
    typo, said = str(tmp_path / "typo.png"), []
    monkeypatch.setattr(console, "say", said.append)
    scored = evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu", previews=typo, preview_ids=["nobody"])
    assert scored["confusion"] == result["confusion"] and not Path(typo).exists()
    assert said == ["warning: the split has no sample 'nobody'; skipping these previews"]
    assert previews.FOLDER not in [p.name for p in Path(cfg.run.uri).iterdir()]


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--previews", "val.jpg"], "this file will be a PNG"), (["--preview-ids", "a,b"], "Add --previews FILE.png")],
)
def test_options_that_draw_nothing_are_told_before_the_work(options: list[str], text: str) -> None:
    error = CliRunner().invoke(app, ["evaluate", "nowhere", *options]).exception
    assert isinstance(error, UserError)
    assert text in str(error)


def test_slow_storage_gets_every_picture(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.write

    def dawdle(uri: str, data: bytes) -> None:
        time.sleep(0.3 if "/previews/" in uri else 0)
        write(uri, data)

    monkeypatch.setattr(storage, "write", dawdle)
    cfg = make_config(train={"num_steps": 6}, eval={"every_steps": 1, "num_previews": 1})
    fit(cfg, ALONE)
    assert len(list((Path(cfg.run.uri) / "previews").iterdir())) == 6
