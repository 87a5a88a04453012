"""A checkpoint for where segdist is not installed: in the layout of its model's library, as ONNX, or traced by torch.

An export is read and run in a process of its own before anything is written, and carries what one must know to use it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

from segdist import __version__, config, console, storage
from segdist.errors import MissingError, UserError
from segdist.models.formats import formats_of
from segdist.models.segmenter import Traits
from segdist.publish import card
from segdist.publish.export import native, onnx, proof, usage
from segdist.publish.export.graph import INPUT, Graph, Shape, program
from segdist.runs import record
from segdist.runs.checkpoints import load_state, scores_of
from segdist.runs.restore import Trained, initial_of

Format = Literal["native", "onnx", "torch"]
MARK = "segdist.json"  # written last; until then it says {"run", "files", "whole": false}
_LAYOUTS = {"onnx": "onnx", "torch": "torch.export"}  # of graphs


def export(
    trained: Trained,
    dest: str,
    overwrite: bool = False,
    verify: bool = False,
    form: Format = "native",
    size: tuple[int, int] | None = None,
    argmax: bool = False,
) -> dict[str, Any]:
    """Writes the export and a model card into DEST; {"path", "layout"}, and what was measured where it was verified.

    `verify`: a process without segdist reads and runs it, and must give our logits. `size` (height, width): a graph for that
    size alone; otherwise for any, and where that does not verify, for one that the run suggests. `argmax`: a graph's output
    are classes at the image's size. Raises UserError when DEST holds other things, or (unless `overwrite`) the export of
    another run, or when the proof fails, before anything is written.
    """
    if form == "native" and (size or argmax):
        raise UserError("--size and --argmax shape a graph; give --format onnx or --format torch with them")
    if form == "onnx":
        onnx.check_installed()
    if size:
        trained.model.traits.check(*size)
    run_uri = trained.uri.rsplit("/checkpoints/", 1)[0]
    run, run_id = run_uri.rsplit("/", 1)[-1], record.run_id(run_uri)
    before = _before(dest, overwrite)
    if before is not None and not overwrite and before.get("run_id") != run_id:
        raise UserError(f"{dest} holds the export of {before.get('run')}; give another place, or --overwrite")
    storage.check_writable(dest)
    about = _about(trained, run, run_id)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if form == "native":
            (about, measured), only = _native(trained, folder, about, verify), None
        else:
            about, measured, only = _graph(trained, form, folder, about, size, argmax, verify)
        code = usage.code(about["layout"], ".", trained.model.traits, trained.cfg.data.image_size, only, argmax)
        told = card.about(trained, run, ".", about["layout"], about["sides"], code)
        (folder / "README.md").write_text(card.model_card(told), encoding="utf-8")
        origin = initial_of(load_state(trained.uri))
        (folder / "config.yaml").write_text(
            config.explain(config.published(trained.cfg, card.on_hub(trained.cfg, origin))), encoding="utf-8"
        )
        files = sorted(p for p in folder.iterdir() if p.is_file())
        about["files"] = [path.name for path in files]
        others = {*(before or {}).get("files", ())} - {*about["files"]}  # of another format
        half = {"run": run, "run_id": run_id, "files": sorted([*about["files"], *others]), "whole": False}
        storage.write(storage.join(dest, MARK), json.dumps(half).encode())  # whoever cuts this off can begin again
        for name in others:
            if name == Path(name).name and name != "..":
                storage.delete(storage.join(dest, name))
        for path in files:
            storage.write(storage.join(dest, path.name), path.read_bytes())
    storage.write(storage.join(dest, MARK), json.dumps(about | measured, indent=1).encode())
    sizes = {} if form == "native" else {"sides": about["sides"]}
    return {"path": dest, "layout": about["layout"], **sizes, **measured}


def _about(trained: Trained, run: str, run_id: str) -> dict[str, Any]:
    """What one must know to use the model, whatever the format."""
    state = load_state(trained.uri)
    traits, size = trained.model.traits, trained.cfg.data.image_size
    resized = "image_size: its shorter side" if isinstance(size, int) else "image_size (height, width)"
    return {
        "task": "semantic-segmentation",
        "run": run,
        "run_id": run_id,
        "architecture": trained.model.arch["name"],
        "classes": trained.labels.to_json()["classes"],
        "names": trained.labels.names,
        "colors": [list(c.color) for c in trained.labels.classes],
        "image_size": size,
        "resize_first": f"to {resized}, bilinear with antialias, as the run did; classes go back to the image's size"
        if size
        else "no: the model was trained and scored on images of their own size",
        "mean": traits.mean,
        "std": traits.std,
        "sides": _sides(traits),
        "stride": traits.stride,
        "align_corners": traits.align_corners,
        "checkpoint_step": state["step"],
        "initial": card.published_origin(initial_of(state)),  # where the weights began, with their licence
        "weights": trained.weights,
        "metrics": None if trained.weights == "raw" else scores_of(trained.uri),
    }


def _native(
    trained: Trained, folder: Path, about: dict[str, Any], verify: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the library's own files; (about, what the proof measured)."""
    layout = native.write(trained, folder)
    about |= {
        "format": "native",
        "layout": layout,
        "channel_order": native.channel_order(trained),
        "input": "float32 (B, 3, H, W) in 0..1, then (x - mean) / std; README.md has the code",
        "output": "float32 (B, K, h, w) logits at the stride, to be resized by `align_corners`",
        "versions": _versions(layout),
    }
    if not verify:
        return about, {}
    try:
        found = proof.prove(trained.model, layout, folder, proof.native_sizes(trained.model.traits))
    except UserError as error:
        raise UserError(
            f"{error}, from {trained.uri}; nothing was written. Please report this, or give --no-verify"
        ) from None
    return about, _measured(found)


