"""Initial weights and data by Hub id, through the real clients and a Hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import forks
import pytest
import torch
import yaml
from conftest import tree
from hub_server import COMMIT, commit_of, serving

from segdist import config, models
from segdist.config import Segformer, Smp
from segdist.distributed import World
from segdist.train.loop import fit

pytestmark = pytest.mark.slow


def ask(url: str, home: Path, model: dict[str, str], offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Builds the model in a process whose Hub is `url`; its notes and a checksum of its encoder as JSON."""
    code = f"""
import json, torch
from segdist import config, models
tree = {{"run": {{"uri": "r"}}, "data": {{"uri": "d"}}, "train": {{"num_steps": 1}}, "model": {model!r}}}
model = models.build(config.from_tree(tree, "test").model, ["a", "b", "c"])
encoder = [v.double().sum().item() for k, v in model.state_dict().items() if k.startswith(model.traits.encoder_prefix)]
print(json.dumps({{"notes": model.notes, "encoder": encoder, "origin": model.origin}}))
"""
    hub = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": str(int(offline))}
    return forks.run(["-c", code], env={**os.environ, **hub})


def encoder_sums(model: models.Segmenter) -> list[float]:
    return [v.double().sum().item() for k, v in model.state_dict().items() if k.startswith(model.traits.encoder_prefix)]


def test_segformer_comes_by_hub_id(tmp_path: Path) -> None:
    donor = models.build(Segformer(size="tiny"), ["x"] * 1 + ["y", "z", "w"])
    donor.net.save_pretrained(tmp_path / "hub" / "someone" / "mit-tiny")
    with serving(tmp_path / "hub") as (url, asked):
        done = ask(url, tmp_path / "home", {"name": "segformer", "weights": "someone/mit-tiny"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["encoder"] == pytest.approx(encoder_sums(donor), rel=1e-12)
    assert result["notes"][0] == f"initial weights from someone/mit-tiny at {COMMIT[:10]}"
    assert result["notes"][1].startswith("head replaced: 4 -> 3 classes")
    assert any(path.endswith("model.safetensors") for path in asked)


def test_unet_comes_by_hub_id_at_a_revision_with_its_licence_and_again_from_the_cache(tmp_path: Path) -> None:
    """Weights in smp's layout, as a .bin at another revision; the second time without the Hub."""
    donor = models.build(Smp(encoder="resnet18"), ["x", "y"])
    donor.net.to(memory_format=torch.contiguous_format).save_pretrained(str(tmp_path / "hub" / "someone" / "unet"))
    older = Path(shutil.copytree(tmp_path / "hub" / "someone" / "unet", tmp_path / "hub" / "someone" / "unet@v1"))
    torch.save({k: v + 1 for k, v in donor.net.state_dict().items()}, older / "pytorch_model.bin")
    (older / "model.safetensors").unlink()
    (older / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: L\n---\n")
    model = {"name": "unet", "encoder": "resnet18", "weights": "someone/unet", "revision": "v1"}
    with serving(tmp_path / "hub") as (url, asked):
        done = ask(url, tmp_path / "home", model)
    again = ask(url, tmp_path / "home", model, offline=True)
    missing = ask(url, tmp_path / "home", {**model, "revision": "v7"}, offline=True)
    assert done.returncode == 0, (done.stderr, asked)
    result = json.loads(done.stdout.splitlines()[-1])
    expected = [v.double().sum().item() for k, v in donor.net.state_dict().items() if k.startswith("encoder.")]
    sizes = [v.numel() for k, v in donor.net.state_dict().items() if k.startswith("encoder.")]
    assert result["encoder"] == pytest.approx([total + n for total, n in zip(expected, sizes)], rel=1e-4)
    assert result["origin"] == {
        "source": "someone/unet", "revision": commit_of(older), "through": [],
        "licence": {"name": "own", "link": "L", "note": None, "id": None},
    }  # fmt: skip
    assert json.loads(again.stdout.splitlines()[-1]) == result, again.stderr
    assert missing.returncode != 0 and "cannot be reached" in missing.stderr


def test_a_hub_id_that_does_not_exist_is_explained(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub") as (url, _):
        done = ask(url, tmp_path / "home", {"name": "segformer", "weights": "someone/nothing"})
    assert done.returncode != 0
    assert "model.weights 'someone/nothing' could not be loaded" in done.stderr


def test_unet_takes_its_imagenet_encoder_from_the_hub(tmp_path: Path) -> None:
    donor = models.build(Smp(encoder="resnet18"), ["x", "y"])
    from safetensors.torch import save_file

    repo = tmp_path / "hub" / "smp-hub" / "resnet18.imagenet"
    repo.mkdir(parents=True)
    weights = {k: v.contiguous() for k, v in donor.net.encoder.state_dict().items()}
    save_file(weights | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, repo / "model.safetensors")
    (repo / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n", encoding="utf-8")
    settings = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "input_space": "RGB", "input_range": [0, 1]}
    (repo / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with serving(tmp_path / "hub") as (url, asked):
        done = ask(url, tmp_path / "home", {"name": "unet", "encoder": "resnet18", "weights": "imagenet"})
    assert done.returncode == 0, (done.stderr, asked)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["encoder"] == pytest.approx(encoder_sums(donor), rel=1e-12)
    assert (result["origin"]["source"], len(result["origin"]["revision"])) == ("smp-hub/resnet18.imagenet", 40)
    assert result["origin"]["licence"]["name"] == "bsd-3-clause"
    assert result["notes"] == ["encoder resnet18 from ImageNet; newly initialised: the decoder and the head"]


def test_a_prepared_data_set_is_trained_on_from_the_hub(tmp_path: Path, street_data: str) -> None:
    """hf:// is read by ranges, as a bucket is; and it is to read from only."""
    shutil.copytree(street_data, tmp_path / "hub" / "datasets" / "someone" / "streets")
    path = tmp_path / "run.yaml"
    run = tree("hf://datasets/someone/streets@main", str(tmp_path / "run"), train={"num_steps": 2})
    path.write_text(yaml.safe_dump(run), encoding="utf-8")
    with serving(tmp_path / "hub") as (url, asked):
        hub = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

        def segdist(*arguments: str) -> subprocess.CompletedProcess[str]:
            return forks.run(["-m", "segdist", *arguments], env={**os.environ, **hub})

        done = segdist("train", str(path), "--json")
        assert done.returncode == 0, done.stderr
        missing = segdist("train", str(path), "data.uri=hf://datasets/someone/nothing")
        written = segdist("train", str(path), "run.uri=hf://datasets/someone/run")
    same = config.from_tree(tree(street_data, str(tmp_path / "local"), train={"num_steps": 2}), "test")
    assert json.loads(done.stdout)["miou"] == fit(same, World(0, 1, torch.device("cpu")))["miou"]
    assert any("/resolve/main/train/" in path for path in asked)
    assert missing.returncode == 2 and "no such repository on the Hub" in missing.stderr
    assert written.returncode == 2 and "hf:// is read-only" in written.stderr
