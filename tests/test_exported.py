"""Models out of exports predict what their runs do, from wherever the export lies; what is none says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SEGFORMER, UNET, tree
from hub_server import history, serving
from test_push import TOKENS, Site

import segdist
from segdist import config, storage
from segdist.cli import app
from segdist.distributed import World
from segdist.errors import CheckpointError, UserError
from segdist.publish import push
from segdist.publish.export import export
from segdist.publish.exported import load_model
from segdist.runs.checkpoints import resolve
from segdist.runs.restore import Trained, load_trained
from segdist.train.loop import fit

CPU = torch.device("cpu")
MODELS = {
    "segformer": {**SEGFORMER, "aux_head": True},
    "unet": {**UNET, "aux_head": True, "options": {"decoder_channels": [24, 16, 12, 8, 8]}},
    "mobilevit": {"name": "mobilevit"},
}


@pytest.fixture(scope="module")
def runs(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root, found = tmp_path_factory.mktemp("exported") / "runs", {}
    for name, model in MODELS.items():
        data = {"crop_size": [32, 64], "image_size": 40} if name == "unet" else {"crop_size": [64, 64]}
        fields = tree(street_data, str(root / name), model=model, train={"num_steps": 2}, data=data, optim={"lr": 1e-2})
        fit(config.from_tree(fields, name), World(0, 1, CPU))
        found[name] = load_trained(str(root / name), CPU)
    return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub", TOKENS) as (address, _):
        yield Site(tmp_path / "hub", address, monkeypatch)
    storage.hf._hub_of.cache_clear()


def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8), np.ones((11, 13, 1), np.uint8))


@pytest.mark.parametrize("name", MODELS)
def test_an_export_predicts_what_its_run_does(runs: dict[str, Trained], name: str, tmp_path: Path) -> None:
    export(runs[name], str(tmp_path / "export"))
    ours, theirs = segdist.load(runs[name].uri, "cpu"), segdist.load(tmp_path / "export", "cpu")
    assert theirs.names == ours.names
    here, there = ours.predict(photo()), theirs.predict(photo())
    assert np.array_equal(here.classes, there.classes)
    assert here.mask().getpalette() == there.mask().getpalette()


def test_the_command_takes_an_export_of_the_hub_at_a_revision(
    runs: dict[str, Trained], site: Site, street_folder: Path, tmp_path: Path
) -> None:
    push.push(runs["unet"].uri, "me/streets", verify=False)
    commit = history(site.folder / "me/streets")["commits"][-1]["id"]
    image = str(street_folder / "images" / "0000.jpg")
    masks = []
    for i, given in enumerate((runs["unet"].uri, "me/streets", "hf://me/streets", f"hf://me/streets@{commit}")):
        out = tmp_path / f"out{i}"
        app(["predict", given, image, "--out", str(out), "--device", "cpu"], standalone_mode=False)
        masks.append((out / "0000_overlay.png").read_bytes())
        if i:
            assert json.loads((out / "predictions.json").read_text())["checkpoint"] == f"hf://me/streets@{commit}"
    assert len({*masks}) == 1
    app(["predict", "me/streets", image, "--out", str(tmp_path / "out2"), "--device", "cpu"], standalone_mode=False)
    with pytest.raises(UserError, match=r"hf://me/streets@v9: no such model on the Hub at this revision"):
        load_model("hf://me/streets@v9", CPU)


def test_what_is_no_export_of_ours_says_what_to_do(runs: dict[str, Trained], tmp_path: Path) -> None:
    export(runs["unet"], str(tmp_path / "onnx"), form="torch", size=(32, 32))
    with pytest.raises(UserError, match=r"is an export for torch\.export\..*`segdist export RUN"):
        load_model(str(tmp_path / "onnx"), CPU)
    export(runs["unet"], str(tmp_path / "whole"))
    with pytest.raises(UserError, match=r"holds trained weights, not raw weights\. Export the run with --raw"):
        load_model(str(tmp_path / "whole"), CPU, raw=True)
    with pytest.raises(
        CheckpointError, match=r"whole is an export\. Only `segdist predict` and segdist\.load read exports"
    ):
        resolve(str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds pytorch_model\.bin, but only safetensors are read"):
        load_model(str(tmp_path / "pickled"), CPU)
    (tmp_path / "whole" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"whole is not an export of segdist: .*model\.weights="):
        load_model(str(tmp_path / "whole"), CPU)


def test_a_mistyped_run_is_told_from_a_repository(
    runs: dict[str, Trained], site: Site, street_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(runs["unet"].uri.split("/runs/")[0]))
    (tmp_path / "x.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"runs/unett: no such folder \(did you mean runs/unet\?\), and no such repository on the Hub"
    ):
        app(["predict", "runs/unett", str(tmp_path / "x.jpg"), "--out", str(tmp_path / "out")], standalone_mode=False)
    for command in (["evaluate", "runs/unett"], ["export", "runs/unett", "x"], ["push", "runs/unett", "me/x"]):
        with pytest.raises(UserError, match=r"runs/unett does not exist \(did you mean runs/unet\?\)"):
            app(command, standalone_mode=False)
    with pytest.raises(
        UserError, match=r"model\.weights 'runs/unett' .* no such folder \(did you mean runs/unet\?\), and .*Hub"
    ):
        fit(
            config.from_tree(tree(street_data, "new", model={**UNET, "weights": "runs/unett"}), "test"),
            World(0, 1, CPU),
        )
    site.point("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"nowhere/at_all: no such folder, and the Hub does not answer"):
        load_model("nowhere/at_all", CPU)


def test_weights_of_another_architecture_name_it_and_the_line_that_takes_them(
    runs: dict[str, Trained], street_data: str, tmp_path: Path
) -> None:
    export(runs["unet"], str(tmp_path / "export"))
    run = runs["unet"].uri.split("/checkpoints/")[0]
    for section, words in (
        (
            {"model": {"name": "segformer", "weights": run}},
            r"holds a unet, .*model\.name=segformer.*model: {name: unet, encoder",
        ),
        (
            {"model": {"name": "segformer", "weights": str(tmp_path / "export")}},
            r"export of a unet.*Set model\.name=unet",
        ),
        (
            {"train": {"init_from": run}},
            r"holds a unet with another encoder.*model\.name=segformer.*model: {name: unet, encoder: tu-",
        ),
    ):
        with pytest.raises(UserError, match=words):
            fit(config.from_tree(tree(street_data, str(tmp_path / "run"), **section), "test"), World(0, 1, CPU))