def _graph(
    trained: Trained,
    form: Format,
    folder: Path,
    about: dict[str, Any],
    size: tuple[int, int] | None,
    argmax: bool,
    verify: bool,
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int] | None]:
    """Writes the graph of the first shape that can be traced and verifies; (about, what the proof measured, its one size)."""
    traits, layout, output = trained.model.traits, _LAYOUTS[form], "classes" if argmax else "logits"
    graph, reason = Graph(trained.model, argmax, slices=form == "onnx"), ""
    for shape in _shapes(trained, form, size):
        if reason or (shape.size and not size):
            why = reason or f"{trained.model.arch['name']} computes with the sides of an image as it is traced"
            console.say(f"{why}; a graph for {shape.words(traits)} (--size HEIGHTxWIDTH chooses)")
        told = about | {
            "format": form,
            "layout": layout,
            "channel_order": "RGB",
            "sides": shape.words(traits),
            "input": f"{INPUT}: float32 (B, 3, H, W), RGB in 0..255; normalisation and padding are inside the graph",
            "output": f"{output}: uint8 (B, H, W), class numbers at the image's size"
            if argmax
            else f"{output}: float32 (B, K, h, w) at the stride, to be resized bilinearly by `align_corners`",
            "versions": _versions(layout),
        }
        try:
            traced = program(graph, shape)
            if form == "onnx":
                onnx.write(traced, shape, output, told, folder / onnx.FILE)
            else:
                torch.export.save(traced, folder / "model.pt2", extra_files={MARK: json.dumps(told)})
            if not verify:
                return told, {}, shape.size
            found = proof.prove(trained.model, layout, folder, proof.graph_sizes(traits, shape), argmax)
        except Exception as error:  # tracers, converters and runtimes raise anything
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = f"for {shape.words(traits)} it does not verify ({first[:300]})"
        else:
            return told, _measured(found), shape.size
    raise UserError(f"{layout}: {reason}, from {trained.uri}; nothing was written. Please report this")


def _measured(found: proof.Found) -> dict[str, Any]:
    difference = {} if found.difference is None else {"difference": found.difference}
    return {**difference, "equal_pixels": found.equal_pixels, "verified": found.words()}


def _shapes(trained: Trained, form: Format, size: tuple[int, int] | None) -> list[Shape]:
    """What to try, the most useful first."""
    known = getattr(formats_of(trained.model.arch), form)
    most, data = trained.model.traits.most, trained.cfg.data
    usual = data.image_size if isinstance(data.image_size, tuple) else data.crop_size
    only = size or ((most, most) if most else usual)
    fixed = [Shape(only), Shape(only, any_batch=False)]
    return fixed if size or known == "fixed" else [Shape(None), *fixed]


def _versions(layout: str) -> dict[str, str]:
    """Of what wrote the export."""
    from importlib.metadata import version

    names = ["torch", *(["transformers"] if layout == "transformers" else [])]
    names += {"segmentation_models_pytorch": ["segmentation-models-pytorch"], "onnx": ["onnx", "onnxruntime"]}.get(
        layout, []
    )
    return {"segdist": __version__, **{name: version(name) for name in names}}


def _sides(traits: Traits) -> str:
    """What images the exported network takes, in words; segdist pads others, and cuts the logits."""
    if traits.most:
        return f"images of {traits.most}x{traits.most} px (height x width) alone"
    each = f"sides of at least {traits.least} px" + (f", multiples of {traits.multiple}" if traits.multiple > 1 else "")
    return f"square images, {each}" if traits.square else each


def _before(dest: str, overwrite: bool) -> dict[str, Any] | None:
    """What DEST's earlier export says of itself; {} where it is damaged and `overwrite`. Raises UserError.

    It does so when DEST holds something else.
    """
    address = storage.join(dest, MARK)
    try:
        said = storage.read(address)
    except MissingError:
        if storage.names(dest):
            raise UserError(f"{dest} exists and is no export of segdist; give an empty place") from None
        return None
    with contextlib.suppress(ValueError, TypeError, AttributeError):  # no JSON, no mapping, no names
        tree = json.loads(said)
        if all(isinstance(name, str) for name in tree.get("files", ())):
            return tree
    if overwrite:
        return {}
    raise UserError(f"{address} is damaged; --overwrite writes the export anew, or give another place")
