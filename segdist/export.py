"""A checkpoint in the layout of the library that made its model, so that it runs where segdist is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from segdist import storage
from segdist.checkpoint import load_state, scores_of
from segdist.errors import MissingError, UserError
from segdist.models import hf, smp
from segdist.models.segmenter import Traits, infer
from segdist.trained import Trained, initial_of

MARK = "segdist.json"  # written last: an export without it is not whole


# What reads the export in a process of its own, where segdist cannot be imported: folder, layout, mean, deviation.
_PROOF = """
import sys; sys.modules["segdist"] = None
import json, pathlib
import numpy as np, torch
from safetensors.torch import load_file, save_file
folder, layout, mean, std = sys.argv[1], sys.argv[2], *(torch.tensor(json.loads(a)).view(3, 1, 1) for a in sys.argv[3:])
images = load_file(pathlib.Path(folder) / "proof" / "images.safetensors")
if layout == "transformers":
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
    net, processor = AutoModelForSemanticSegmentation.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    call = lambda x: net(**processor(x, do_resize=False, input_data_format="channels_first", return_tensors="pt")).logits
else:
    import segmentation_models_pytorch as smp
    net = smp.from_pretrained(folder).eval()
    call = lambda x: net((x[None] / 255 - mean) / std)
with torch.no_grad():
    save_file({k: call(x).contiguous() for k, x in images.items()}, pathlib.Path(folder) / "proof" / "logits.safetensors")
