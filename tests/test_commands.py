"""The commands, as a person and a script meet them: evaluate, export, predict, and what they say of mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
import yaml
from conftest import SEGFORMER, UNET, plain_folder, prepare, tree
from PIL import Image

from segdist import config
from segdist.data import index as indices
from segdist.data.labels import plain
from segdist.distributed import World
from segdist.errors import UserError
from segdist.evaluation.confusion import confusion_matrix
from segdist.evaluation.evaluate import evaluate
from segdist.evaluation.figures import index_mask, overlay
from segdist.evaluation.report import evaluate_checkpoint
from segdist.publish.export import export, native
from segdist.runs import checkpoints, segments
from segdist.runs.checkpoints import resolve
from segdist.runs.restore import Trained, load_trained
from segdist.train.loop import fit

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def segdist(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = forks.run(["-m", "segdist", *arguments], env={**os.environ, **environment})
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def runs(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Finished runs by name; `resized` sees images at another size than their own."""
    root = tmp_path_factory.mktemp("runs")
    plans: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "segformer": (SEGFORMER, {}),
        "resized": (SEGFORMER, {"image_size": 40}),
        "shrunk": (SEGFORMER, {"image_size": [32, 33]}),
        "bf16": (SEGFORMER, {}),
        "unet": (UNET, {}),
    }
    for name, (model, data) in plans.items():
        fields = tree(street_data, str(root / name), model=model, data=data, train={"num_steps": 6}, optim={"lr": 1e-2})
        fit(config.from_tree(fields, name), ALONE)
    return {name: str(root / name) for name in plans}


@pytest.fixture(scope="module")
def pictures(street_folder: Path) -> list[str]:
    return [str(p) for p in sorted((street_folder / "images").iterdir())[:3]]


def test_evaluate_reports_what_training_saw(runs: dict[str, str], street_data: str) -> None:
    result = evaluate_checkpoint(runs["segformer"], None, "val", 3, "cpu")
    best = [r for r in segments.read_metrics(runs["segformer"]) if r["kind"] == "eval" and r["miou"] == result["miou"]]
    assert best
    assert best[0]["loss"] == pytest.approx(result["loss"], rel=1e-6)
    keys = {
        "miou",
        "mean_accuracy",
        "overall_accuracy",
        "loss",
        "iou",
        "accuracy",
        "num_samples",
        "protocol",
        "checkpoint",
        "data",
    }
    assert keys <= set(result)
    assert result["num_samples"] == 5
    assert result["data"] == street_data
    assert list(result["iou"]) == ["sky", "building", "road", "pavement", "tree", "car", "person"]


def test_the_loss_and_the_table_are_those_of_plain_torch(runs: dict[str, str], street_data: str) -> None:
    trained, index = load_trained(runs["segformer"], CPU), indices.load(street_data)
    result = evaluate(trained.model, street_data, index, "val", None, trained.cfg.io, 1, ALONE)
    from test_prepare import read_back

    table, loss, valid = torch.zeros(256, 256, dtype=torch.int64), 0.0, 0
    for image, raw in read_back(street_data, "val").values():
        mask = torch.from_numpy(index.labels.table(np.uint8)[raw])
        x = (
            torch.from_numpy(image).permute(2, 0, 1).float() / 255
            - torch.tensor(trained.model.traits.mean)[:, None, None]
        ) / (torch.tensor(trained.model.traits.std)[:, None, None])
        with torch.no_grad():
            logits = trained.model.net(pixel_values=x[None]).logits
        wide = torch.nn.functional.interpolate(logits, mask.shape, mode="bilinear", align_corners=False)
        table += confusion_matrix(wide.argmax(1).to(torch.uint8)[0], mask)
        loss += torch.nn.functional.cross_entropy(wide, mask.long()[None], ignore_index=255, reduction="sum").item()
        valid += int((mask != 255).sum())
    assert (result.table - table).abs().sum() <= 2  # a rounding of the normalisation may turn a tie
    assert result.loss == pytest.approx(loss / valid, rel=1e-5)


