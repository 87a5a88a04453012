"""Graphs (ONNX, torch.export): what they take, what they say of themselves, and that a wrong one is never written."""

from __future__ import annotations

import builtins
import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SEGFORMER, UNET, tree
from PIL import Image
from pydantic import TypeAdapter
from zoo import SMP, ZOO

from segdist import config, models
from segdist.api import Model
from segdist.cli import app
from segdist.distributed import World
from segdist.errors import ConfigError, UserError
from segdist.models import weights
from segdist.models.export_formats import FORMATS, formats_of
from segdist.models.segmenter import Segmenter, infer
from segdist.ops.resize import predict
from segdist.predict.batches import classify
from segdist.publish import export as exports
from segdist.publish.export import export, graph, onnx, verification
from segdist.publish.export.graph import Graph, Shape, program
from segdist.runs.restore import Trained, load_trained
from segdist.train.loop import fit

CPU = torch.device("cpu")
LONG = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def trained(street_data: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root = tmp_path_factory.mktemp("export")
    found = {}
    for model in (SEGFORMER, UNET):
        name = model["name"]
        fields = tree(street_data, str(root / name), model=model, train={"num_steps": 6}, optim={"lr": 1e-2})
        fit(config.from_tree(fields, name), World(0, 1, CPU))
        found[name] = load_trained(str(root / name), CPU)
    return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(exports.console, "say", lines.append)
    return lines


def settled(name: str) -> Segmenter:
    """A model of the zoo whose statistics have seen something, so that its logits differ from pixel to pixel."""
    torch.manual_seed(0)
    model = models.build(TypeAdapter(config.Model).validate_python(ZOO[name]), ["a", "b", "c"]).train()
    side = model.traits.most or 128
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 3, side, side))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "form"),
    [pytest.param(n, f, marks=LONG) for n in ZOO for f in ("onnx", "torch")],
)
def test_the_formats_of_every_architecture_verify_as_they_are_listed(
    name: str, form: exports.Format, tmp_path: Path
) -> None:
    model = settled(name)
    listed = formats_of(model.arch)
    assert listed.native == ("segmentation_models_pytorch" if name in SMP else "transformers")
    side = model.traits.most or 96
    shape = Shape(None if getattr(listed, form) == "any size" else (side, side))
    traced = program(Graph(model, True, slices=form == "onnx"), shape)
    if form == "onnx":
        onnx.write(traced, shape, "classes", {}, tmp_path / onnx.FILE)
    else:
        torch.export.save(traced, tmp_path / "model.pt2")
    layout = exports._LAYOUTS[form]
    found = verification.verify(model, layout, tmp_path, verification.graph_sizes(model.traits, shape), classes=True)
    assert found.equal_pixels > 0.999


def test_every_architecture_has_its_formats() -> None:
    assert FORMATS.keys() == {tree["name"] for tree in ZOO.values()}