"""
TOLERANCE = 1e-3  # of the largest logit: memory formats and libraries round otherwise


def export(trained: Trained, dest: str, overwrite: bool = False, verify: bool = False) -> dict[str, Any]:
    """Writes the export and a model card into DEST; {"path", "layout"}, and "difference" where it was verified.

    `verify`: the library itself loads it, in a process without segdist, and must give our logits. Raises UserError when
    DEST holds other things, or (unless `overwrite`) the export of another run, or when that fails, before anything is written.
    """
    run = trained.uri.rsplit("/checkpoints/", 1)[0]
    before = _before(dest)
    if before is not None and not overwrite and before.get("run") != run:
        raise UserError(f"{dest} holds the export of {before.get('run')}; give another place, or --overwrite")
    storage.check_writable(dest)
    metrics = None if trained.weights == "raw" else scores_of(trained.uri)
    state = load_state(trained.uri)
    about = {
        "run": run,
        "classes": trained.labels.to_json()["classes"],
        "image_size": trained.cfg.data.image_size,
        "mean": trained.model.traits.mean,
        "std": trained.model.traits.std,
        "sides": _sides(trained.model.traits),
        "checkpoint_step": state["step"],
        "initial": initial_of(state),  # where the weights began, with their licence
        "metrics": metrics,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        layout = (_smp if trained.model.arch["name"] in smp.FAMILIES else _transformers)(trained, folder)
        (folder / "README.md").write_text(_card(trained, layout, metrics), encoding="utf-8")
        if verify:
            about["difference"] = _verified(trained, layout, folder)
        storage.delete(storage.join(dest, MARK))  # while files are exchanged, it is no export
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            storage.write(storage.join(dest, path.name), path.read_bytes())
    storage.write(storage.join(dest, MARK), json.dumps(about, indent=1).encode())
    return {"path": dest, "layout": layout} | ({"difference": about["difference"]} if verify else {})


def _verified(trained: Trained, layout: str, folder: Path) -> float:
    """The largest difference of the library's logits from ours, relative to the largest, over images of three sizes."""
    traits, proof = trained.model.traits, folder / "proof"
    proof.mkdir()
    side = max(traits.least, traits.multiple * -(-64 // traits.multiple))
    sides = [(side, side)] if traits.most else [(side, side), (2 * side, 2 * side)]
    sides += [] if traits.square else [(side, 2 * side)]
    generator = torch.Generator().manual_seed(0)
    images = {f"{h}x{w}": torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sides}
    save_file(images, proof / "images.safetensors")
    arguments = [str(folder), layout, *(json.dumps(list(part)) for part in (traits.mean, traits.std))]
    done = subprocess.run([sys.executable, "-c", _PROOF, *arguments], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"{layout} cannot read the export of {trained.uri} ({said}); nothing was written. Please report this"
        )
    theirs, worst = load_file(proof / "logits.safetensors"), 0.0
    device = next(trained.model.parameters()).device
    for size, image in images.items():
        ours = infer(trained.model, image[None].to(device)).cpu()
        worst = max(worst, float((theirs[size] - ours).abs().max() / ours.abs().max()))
    if not worst < TOLERANCE:
        raise UserError(
            f"{layout} gives other logits than segdist for the export of {trained.uri} (by {worst:.1e}); nothing was written. "
            "Please report this, or give --no-verify"
        )
    return worst


def _sides(traits: Traits) -> str:
    """What images the exported network takes, in words; segdist pads others, and cuts the logits."""
    if traits.most:
        return f"images of {traits.most}x{traits.most} px alone"
    each = f"sides of at least {traits.least} px" + (f", multiples of {traits.multiple}" if traits.multiple > 1 else "")
    return f"square images, {each}" if traits.square else each


def _before(dest: str) -> dict[str, Any] | None:
    """What DEST's earlier export says of itself. Raises UserError when DEST holds something else."""
    try:
        return json.loads(storage.read(storage.join(dest, MARK)))
    except MissingError:
        if storage.names(dest):
            raise UserError(f"{dest} exists and is no export of segdist; give an empty place") from None
        return None


def _transformers(trained: Trained, folder: Path) -> str:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    trained.model.net.save_pretrained(folder)
    size = trained.cfg.data.image_size
    family = hf.FAMILIES.get(trained.model.arch["name"])
    resize: dict[str, Any] = {"do_resize": size is not None, "size": _processor_size(size), "do_reduce_labels": False}
    if family and family.bgr:  # neither mean nor deviation, and blue first
        kind: Any = transformers.MobileViTImageProcessor
        kind(**resize, do_center_crop=False, do_flip_channel_order=True, do_normalize=False).save_pretrained(folder)
        return "transformers"
    mean, std = list(trained.model.traits.mean), list(trained.model.traits.std)
    transformers.SegformerImageProcessor(**resize, image_mean=mean, image_std=std).save_pretrained(folder)
    return "transformers"


def _processor_size(size: int | tuple[int, int] | None) -> dict[str, int]:
    if isinstance(size, int):
        return {"shortest_edge": size}
    height, width = size or (512, 512)  # without do_resize nobody reads it
    return {"height": height, "width": width}


def _smp(trained: Trained, folder: Path) -> str:
    net = trained.model.net.to(memory_format=torch.contiguous_format)
    net.save_pretrained(str(folder))
    return "segmentation_models_pytorch"


def _card(trained: Trained, layout: str, metrics: dict[str, Any] | None) -> str:
    use = {
        "transformers": 'from transformers import pipeline\n\nsegment = pipeline("image-segmentation", model="THIS_FOLDER")\n'
        'for part in segment("photo.jpg"):\n    print(part["label"], part["mask"])',
        "segmentation_models_pytorch": 'import segmentation_models_pytorch as smp\n\nmodel = smp.from_pretrained("THIS_FOLDER")'
        "\n# input: RGB in 0..1, normalised by `mean` and `std`, resized to `image_size` (see segdist.json),"
        f"\n# sides padded to a multiple of {trained.model.traits.multiple}",
    }[layout]
    lines = [
        "---",
        "tags: [image-segmentation, semantic-segmentation, segdist]",
        f"library_name: {layout.replace('_', '-')}",
        "pipeline_tag: image-segmentation",
        "---",
        f"# {trained.model.arch['name']}, {trained.labels.num_classes} classes",
        "",
        f"Images: {_sides(trained.model.traits)}. segdist pads others before it scores them, and cuts what padding made.",
        "",
        f"Fine-tuned with segdist on `{trained.cfg.data.uri.rstrip('/').rsplit('/', 1)[-1]}`.",
        "",
        "```python",
        use,
        "```",
        "",
    ]
    if metrics and metrics["miou"] is not None:
        lines += [
            f"Validation mIoU {metrics['miou']:.4f}; protocol: {metrics['protocol']}.",
            "",
            "| class | IoU |",
            "| --- | --- |",
            *(f"| {n} | {'-' if v is None else format(v, '.4f')} |" for n, v in metrics["iou"].items()),
            "",
        ]
    return "\n".join(lines)