def test_evaluation_does_not_depend_on_batch_size_and_leaves_the_model_training(
    runs: dict[str, str], street_data: str
) -> None:
    trained, index = load_trained(runs["unet"], CPU), indices.load(street_data)
    trained.model.train()
    before = {k: v.clone() for k, v in trained.model.state_dict().items()}
    a, b = (evaluate(trained.model, street_data, index, "val", None, trained.cfg.io, n, ALONE) for n in (1, 4))
    assert (a.table - b.table).abs().sum() <= 4
    assert a.num_samples == b.num_samples == 5
    assert trained.model.training
    assert all(torch.equal(before[k], v) for k, v in trained.model.state_dict().items())


@pytest.mark.parametrize("name", ["segformer", "resized", "shrunk", "bf16"])
def test_bare_transformers_gives_the_same_pair_table(
    runs: dict[str, str], street_data: str, tmp_path: Path, name: str
) -> None:
    """The exported folder in a process that cannot import segdist, by the pipeline a user would write."""
    from test_prepare import read_back

    trained, index = load_trained(runs[name], CPU), indices.load(street_data)
    summary = export(trained, str(tmp_path / "export"))
    assert summary["layout"] == "transformers"
    (tmp_path / "images").mkdir()
    found = read_back(street_data, "val")
    for sample_id, (image, _) in found.items():
        Image.fromarray(image).save(tmp_path / "images" / f"{sample_id}.png")
    code = f"""
import sys; sys.modules["segdist"] = None
import numpy as np, torch
from pathlib import Path
from PIL import Image
from transformers import pipeline
torch.set_num_threads(1)
segment = pipeline("image-segmentation", model={str(tmp_path / "export")!r})
ids = segment.model.config.label2id
for path in sorted(Path({str(tmp_path / "images")!r}).iterdir()):
    image = Image.open(path)
    classes = np.full((image.height, image.width), 255, np.uint8)
    for part in segment(image):
        classes[np.asarray(part["mask"]) > 0] = ids[part["label"]]
    np.save(path.with_suffix(".npy"), classes)
"""
    forks.run(["-c", code], bare=True, check=True, cwd=tmp_path)
    table = torch.zeros(256, 256, dtype=torch.int64)
    for sample_id, (_, raw) in found.items():
        pred = np.load(tmp_path / "images" / f"{sample_id}.npy")
        table += confusion_matrix(torch.from_numpy(pred), torch.from_numpy(index.labels.table(np.uint8)[raw]))
    ours = evaluate(trained.model, street_data, index, "val", trained.cfg.data.image_size, trained.cfg.io, 1, ALONE)
    assert torch.equal(ours.table, table)


def test_smp_loads_the_exported_unet(runs: dict[str, str], tmp_path: Path) -> None:
    trained = load_trained(runs["unet"], CPU)
    assert export(trained, str(tmp_path / "export"))["layout"] == "segmentation_models_pytorch"
    code = f"""
import sys; sys.modules["segdist"] = None
import segmentation_models_pytorch as smp, torch
torch.set_num_threads(1)
model = smp.from_pretrained({str(tmp_path / "export")!r}).eval()
x = torch.linspace(-2, 2, 3 * 32 * 64).view(1, 3, 32, 64)
torch.save(model(x), {str(tmp_path / "logits.pt")!r})
"""
    forks.run(["-c", code], bare=True, check=True)
    with torch.no_grad():
        ours = trained.model(torch.linspace(-2, 2, 3 * 32 * 64).view(1, 3, 32, 64))
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()  # memory formats round differently
    assert torch.equal(ours.argmax(1), theirs.argmax(1))


def test_an_export_has_a_card_with_its_number(runs: dict[str, str], tmp_path: Path) -> None:
    export(load_trained(runs["segformer"], CPU), str(tmp_path / "export"))
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    best = json.loads((Path(runs["segformer"]) / "best.json").read_text(encoding="utf-8"))
    assert f"**mIoU {best['miou']:.4f}** on its validation split" in card
    assert "| sky |" in card
    assert "image-segmentation" in card