@pytest.mark.parametrize("name", ["unet", pytest.param("segformer", marks=LONG)])
def test_an_onnx_class_map_is_what_predict_writes_and_says_what_it_is(
    trained: dict[str, Trained], name: str, tmp_path: Path
) -> None:
    summary = export(trained[name], str(tmp_path / "x"), verify=True, form="onnx", argmax=True)
    assert summary["layout"] == "onnx" and summary["equal_pixels"] > 0.999 and "difference" not in summary
    about = json.loads((tmp_path / "x" / "segdist.json").read_text())
    session = onnxruntime.InferenceSession(tmp_path / "x" / "model.onnx", providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    for key in ("classes", "names", "colors", "mean", "std", "image_size", "metrics", "versions"):
        assert json.loads(said[key]) == about[key], key
    for key in ("task", "input", "output", "sides", "channel_order", "resize_first", "architecture"):
        assert said[key] == about[key], key
    assert about["names"] == trained[name].labels.names
    assert about["metrics"]["miou"] is not None
    assert about["sides"] == "any sides from 64 px" == summary["sides"]
    (given,), (out,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, "height", "width"])
    assert (out.name, out.type) == ("classes", "tensor(uint8)")
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    (classes,) = session.run(None, {"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    assert (classes[0] == classify(trained[name], pixels)).mean() > 0.999
    assert (tmp_path / "x" / "README.md").exists() and not (tmp_path / "x" / "verification").exists()


@pytest.mark.parametrize(
    ("name", "options", "image_size", "least_equal"),
    [
        ("unet", {}, None, 1.0),
        ("unet", {}, 48, 0.998),
        pytest.param("segformer", {"form": "onnx"}, None, 0.999, marks=LONG),
        pytest.param("segformer", {"form": "onnx"}, (64, 96), 0.998, marks=LONG),
        pytest.param("segformer", {"form": "onnx", "argmax": True}, None, 0.999, marks=LONG),
        # its classes are enlarged
        pytest.param("segformer", {"form": "onnx", "argmax": True, "size": (64, 96)}, (64, 96), 0.9, marks=LONG),
        pytest.param("segformer", {"form": "torch", "size": (64, 96)}, (64, 96), 0.998, marks=LONG),
        pytest.param("unet", {"form": "torch", "argmax": True}, None, 0.999, marks=LONG),
        ("unet", {"form": "onnx"}, 80, 0.998),
    ],
)
def test_the_code_in_a_readme_runs_as_it_stands_and_gives_the_classes_of_predict(
    trained: dict[str, Trained], tmp_path: Path, name: str, options: Any, image_size: Any, least_equal: float
) -> None:
    used = dataclasses.replace(
        trained[name],
        cfg=config.update_section(trained[name].cfg, "data", {"image_size": image_size, "uri": "hf://datasets/a/b"}),
    )
    export(used, str(tmp_path), **options)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    if options.get("size"):
        assert "Images: 64x96 px (height x width)." in text
    elif options:
        assert "Images: any sides from 64 px." in text
    pixels = np.kron(
        np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8), np.ones((9, 11, 1), np.uint8)
    )
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    done = forks.run(["-c", f"import sys; sys.modules['segdist'] = None\n{code}"], bare=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs, ours = np.array(Image.open(tmp_path / "classes.png")), Model(used).predict(tmp_path / "photo.jpg").classes
    assert theirs.shape == ours.shape == (117, 99) and len(np.unique(ours)) > 1
    assert (theirs == ours).mean() >= least_equal


def test_logits_of_a_traced_graph_are_the_models(trained: dict[str, Trained], tmp_path: Path) -> None:
    summary = export(trained["unet"], str(tmp_path / "x"), verify=True, form="torch")
    assert summary["difference"] < 1e-4
    extra = {"segdist.json": ""}
    net = torch.export.load(tmp_path / "x" / "model.pt2", extra_files=extra).module()
    assert json.loads(extra["segdist.json"])["names"] == trained["unet"].labels.names
    images = torch.randint(0, 256, (3, 3, 96, 71), dtype=torch.uint8)
    ours = infer(trained["unet"].model, images)
    assert (net(images.float()) - ours).abs().max() < 1e-4 * ours.abs().max()


def test_weights_that_no_onnx_file_can_hold_lie_beside_it(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
        export(trained["unet"], str(tmp_path / "x"), verify=True, form="onnx", size=(32, 64))
    about = json.loads((tmp_path / "x" / "segdist.json").read_text())
    assert about["files"] == ["README.md", "config.yaml", "model.onnx", "model.onnx.data"] and about["verified"]
    assert (tmp_path / "x" / "model.onnx.data").stat().st_size > (tmp_path / "x" / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(tmp_path / "x" / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["names"]) == about["names"]
    export(trained["unet"], str(tmp_path / "x"))
    assert not list((tmp_path / "x").glob("model.onnx*"))


def test_a_graph_of_one_size_takes_that_size_alone(trained: dict[str, Trained], tmp_path: Path) -> None:
    summary = export(trained["unet"], str(tmp_path / "x"), verify=True, form="onnx", size=(48, 40))
    assert summary["sides"] == "48x40 px (height x width)"
    session = onnxruntime.InferenceSession(tmp_path / "x" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 48, 40]


@pytest.mark.slow
@pytest.mark.long
def test_where_any_size_does_not_verify_one_size_is_written_and_said(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    honest = exports.program

    def fussy(graph: Graph, shape: Shape) -> Any:
        if shape.size is None:
            raise RuntimeError("sides are constants\nand so on")
        return honest(graph, shape)

    monkeypatch.setattr(exports, "program", fussy)
    summary = export(trained["segformer"], str(tmp_path / "x"), verify=True, form="onnx")
    assert summary["sides"] == "32x48 px (height x width)"  # the run's crop
    (line,) = said
    assert line.startswith(
        "A graph for any sides from 64 px failed verification (sides are constants); exporting a graph for 32x48"
    )


def shifted(honest: Any) -> Callable[..., Any]:
    """A graph that normalises otherwise."""

    def make(*arguments: Any, **options: Any) -> Graph:
        made = honest(*arguments, **options)
        made.shift += 40
        return made

    return make


def mirrored(honest: Any) -> Callable[..., Any]:
    """A graph that resizes by the other rule."""

    def make(*arguments: Any, **options: Any) -> Graph:
        made = honest(*arguments, **options)
        made.model.traits = type(made.model.traits)(
            **{**vars(made.model.traits), "align_corners": not made.model.traits.align_corners}
        )
        return made

    return make


@pytest.mark.parametrize(
    ("spoil", "argmax", "message"),
    [
        (shifted, False, "onnx gives other logits than segdist"),
        pytest.param(shifted, True, "onnx gives other classes than segdist, and not only at ties", marks=LONG),
        pytest.param(mirrored, True, "onnx gives (other classes|only)", marks=LONG),
    ],
)
def test_a_graph_that_gives_something_else_is_not_written(
    trained: dict[str, Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    argmax: bool,
    message: str,
) -> None:
    monkeypatch.setattr(exports, "Graph", spoil(Graph))
    with pytest.raises(UserError, match=rf"{message}.* Nothing was written"):
        export(trained["unet"], str(tmp_path / "x"), verify=True, form="onnx", size=(64, 96), argmax=argmax)
    assert not list((tmp_path / "x").glob("*"))


@pytest.mark.long
def test_a_file_that_is_cut_off_is_not_written(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = onnx.write

    def cut(traced: Any, shape: Shape, output: str, about: dict[str, Any], path: Path) -> None:
        honest(traced, shape, output, about, path)
        path.write_bytes(path.read_bytes()[:-1000])

    monkeypatch.setattr(onnx, "write", cut)
    with pytest.raises(UserError, match=r"onnx cannot read the export .* Nothing was written"):
        export(trained["unet"], str(tmp_path / "x"), verify=True, form="onnx", size=(32, 48))


def test_classes_may_differ_in_ties_only() -> None:
    ours = torch.tensor([[[[5.0, 1.0]], [[4.9999, 0.0]], [[0.0, 0.5]]]])
    for classes, off in (([0, 0], 0), ([1, 0], 2e-5), ([0, 2], 0.1), ([2, 0], 1)):
        worst, same = verification._compare(ours, torch.tensor([[classes]], dtype=torch.uint8), (1, 2), False, True)
        assert worst == pytest.approx(off, rel=0.01)
        assert same == (2 if off == 0 else 1)
    assert verification._compare(ours, torch.tensor([[[3, 0]]], dtype=torch.uint8), (1, 2), False, True)[0] == np.inf
    assert verification._compare(ours, ours * torch.nan, (1, 2), False, False)[0] == np.inf
    assert verification._compare(ours, ours[:, :2], (1, 2), False, False)[0] == np.inf


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 12), (3, 5), (13, 1), (40, 31)])
def test_pooling_by_products_is_adaptive_pooling(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    for size in ((1, 1), (2, 2), (3, 3), (6, 6), (6, 2)):
        theirs = torch.nn.functional.adaptive_avg_pool2d(x, size)
        assert torch.allclose(graph._pool(size, x), theirs, rtol=0, atol=1e-12)


def test_another_format_takes_the_place_of_the_one_before(trained: dict[str, Trained], tmp_path: Path) -> None:
    export(trained["unet"], str(tmp_path))
    assert (tmp_path / "model.safetensors").exists()
    export(trained["unet"], str(tmp_path), form="torch", size=(64, 64))
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "config.yaml", "model.pt2", "segdist.json"}
    (tmp_path.parent / "precious").write_text("")
    about = json.loads((tmp_path / "segdist.json").read_text())
    (tmp_path / "segdist.json").write_text(json.dumps({**about, "files": ["../precious", "model.pt2"]}))
    export(trained["unet"], str(tmp_path))
    assert (tmp_path.parent / "precious").exists() and not (tmp_path / "model.pt2").exists()


@pytest.mark.parametrize(
    ("earlier", "again"),
    [(False, "the same run"), (True, "the same run"), (False, "another run"), (True, "another format")],
)
def test_an_export_that_was_cut_off_is_never_taken_as_whole_and_gives_way_to_another(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool, again: str
) -> None:
    if earlier:
        export(trained["segformer"], str(tmp_path))
    honest = exports.storage.write

    def cut(uri: str, data: bytes) -> None:
        honest(uri, data)
        if uri.endswith("model.safetensors"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exports.storage, "write", cut)
        with pytest.raises(KeyboardInterrupt):
            export(trained["segformer"], str(tmp_path))
    with (
        pytest.raises(UserError, match=r"could not be loaded: its export was cut off\. Export .*segformer there again"),
        weights.fetched(str(tmp_path), None),
    ):
        pass
    if again == "another run":
        with pytest.raises(
            UserError,
            match=r"holds the export of another run \(.*segformer\)\. Choose another destination, or use --overwrite",
        ):
            export(trained["unet"], str(tmp_path))
        export(trained["unet"], str(tmp_path), overwrite=True)
    elif again == "another format":
        export(trained["segformer"], str(tmp_path), form="torch", size=(32, 32))
    else:
        export(trained["segformer"], str(tmp_path))
    about = json.loads((tmp_path / "segdist.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {*about["files"], "segdist.json"}
    if again != "another format":
        with weights.fetched(str(tmp_path), None) as found:
            assert found.names == trained["segformer"].labels.names


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": [3]}', '{"files": 3}', '{"files": null}', "\xff"])
def test_a_damaged_mark_is_told_with_a_remedy_that_works(
    trained: dict[str, Trained], tmp_path: Path, text: str
) -> None:
    (tmp_path / "segdist.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"segdist\.json is damaged\. Use --overwrite to replace the export"):
        export(trained["unet"], str(tmp_path))
    export(trained["unet"], str(tmp_path), overwrite=True)
    assert json.loads((tmp_path / "segdist.json").read_text())["layout"] == "segmentation_models_pytorch"


def test_what_cannot_be_asked_for_is_refused(
    trained: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in ({"argmax": True}, {"size": (64, 64)}):
        with pytest.raises(UserError, match="Use them with --format onnx or --format torch"):
            export(trained["unet"], str(tmp_path), **asked)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--size '64': 2 numbers are needed"):
        app(["export", trained["unet"].uri, str(tmp_path), "--size", "64"], standalone_mode=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else builtins)
    with pytest.raises(
        UserError,
        match=r"--format onnx needs onnxscript\. In your clone of segdist, run pip install -c constraints.txt '\.\[onnx\]'",
    ):
        export(trained["unet"], str(tmp_path), form="onnx")


def test_a_size_that_a_model_cannot_take_is_refused(trained: dict[str, Trained], tmp_path: Path) -> None:
    model = settled("data2vec_vision")
    other = Trained(trained["unet"].uri, model, trained["unet"].labels, trained["unet"].cfg)
    with pytest.raises(ConfigError, match="takes only 64x64 px"):
        export(other, str(tmp_path), form="onnx", size=(96, 64))


def test_predictions_of_the_proofs_pictures_have_several_classes(trained: dict[str, Trained]) -> None:
    """A class map of one class would prove nothing."""
    model = trained["unet"].model
    image = verification._random_images((1, 64, 96), torch.Generator().manual_seed(0))
    assert len(predict(infer(model, image), (64, 96), True).unique()) > 1
