"""What segdist wrote before its modules moved still opens: data, runs, sweeps, exports, reports, predictions, configs.

`fixtures/before_rooms/` was written by the commit that its make.py names. expected.json holds what that commit returned for it.
Here the code under test works on a copy, through commands and public names alone. Bits are compared where this machine
computes like the one that wrote the fixture: same versions, same CPU capability, and the same bits from one training step in
bare transformers (`arithmetic`). Elsewhere numbers are compared within tolerances. Old keys must remain; new ones may come.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from segdist import config, load
from segdist.cli import app
from segdist.errors import ConfigError
from segdist.sweep.plan import read

WRITTEN = Path(__file__).parent / "fixtures" / "before_rooms"
IMAGES = ("source/val/images/0009.jpg", "source/val/images/0010.jpg")
EVERY_FIELD = sorted((WRITTEN / "configs" / "every_field").glob("*.yaml"))
OTHERS = ("unet", "deeplabv3plus", "smp_dpt", "beit", "dpt", "upernet on swin", "mobilevit")  # as tests/zoo.py has them
RETIRED = {"data.lanes_per_slot"}  # section.field that new configs lack; old files may hold its former default
# Keys whose values are not compared: times and speeds of one attempt; texts for people; digests of files that hold versions.
OWN = {"seconds", "silent_seconds", "heartbeat", "time", "images_per_second", "wait_share", "eta_seconds"}
OWN |= {"versions", "reason", "checkpoint_digest", "resize_first", "sides", "input", "output"}
LOSSES = ("loss", "val_loss", "lr", "epoch", "grad_norm", "norm")


def command(*arguments: str) -> Any:
    """The JSON that a segdist command prints. It runs in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        app([*arguments, "--json"], standalone_mode=False)
    return json.loads(out.getvalue().splitlines()[-1])


def tensors(file: str) -> dict[str, Any]:
    """Number, norm and digest (of names, shapes and values) of the tensors in a safetensors file."""
    held, digest = load_file(file), hashlib.sha256()
    for name in sorted(held):
        digest.update(f"{name} {held[name].dtype} {tuple(held[name].shape)}".encode() + held[name].numpy().tobytes())
    norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in held.values()))
    return {"num": len(held), "norm": norm, "sha256": digest.hexdigest()}


def masks(uri: str, **options: bool) -> list[dict[str, Any]]:
    """What the model at `uri` predicts for IMAGES."""
    model = load(uri, device="cpu", **options)
    found = [model.predict(image) for image in IMAGES]
    digests = [hashlib.sha256(one.classes.tobytes()).hexdigest() for one in found]
    return [{"sha256": digest, "shares": one.shares} for digest, one in zip(digests, found)]


def checkpoint_of(run: str, step: int, attempt: int) -> str:
    return f"{run}/checkpoints/step-{step:08d}-{attempt:04d}"


# Each act uses the copy in the working folder and returns JSON; make.py recorded in expected.json what the old code returned.


def continued() -> dict[str, Any]:
    summary = command("train", "configs/stopped.yaml")
    last = checkpoint_of("runs/stopped", 10, 2)
    return {
        "summary": summary,
        "history": command("history", "runs/stopped", "--all")["history"],
        "status": command("status", "runs/stopped"),
        "weights": tensors(f"{last}/model.safetensors"),
        "ema": tensors(f"{last}/ema.safetensors"),
        "optimizer": tensors(f"{last}/optimizer.safetensors"),
        "evaluation": json.loads(Path(last, "evaluation.json").read_text(encoding="utf-8")),
    }


def evaluated() -> dict[str, Any]:
    return {
        "finished": command("evaluate", "runs/finished", "--pictures", "--boundary"),
        "averaged": command("evaluate", checkpoint_of("runs/stopped", 4, 1)),
        "raw": command("evaluate", "runs/stopped", "--raw", "--split", "train"),
        "sliding": command("evaluate", "runs/finished", "--mode", "sliding", "--window", "24x32", "--flip"),
    }


def predicted() -> dict[str, Any]:
    return {
        "run": masks("runs/finished"),
        "export": masks("exports/finished"),
        "averaged": masks("runs/stopped"),
        "raw": masks("runs/stopped", raw=True),
        "trial": masks("sweeps/half/trials/0000"),
    }


def told() -> dict[str, Any]:
    """The output of commands that only read."""
    runs = ("runs/stopped", "runs/finished", "sweeps/half/trials/0000", "sweeps/half/trials/0001")
    found: dict[str, Any] = {f"status {uri}": command("status", uri) for uri in (*runs, "sweeps/half")}
    found |= {f"history {uri}": command("history", uri) for uri in runs}
    found |= {
        "stats": command("stats", "data"),
        "prepare": command("prepare", "source", "data", "--names", "source/names.txt"),
    }
    return found