def test_the_commands_speak_json_on_stdout_and_words_on_stderr(
    runs: dict[str, str], pictures: list[str], tmp_path: Path
) -> None:
    run = runs["segformer"]
    (tmp_path / "e.json").write_text("precious")
    segdist("evaluate", str(tmp_path / "nosuch"), "--out", str(tmp_path / "e.json"), code=2)
    assert (tmp_path / "e.json").read_text() == "precious"
    more = ["--boundary", "--confusion", str(tmp_path / "e.png")]
    done = segdist("evaluate", run, "--json", "--out", str(tmp_path / "e.json"), *more)
    assert Image.open(tmp_path / "e.png").width > 300
    assert "boundary" in done.stderr
    result = json.loads(done.stdout)
    assert result["checkpoint"] == resolve(run)
    assert json.loads((tmp_path / "e.json").read_text(encoding="utf-8")) == result
    assert "pavement" in done.stderr
    assert f"mIoU {result['miou']:.4f}" in done.stderr
    done = segdist("export", run, str(tmp_path / "x"), "--json")
    exported = json.loads(done.stdout)
    assert exported.pop("difference") < 1e-5
    assert exported.pop("equal_pixels") == 1
    assert exported.pop("verified").startswith("the same logits (within ")
    assert exported == {"path": str(tmp_path / "x"), "layout": "transformers"}
    assert "verified: transformers alone gives the same logits" in done.stderr
    assert not (tmp_path / "x" / "verification").exists()
    done = segdist("predict", resolve(run), *pictures, "--out", str(tmp_path / "p"), "--json")
    images = json.loads(done.stdout)["images"]
    assert [i["image"] for i in images] == pictures
    for item in images:
        mask = Image.open(item["mask"])
        assert (mask.mode, mask.size) == ("P", (48, 32))
        assert np.array(mask).max() < 7
        assert mask.getpalette()[:3] == list(load_trained(run, CPU).labels.classes[0].color)  # type: ignore[index]
        assert Image.open(item["overlay"]).width > 48
        assert sum(item["shares"].values()) == pytest.approx(1)


