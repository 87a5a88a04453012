"""Predictions are what evaluation scores, and no larger than was allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SEGFORMER, tree
from PIL import Image

from segdist import config
from segdist.cli import app
from segdist.data import index as indices
from segdist.errors import ConfigError, UserError
from segdist.evaluate import evaluate
from segdist.inference import recipe
from segdist.metric import pair_table
from segdist.predict import predict_files
from segdist.report import with_changes
from segdist.train import fit
from segdist.trained import Trained, load_trained
from segdist.world import World

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

    used = dataclasses.replace(trained, cfg=with_changes(trained.cfg, {**changes, "batch_size": 1}))
    index, found = indices.load(street_data), read_back(street_data, "val")
    (tmp_path / "images").mkdir()
    for sample_id, (image, _) in found.items():
        Image.fromarray(image).save(tmp_path / "images" / f"{sample_id}.png")
    predict_files(used, [str(tmp_path / "images")], str(tmp_path / "out"))
    table = torch.zeros(256, 256, dtype=torch.int64)
    for sample_id, (_, raw) in found.items():
        pred = np.array(Image.open(tmp_path / "out" / f"{sample_id}.png"))
        table += pair_table(torch.from_numpy(pred), torch.from_numpy(index.labels.table(np.uint8)[raw]))
    how = recipe(used.cfg.eval, used.cfg.data.crop_size)
    result = evaluate(used.model, street_data, index, "val", None, used.cfg.io, 1, ALONE, how=how)
    assert torch.equal(result.table, table)


def test_a_picture_is_as_large_as_was_allowed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # above twice this, Pillow raises
    Image.new("RGB", (1001, 1000)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"large\.png: 1001x1000 pixels exceed --max-megapixels 1; raise it"):
        predict_files(trained, [str(tmp_path / "large.png")], str(tmp_path / "out"), max_megapixels=1)
    (done,) = predict_files(trained, [str(tmp_path / "large.png")], str(tmp_path / "out"), max_megapixels=2)
    assert Image.open(done["mask"]).size == (1001, 1000)


def test_a_run_that_slides_may_be_seen_whole(trained: Trained) -> None:
    sliding = with_changes(trained.cfg, {"mode": "sliding", "window_size": [16, 20]})
    assert with_changes(sliding, {"mode": "whole"}).eval.window_size is None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--window", "wide"], "--window 'wide': give numbers such as 512x512"),
        (["--mode", "sliding", "--window", "512"], "--window '512': give 2 numbers, such as 512x512"),
        (["--window", "512x512"], "--window [512, 512] needs --mode sliding"),
        (["--mode", "sliding", "--window", "0x9"], "--window: Input should be greater than or equal to 1; it is 0"),
        (["--scales", "1,9"], "--scales: Input should be less than or equal to 8; it is 9.0"),
        (["--scales", "1;2"], "--scales '1;2': give numbers such as 0.5,1,1.5"),
        (["--overlap", "1.5"], "--overlap: Input should be less than or equal to 0.95; it is 1.5"),
    ],
)
def test_an_option_that_means_nothing_is_refused(trained: Trained, option: list[str], message: str) -> None:
    with pytest.raises((UserError, ConfigError)) as error:
        app(["evaluate", trained.uri, *option], standalone_mode=False)
    assert message in str(error.value)
    assert "eval." not in str(error.value)
