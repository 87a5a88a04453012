"""The tutorials of docs/tutorials: their own commands, on small drawn data in the original layout, with smaller models."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import forks
import pytest
import yaml
from PIL import Image
from tutorials import ROOT, TUTORIALS, commands, page

from segdist import config
from segdist.data import index
from segdist.runs import segments

CHANCE = 0.2  # the mIoU of one class everywhere is below, on all of these


def walk(name: str, folder: Path) -> Path:
    """The folder, in which the page's commands were given."""
    done = forks.run([ROOT / "tests" / "tutorials.py", name, str(folder)], timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_one_config_and_at_most_five_commands(name: str) -> None:
    given = commands(name)
    assert 1 <= len(given) <= 5
    assert [arguments[1:] for arguments in given if arguments[0] == "train"] == [[f"configs/tutorials/{name}.yaml"]]
    cfg = config.load(ROOT / "configs" / "tutorials" / f"{name}.yaml")
    assert (cfg.data.uri, cfg.run.uri) == (f"data/{name}", f"runs/{name}")
    first = next(arguments for arguments in given if arguments[0] == "prepare")
    text = (ROOT / "configs" / "tutorials" / f"{name}.yaml").read_text(encoding="utf-8")
    first = first[: first.index("--push")] if "--push" in first else first
    assert f"segdist {' '.join(first)}\n" in text  # the config's header says the same


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_page_shows_pictures_that_are_there_and_small(name: str) -> None:
    shown = re.findall(r"!\[.+?\]\((\S+?)\)", page(name))
    assert f"{name}.jpg" in shown
    assert (f"{name}-curves.png" in shown) == TUTORIALS[name].curves
    for picture in shown:
        path = ROOT / "docs" / "tutorials" / picture
        assert path.stat().st_size < 150_000
        assert Image.open(path).width >= 600
    assert "What the original got wrong" in page(name)
    assert f"(tutorials/{name}.md)" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


def check_run(place: Path, name: str) -> None:
    """The run went on after it was stopped, learned something, and left its previews."""
    run = place / "runs" / name
    state = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (state["state"], state["attempt"]) == ("SUCCEEDED", 2)
    assert state["miou"] > CHANCE
    assert [p.name for p in sorted((run / "previews").iterdir())] == ["step-00000020.png", "step-00000040.png"]
    losses = [row["loss"] for row in segments.read_metrics(str(run)) if row["kind"] == "train"]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_task_guide(tmp_path: Path) -> None:
    place = walk("scene_parse150", tmp_path)
    check_run(place, "scene_parse150")
    assert index.load(str(place / "data" / "scene_parse150")).labels.num_classes == 150
    assert (place / "scene_parse150.png").exists()
    assert len(list((place / "predictions").glob("*_overlay.png"))) == 8
    (code,) = re.findall(r"```python\n(.*?)```", page("scene_parse150"), re.DOTALL)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = forks.run(
        ["-c", f"import sys; sys.modules['segdist'] = None\n{code}"], bare=True, cwd=place, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sky" in done.stdout


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sidewalk_blog(tmp_path: Path) -> None:
    place = walk("sidewalk", tmp_path)
    check_run(place, "sidewalk")
    loaded = index.load(str(place / "data" / "sidewalk"))
    assert "flat-sidewalk" in loaded.labels.names
    assert loaded.labels.void == (0,)
    assert (place / "sidewalk.png").exists()
    assert sorted(p.name for p in (place / "predictions").glob("*_overlay.png")) == [
        f"{i}_overlay.png" for i in range(3)
    ]
    data = index.load(str(place / "hub" / "datasets" / "OWNER" / "sidewalk"))
    assert (
        data.labels.names == loaded.labels.names
        and data.splits["train"].num_samples == loaded.splits["train"].num_samples
    )
    model = place / "hub" / "OWNER" / "segformer-b0-sidewalk"
    card = (model / "README.md").read_text(encoding="utf-8")
    assert (model / "model.safetensors").exists() and "base_model: nvidia/mit-b0" in card
    assert (model / "images" / "samples.png").exists() and "research and evaluation only" in card


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_pets_notebook(tmp_path: Path) -> None:
    place = walk("pets", tmp_path)
    check_run(place, "pets")
    assert index.load(str(place / "data" / "pets")).labels.names == ["pet", "background", "border"]
    rates = {
        row["step"]: row["lr"] for row in segments.read_metrics(str(place / "runs" / "pets")) if row["kind"] == "train"
    }
    assert [rates[10], rates[20], rates[40]] == pytest.approx([2e-3, 2e-4, 2e-5])
    assert Image.open(place / "pets-curves.png").width > 600
    assert (place / "pets.png").exists()
    epoch = yaml.safe_load((ROOT / "configs" / "tutorials" / "pets.yaml").read_text(encoding="utf-8"))
    assert epoch["train"]["num_steps"] == 30 * epoch["eval"]["every_steps"]
    assert epoch["eval"]["every_steps"] == 2944 // 4  # of 3,680 images in trainval, four fifths


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_poutynes_unet(tmp_path: Path) -> None:
    place = walk("voc2007", tmp_path)
    check_run(place, "voc2007")
    run = place / "runs" / "voc2007"
    rows = list(csv.DictReader((place / "voc2007.tsv").read_text(encoding="utf-8").splitlines(), delimiter="\t"))
    assert [row["step"] for row in rows] == ["20", "40"]
    assert all(0 <= float(row[score]) <= 1 for row in rows for score in ("accuracy", "f1", "miou"))
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    best = json.loads((run / "best.json").read_text(encoding="utf-8"))
    assert best["miou"] == max(float(row["miou"]) for row in rows)
    kept = {p.name for p in (run / "checkpoints").iterdir()}
    assert best["checkpoint"].rpartition("/")[2] in kept  # the best,
    assert max(kept).startswith("step-00000040")  # and the last
    assert len(kept) <= 2
    assert Image.open(place / "voc2007.png").height > 6 * 192  # six samples