def test_the_whole_road_by_command(tmp_path: Path) -> None:
    source, data, run = (
        str(plain_folder(tmp_path / "src", 12, size=(32, 32))),
        str(tmp_path / "data"),
        str(tmp_path / "run"),
    )
    done = segdist("prepare", source, data, "--names", "a,b,c", "--json")
    summary = json.loads(done.stdout)
    assert set(summary) == {"uri", "splits", "classes"}
    assert set(summary["splits"]["train"]) == {"samples", "shards", "bytes"}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree(data, run)), encoding="utf-8")
    done = segdist("train", str(path), "train.num_steps=2", "--json")
    trained = json.loads(done.stdout)
    keys = {
        "run_uri",
        "state",
        "step",
        "miou",
        "best_step",
        "best_checkpoint",
        "images_per_second",
        "wait_share",
        "restarts",
    }
    assert set(trained) == keys
    assert (trained["state"], trained["step"]) == ("SUCCEEDED", 2)
    assert "step 1/2" in done.stderr
    assert "is complete" in segdist("train", str(path), "train.num_steps=2").stderr


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_trains_by_command(street_data: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    train = {"micro_batch_size": "auto"}
    path.write_text(yaml.safe_dump(tree(street_data, str(tmp_path / "run"), train=train)), encoding="utf-8")
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "segdist",
        "train",
        str(path),
    ]
    done = subprocess.run([sys.executable, *command, "--json"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count(
            "micro_batch_size=auto is now fixed at 2 (on a CPU, a divisor of at most 4). At most 2 rank(s) can share this run."
        )
        == 1
    )
    assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    assert json.loads(done.stdout.splitlines()[-1])["state"] == "SUCCEEDED"
    assert "2 rank(s) on cpu" in done.stderr


@pytest.mark.slow
def test_ranks_that_survive_another_say_so_in_one_message(street_data: str, tmp_path: Path) -> None:
    path, run = tmp_path / "run.yaml", tmp_path / "run"
    fields = {"train": {"num_steps": 2000}, "eval": {"every_steps": 2000}, "checkpoint": {"every_steps": 5}}
    path.write_text(yaml.safe_dump(tree(street_data, str(run), **fields)), encoding="utf-8")
    program = (
        "import os, sys, threading, time; from segdist.runs import checkpoints; from segdist.cli import main\n"
        "def die():\n"
        f"    while not checkpoints.committed({str(run)!r}): time.sleep(0.1)\n"
        "    os.kill(os.getpid(), 9)\n"
        "if os.environ['RANK'] == '1': threading.Thread(target=die, daemon=True).start()\n"
        f"sys.argv = ['segdist', 'train', {str(path)!r}]; main()\n"
    )
    (tmp_path / "ranks.py").write_text(program, encoding="utf-8")
    done = forks.ranks(2, [tmp_path / "ranks.py"])
    assert done.returncode != 0
    assert "another rank has ended, so this one stopped too" in " ".join(done.stderr.split())
    assert "gloo" not in done.stderr
    assert checkpoints.newest(str(run), print) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: cannot read this config"),
        (["train", "configs/demo.yaml", "optim.lrr=1"], "unknown key `optim.lrr`; the nearest valid key is `optim.lr`"),
        (["evaluate", "nowhere"], "nowhere does not exist. Give the run.uri of a training run"),
        (["evaluate", "configs"], "neither a checkpoint nor a run with a committed checkpoint"),
        (["prepare", "nowhere", "x"], "nowhere: this folder does not exist"),
        (["prepare", ".", "x", "--format", "voc3000"], "unknown --format 'voc3000'"),
        (["prepare", ".", "x", "--void", "a"], "not a list of mask values"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = segdist(*arguments, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_compile_without_a_compiler_names_the_field(tmp_path: Path, street_data: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree(street_data, str(tmp_path / "run"), train={"compile": True})), encoding="utf-8")
    nowhere = {"PATH": str(tmp_path), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = segdist("train", str(path), code=2, **nowhere)
    assert "train.compile: torch cannot compile this model here (" in done.stderr
    assert "or set train.compile=false" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert segdist("train", str(path), "train.compile=false").returncode == 0  # it is no part of the run's identity


def test_ranks_make_a_mistake_once_and_none_hangs(tmp_path: Path, street_data: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree(street_data, "/proc/nothing/run")), encoding="utf-8")
    done = forks.ranks(2, ["-m", "segdist", "train", path], timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("cannot write") == 1


def test_data_of_other_classes_is_refused(runs: dict[str, str], tmp_path: Path) -> None:
    prepare(str(plain_folder(tmp_path / "src")), str(tmp_path / "data"), names="sky,building,lane")
    done = segdist("evaluate", runs["segformer"], "--data", str(tmp_path / "data"), code=2)
    assert "has 7 classes" in done.stderr
    assert "Class 2 is 'road' in the checkpoint and 'lane' in the dataset" in " ".join(done.stderr.split())


def test_an_export_never_overwrites_other_things(runs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    assert "is not an export of segdist" in segdist("export", runs["segformer"], str(tmp_path), code=2).stderr


def test_an_export_of_another_run_is_replaced_only_when_asked(runs: dict[str, str], tmp_path: Path) -> None:
    dest = tmp_path / "export"
    export(load_trained(runs["segformer"], CPU), str(dest))
    export(load_trained(runs["segformer"], CPU), str(dest))
    with pytest.raises(UserError, match="holds the export of"):
        export(load_trained(runs["unet"], CPU), str(dest))
    export(load_trained(runs["unet"], CPU), str(dest), overwrite=True)
    assert (dest / "model.safetensors").stat().st_mode & 0o044


def test_a_prediction_never_overwrites_a_picture(runs: dict[str, str], pictures: list[str], tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    Image.open(pictures[0]).save(photo)
    before = photo.read_bytes()
    assert (
        "would be overwritten"
        in segdist("predict", runs["segformer"], str(photo), "--out", str(tmp_path), code=2).stderr
    )
    assert photo.read_bytes() == before
    Image.open(pictures[0]).save(tmp_path / "a_overlay.jpg")
    two = [str(photo), str(tmp_path / "a_overlay.jpg")]
    said = segdist("predict", runs["segformer"], *two, "--out", str(tmp_path / "p")).stderr
    assert "their results keep it" in said  # the overlay of the one would be the mask of the other
    assert {"a.png.png", "a_overlay.jpg.png"} <= {path.name for path in (tmp_path / "p").iterdir()}


def test_one_bad_picture_does_not_stop_the_others(runs: dict[str, str], pictures: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    done = segdist(
        "predict", runs["segformer"], pictures[0], str(tmp_path / "bad.jpg"), "--out", str(tmp_path / "p"), code=2
    )
    assert "bad.jpg: not an image that can be read" in done.stderr
    assert (tmp_path / "p" / f"{Path(pictures[0]).stem}_overlay.png").exists()


def test_an_export_that_its_library_reads_otherwise_is_not_written(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_trained(runs["segformer"], CPU)
    honest = native._transformers

    def wrong(trained: Trained, folder: Path) -> None:
        honest(trained, folder)
        path = folder / "preprocessor_config.json"
        path.write_text(path.read_text().replace("0.485", "0.5"))

    monkeypatch.setattr(native, "_transformers", wrong)
    with pytest.raises(UserError, match=r"transformers gives other logits than segdist .* Nothing was written"):
        export(trained, str(tmp_path / "x"), verify=True)
    assert not list((tmp_path / "x").glob("*"))


@pytest.mark.parametrize(
    "command", ["prepare", "train", "status", "evaluate", "compare", "export", "predict", "config show", "k8s"]
)
def test_help_teaches_with_an_example(command: str) -> None:
    text = segdist(*command.split(), "--help").stdout
    assert "Example:" in text
    assert f"segdist {command}" in " ".join(text.split())


def test_config_show_explains_every_field() -> None:
    text = segdist("config", "show", "configs/demo.yaml", "train.num_steps=50").stdout
    assert "num_steps: 50" in text
    assert "# * Peak learning rate of the encoder's last layer." in text


def test_an_overlay_shows_classes_and_leaves_void_alone() -> None:
    labels = plain(["left", "right"])
    classes = np.zeros((40, 60), np.uint8)
    classes[:, 30:] = 1
    classes[30:] = 255
    drawn = np.asarray(overlay(np.full((40, 60, 3), 100, np.uint8), classes, labels))
    zoom = drawn.shape[0] // 40
    left, right, void = (drawn[y * zoom, x * zoom].astype(int) for y, x in ((5, 5), (5, 50), (36, 5)))
    for pixel, k in ((left, 0), (right, 1)):
        expected = 0.45 * 100 + 0.55 * np.array(labels.classes[k].color)
        assert np.abs(pixel - expected).max() <= 1
    assert void.tolist() == [100, 100, 100]
    assert drawn.shape[1] > 60 * zoom  # a legend stands beside it
    assert np.array(index_mask(classes, labels)).tolist() == classes.tolist()


def test_models_are_listed_in_80_columns_and_shown_one_by_one() -> None:
    listed = segdist("models", COLUMNS="80").stderr
    table = [line for line in listed.splitlines() if line.startswith(" ")]
    assert max(map(len, table)) <= 80
    assert " segformer " in listed and "3.7 to 84.6 M" in listed and "NVIDIA: research" in listed
    one = segdist("models", "segformer", "--json", COLUMNS="200")
    assert "nvidia/mit-b0: NVIDIA Source Code License for SegFormer (research and evaluation only" in one.stderr
    (entry,) = json.loads(one.stdout)
    assert (entry["name"], entry["stride"], entry["align_corners"]) == ("segformer", 4, False)
    assert entry["exports"] == ["transformers", "onnx", "torch.export"] and entry["parameters"]["b5"] > 80e6
    refused = segdist("models", "mask2former", code=2).stderr
    assert "mask2former is not supported, because it predicts a set of masks" in refused


def test_the_version_is_told() -> None:
    from typer.testing import CliRunner

    from segdist import __version__
    from segdist.cli import app

    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, f"segdist {__version__}")
