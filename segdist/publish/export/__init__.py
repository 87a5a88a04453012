"""Exports that run without segdist: in the layout of the model's own library, as ONNX, or as a torch.export program.

With `verify`, another process without segdist loads and runs the export before anything is written to its destination. Every
export contains a model card, its config and segdist.json with everything needed to use it.
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
from segdist.models.export_formats import formats_of
from segdist.models.segmenter import Traits
from segdist.publish import card
from segdist.publish.export import native, onnx, usage, verification
from segdist.publish.export.graph import INPUT, Graph, Shape, program
from segdist.publish.hub import MANIFEST
from segdist.runs import checkpoints, record
from segdist.runs.checkpoints import load_state, scores_of
from segdist.runs.restore import Trained, initial_of

Format = Literal["native", "onnx", "torch"]
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
    """Write the export and a model card into DEST. Return {"path", "layout"} and, if verified, the measurements.

    `verify`: a process without segdist loads and runs the export, and must reproduce our logits. `size` (height, width): make a
    graph for this size only. By default, the graph takes any size; if that fails verification, it takes one size from the run's
    config. `argmax`: the graph outputs classes at the image's size instead of logits. Raises UserError, before anything is
    written, if DEST holds other files or (unless `overwrite`) the export of another run, or if the verification fails.
    """
    if form == "native" and (size or argmax):
        raise UserError(
            "--size and --argmax apply only to ONNX and torch.export files. Use them with --format onnx or --format torch"
        )
    if form == "onnx":
        onnx.check_installed()
    if size:
        trained.model.traits.check(*size)
    run_uri = checkpoints.run_of(trained.uri)
    run, run_id = run_uri.rsplit("/", 1)[-1], record.run_id(run_uri)
    before = _earlier_export(dest, overwrite)
    if before is not None and not overwrite and before.get("run_id") != run_id:
        raise UserError(
            f"{dest} holds the export of another run ({before.get('run')}). Choose another destination, or use --overwrite"
        )
    storage.check_writable(dest)
    about = _about(trained, run, run_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if form == "native":
            (about, measured), fixed_size = _native(trained, folder, about, verify), None
        else:
            about, measured, fixed_size = _graph(trained, form, folder, about, size, argmax, verify)
        code = usage.code(about["layout"], ".", trained.model.traits, trained.cfg.data.image_size, fixed_size, argmax)
        info = card.card_info(trained, run, ".", about["layout"], about["sides"], code)
        (folder / "README.md").write_text(card.model_card(info), encoding="utf-8")
        origin = initial_of(load_state(trained.uri))
        (folder / "config.yaml").write_text(
            config.explain(config.published(trained.cfg, card.on_hub(trained.cfg, origin))), encoding="utf-8"
        )
        files = sorted(p for p in folder.iterdir() if p.is_file())
        about["files"] = [path.name for path in files]
        stale = {*(before or {}).get("files", ())} - {*about["files"]}  # files of another format
        incomplete = {"run": run, "run_id": run_id, "files": sorted([*about["files"], *stale]), "whole": False}
        # lets a retry replace a partial export
        storage.write(storage.join(dest, MANIFEST), json.dumps(incomplete).encode())
        for name in stale:
            if name == Path(name).name and name != "..":
                storage.delete(storage.join(dest, name))
        for path in files:
            storage.write(storage.join(dest, path.name), path.read_bytes())
    storage.write(storage.join(dest, MANIFEST), json.dumps(about | measured, indent=1).encode())
    sizes = {} if form == "native" else {"sides": about["sides"]}
    return {"path": dest, "layout": about["layout"], **sizes, **measured}


def _about(trained: Trained, run: str, run_id: str) -> dict[str, Any]:
    """Return the content of segdist.json that does not depend on the format."""
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
        "resize_first": f"to {resized}, bilinear with antialias, as in training; resize the classes back to the image's size"
        if size
        else "no: the model was trained and scored on images at their own size",
        "mean": traits.mean,
        "std": traits.std,
        "sides": _sides(traits),
        "stride": traits.stride,
        "align_corners": traits.align_corners,
        "checkpoint_step": state["step"],
        "initial": card.published_origin(initial_of(state)),  # origin of the weights, with their licence
        "weights": trained.weights,
        "metrics": None if trained.weights == "raw" else scores_of(trained.uri),
    }


def _native(
    trained: Trained, folder: Path, about: dict[str, Any], verify: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the files of the model's library. Return (about, measurements of the verification)."""
    layout = native.write(trained, folder)
    about |= {
        "format": "native",
        "layout": layout,
        "channel_order": native.channel_order(trained),
        "input": "float32 (B, 3, H, W) in 0..1, then (x - mean) / std; README.md has the code",
        "output": "float32 (B, K, h, w) logits at the stride; resize them bilinearly with `align_corners`",
        "versions": _versions(layout),
    }
    if not verify:
        return about, {}
    try:
        found = verification.verify(trained.model, layout, folder, verification.native_sizes(trained.model.traits))
    except UserError as error:
        raise UserError(
            f"the export of {trained.uri} failed verification: {error}. Nothing was written. Please report this. "
            "--no-verify writes it unchecked"
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
    """Write the graph of the first shape that can be traced and verified.

    Returns (about, measurements of the verification, the graph's only size or None).
    """
    traits, layout, output = trained.model.traits, _LAYOUTS[form], "classes" if argmax else "logits"
    graph, reason = Graph(trained.model, argmax, slices=form == "onnx"), ""
    for shape in _shapes(trained, form, size):
        if reason or (shape.size and not size):
            why = reason or f"{trained.model.arch['name']} can only be traced for a fixed image size"
            console.say(
                f"{why}; exporting a graph for {shape.describe(traits)} instead (choose with --size HEIGHTxWIDTH)"
            )
        manifest = about | {
            "format": form,
            "layout": layout,
            "channel_order": "RGB",
            "sides": shape.describe(traits),
            "input": f"{INPUT}: float32 (B, 3, H, W), RGB in 0..255; normalisation and padding are inside the graph",
            "output": f"{output}: uint8 (B, H, W), class numbers at the image's size"
            if argmax
            else f"{output}: float32 (B, K, h, w) at the stride; resize them bilinearly with `align_corners`",
            "versions": _versions(layout),
        }
        try:
            traced = program(graph, shape)
            if form == "onnx":
                onnx.write(traced, shape, output, manifest, folder / onnx.FILE)
            else:
                torch.export.save(traced, folder / "model.pt2", extra_files={MANIFEST: json.dumps(manifest)})
            if not verify:
                return manifest, {}, shape.size
            found = verification.verify(trained.model, layout, folder, verification.graph_sizes(traits, shape), argmax)
        except Exception as error:  # tracers, converters and runtimes raise anything
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = f"A graph for {shape.describe(traits)} failed verification ({first[:300]})"
        else:
            return manifest, _measured(found), shape.size
    raise UserError(f"Cannot export {trained.uri} as {layout}. {reason}. Nothing was written. Please report this")


def _measured(found: verification.Verification) -> dict[str, Any]:
    difference = {} if found.difference is None else {"difference": found.difference}
    return {**difference, "equal_pixels": found.equal_pixels, "verified": found.describe()}


def _shapes(trained: Trained, form: Format, size: tuple[int, int] | None) -> list[Shape]:
    """Return the shapes to try, the most useful first."""
    known = getattr(formats_of(trained.model.arch), form)
    most, data = trained.model.traits.most, trained.cfg.data
    usual = data.image_size if isinstance(data.image_size, tuple) else data.crop_size
    only = size or ((most, most) if most else usual)
    fixed = [Shape(only), Shape(only, any_batch=False)]
    return fixed if size or known == "fixed" else [Shape(None), *fixed]


def _versions(layout: str) -> dict[str, str]:
    """Return the versions of the libraries that wrote the export."""
    from importlib.metadata import version

    names = ["torch", *(["transformers"] if layout == "transformers" else [])]
    names += {"segmentation_models_pytorch": ["segmentation-models-pytorch"], "onnx": ["onnx", "onnxruntime"]}.get(
        layout, []
    )
    return {"segdist": __version__, **{name: version(name) for name in names}}


def _sides(traits: Traits) -> str:
    """Describe the image sizes that the exported network takes. For others, segdist pads the image and crops the logits."""
    if traits.most:
        return f"images of {traits.most}x{traits.most} px (height x width) only"
    each = f"sides of at least {traits.least} px" + (f", multiples of {traits.multiple}" if traits.multiple > 1 else "")
    return f"square images, {each}" if traits.square else each


def _earlier_export(dest: str, overwrite: bool) -> dict[str, Any] | None:
    """Return the segdist.json of an earlier export in DEST, {} if it is damaged and `overwrite`, or None if DEST is empty.

    Raises UserError if DEST holds something else.
    """
    address = storage.join(dest, MANIFEST)
    try:
        data = storage.read(address)
    except MissingError:
        if storage.names(dest):
            raise UserError(f"{dest} exists and is not an export of segdist. Choose an empty destination") from None
        return None
    with contextlib.suppress(ValueError, TypeError, AttributeError):  # not JSON, not a mapping, no names
        tree = json.loads(data)
        if all(isinstance(name, str) for name in tree.get("files", ())):
            return tree
    if overwrite:
        return {}
    raise UserError(f"{address} is damaged. Use --overwrite to replace the export, or choose another destination")