def begun() -> dict[str, Any]:
    """New runs of one step: on the prepared data, from an old run's weights, and with a sweep's best values."""
    short = ("train.num_steps=1", "optim.warmup_steps=0")
    asked = {
        "new": ("configs/base.yaml",),
        "child": ("configs/base.yaml", "train.init_from=runs/finished"),
        "best": ("--from-sweep", "sweeps/half"),
    }
    found = {}
    for name, arguments in asked.items():
        summary = command("train", *arguments, f"run.uri=runs/{name}", *short)
        weights = tensors(f"{checkpoint_of(f'runs/{name}', 1, 1)}/model.safetensors")
        history = command("history", f"runs/{name}")["history"]
        found[name] = {"summary": summary, "history": history, "weights": weights}
    return found


def exported() -> dict[str, Any]:
    """The same export again."""
    summary = command("export", "runs/finished", "exports/again", "--no-verify")
    about = json.loads(Path("exports/again/segdist.json").read_text(encoding="utf-8"))
    return {"summary": summary, "about": about, "weights": tensors("exports/again/model.safetensors")}


ACTS: tuple[Callable[[], dict[str, Any]], ...] = (continued, evaluated, predicted, told, begun, exported)


def tuned() -> dict[str, Any]:
    """Continues the stopped sweep, in a process of its own, which keeps Ray out of this one."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": path}
    asked = [sys.executable, "-m", "segdist", "tune", "configs/half.yaml", "--json"]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return {"summary": json.loads(done.stdout.splitlines()[-1]), "status": command("status", "sweeps/half")}


def arithmetic(folder: Path) -> str:
    """Digest of a small network after one training step without segdist. Equal digests: expect equal bits."""
    from transformers import SegformerForSemanticSegmentation

    torch.manual_seed(0)
    net = SegformerForSemanticSegmentation.from_pretrained(folder / "start").train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    images, classes = torch.randn(2, 3, 32, 48), torch.randint(0, 7, (2, 32, 48))
    net(pixel_values=images, labels=classes).loss.backward()
    optimizer.step()
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def differences(expected: Any, found: Any, exact: bool, where: str = "") -> Iterator[str]:
    """Where `found` lacks a key of `expected` or has another value. Values of OWN are not compared; more keys are allowed."""
    key = where.rsplit("/", 1)[-1]
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in expected.items():
            if name in RETIRED:
                continue
            if name not in found:
                yield f"{where}/{name} is missing"
            elif name not in OWN:
                yield from differences(value, found[name], exact, f"{where}/{name}")
    elif key == "confusion" and not exact:  # a few pixels of any class
        ours, theirs = np.array(expected), np.array(found)
        if (ours.sum(1) != theirs.sum(1)).any() or np.abs(ours - theirs).sum() > 0.02 * ours.sum():
            yield f"{where}: {expected} -> {found}"
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, pair in enumerate(zip(expected, found)):
            yield from differences(*pair, exact, f"{where}/{i}")
    elif key == "sha256" and not exact:
        return
    elif isinstance(expected, float) and isinstance(found, int | float) and not exact:
        if not math.isclose(expected, found, rel_tol=1e-4, abs_tol=1e-4 if key in LOSSES else 2e-2):
            yield f"{where}: {expected} -> {found}"
    elif expected != found:
        yield f"{where}: {expected!r} -> {found!r}"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture as the working folder: all its paths are relative."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def exact(expected: dict[str, Any]) -> bool:
    """Whether to expect the same bits here: same versions, same CPU capability, same arithmetic."""
    import transformers

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__}
    same = all(expected["versions"][name] == version for name, version in versions.items())
    same = same and expected["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    same = same and expected["arithmetic"] == arithmetic(WRITTEN)
    torch.set_num_threads(before)
    return same


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(expected: dict[str, Any], exact: bool) -> None:
    assert [*differences(expected["continued"], continued(), exact)] == []


def test_old_checkpoints_get_the_same_scores(expected: dict[str, Any], exact: bool) -> None:
    assert [*differences(expected["evaluated"], evaluated(), exact)] == []


def test_an_old_run_its_checkpoints_and_its_export_predict_the_same_masks(
    expected: dict[str, Any], exact: bool
) -> None:
    found = predicted()
    assert [*differences(expected["predicted"], found, exact)] == []
    assert found["run"] == found["export"]


def test_status_and_history_say_the_same_of_old_runs_and_sweeps(expected: dict[str, Any], exact: bool) -> None:
    assert [*differences(expected["told"], told(), exact)] == []


def test_new_runs_begin_from_old_data_old_weights_and_the_best_of_an_old_sweep(
    expected: dict[str, Any], exact: bool
) -> None:
    assert [*differences(expected["begun"], begun(), exact)] == []


def test_an_old_run_exports_the_same_model(expected: dict[str, Any], exact: bool) -> None:
    found = exported()
    assert [*differences(expected["exported"], found, exact)] == []
    assert found["weights"] == tensors("exports/finished/model.safetensors")


def test_data_that_was_prepared_before_is_not_prepared_again(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "data").rglob("*")}
    command("prepare", "source", "data", "--names", "source/names.txt")
    assert "nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (place / "data").rglob("*")} == before


def test_a_finished_run_is_left_alone(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "runs" / "finished").rglob("*")}
    assert command("train", "configs/finished.yaml")["state"] == "SUCCEEDED"
    assert {path: path.stat().st_mtime_ns for path in (place / "runs" / "finished").rglob("*")} == before


def test_an_old_report_compares_with_a_new_one_and_does_not_differ() -> None:
    command("evaluate", "runs/finished", "--pictures", "--boundary", "--out", "reports/again.json")
    found = command("compare", "reports/finished.json", "reports/again.json")
    assert found["verdict"] == "none" and found["miou"]["difference"] == pytest.approx(0, abs=0.02)


def test_old_predictions_are_found_again_or_made_the_same(place: Path) -> None:
    before = {path.name: np.array(Image.open(path)) for path in (place / "predictions").glob("*.png")}
    times = {path: path.stat().st_mtime_ns for path in (place / "predictions").glob("*.png")}
    command("predict", "runs/finished", *IMAGES, "--out", "predictions", "--save", "color")
    assert {path: path.stat().st_mtime_ns for path in (place / "predictions").glob("*.png")} == times
    command("predict", "exports/finished", *IMAGES, "--out", "anew", "--save", "color")
    for name, pixels in before.items():
        assert (np.array(Image.open(f"anew/{name}")) == pixels).mean() > 0.98


@pytest.mark.parametrize(
    "path", [path for path in EVERY_FIELD if path.name.startswith("run_")], ids=lambda path: path.stem
)
def test_every_field_of_an_old_config_is_read_as_it_was_written(path: Path, place: Path) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    if written["data"].get("lanes_per_slot") is not None:
        with pytest.raises(ConfigError, match=r"`data.lanes_per_slot` was removed. It is 4"):
            config.load(path)
    written = without_retired(written)
    current = place / "current.yaml"
    current.write_text(yaml.safe_dump(written), encoding="utf-8")
    assert [*differences(written, config.to_tree(config.load(current)), exact=True)] == []
    assert [*differences(written, command("config", "show", str(current)), exact=True)] == []


def without_retired(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {name: value for name, value in held.items() if f"{section}.{name}" not in RETIRED}
        for section, held in tree.items()
    }


@pytest.mark.parametrize(
    "path", [path for path in EVERY_FIELD if path.name.startswith("sweep_")], ids=lambda path: path.stem
)
def test_every_field_of_an_old_sweep_is_read_as_it_was_written(path: Path) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [*differences(written, config.to_tree(read(str(path)).sweep), exact=True)] == []


def test_configs_that_runs_a_sweep_and_an_export_wrote_beside_their_results_load(place: Path) -> None:
    written = [*place.glob("**/config.yaml"), place / "sweeps" / "half" / "best.yaml"]
    assert len(written) == 6
    for path in written:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert [*differences(without_retired(tree), config.to_tree(config.load(path)), exact=True)] == []


def put_checkpoint(arch: dict[str, Any], model: dict[str, Any], shapes: dict[str, list[int]]) -> str:
    """A committed checkpoint of another architecture, whose tensors have these names and shapes; where it is."""
    rng, held = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            held[name] = torch.tensor(1)
        elif len(shape) < 2:  # scales and variances must be positive; biases may be
            held[name] = 0.5 + torch.rand(shape, generator=rng)
        else:
            held[name] = torch.randn(shape, generator=rng) / math.sqrt(math.prod(shape[1:]))
    (state,) = Path("runs/finished/checkpoints").glob("*/state.json")
    tree = json.loads(state.read_text(encoding="utf-8"))
    tree |= {"arch": arch, "config": {**tree["config"], "model": model}}
    folder = Path("runs/other/checkpoints/step-00000030-0001")
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(tree), encoding="utf-8")
    save_file(held, folder / "model.safetensors")
    data = {path.name: path.read_bytes() for path in folder.iterdir()}
    seal = {name: {"bytes": len(one), "sha256": hashlib.sha256(one).hexdigest()} for name, one in data.items()}
    (folder / "COMMITTED").write_text(json.dumps(seal), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_architecture_predicts_the_same(name: str) -> None:
    written = json.loads(Path("architectures.json").read_text(encoding="utf-8"))[name]
    found = [one["shares"] for one in masks(put_checkpoint(written["arch"], written["model"], written["tensors"]))]
    assert [*differences(written["shares"], found, exact=False)] == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_sweep_that_was_stopped_goes_on_to_the_same_best_values(expected: dict[str, Any], exact: bool) -> None:
    assert [*differences(expected["tuned"], tuned(), exact)] == []
