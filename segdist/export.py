"""A checkpoint in the layout of the library that made its model, so that it runs where segdist is not installed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from segdist import storage
from segdist.checkpoint import load_state, scores_of
from segdist.errors import MissingError, UserError
from segdist.models import hf, smp
from segdist.trained import Trained

MARK = "segdist.json"  # written last: an export without it is not whole


def export(trained: Trained, dest: str, overwrite: bool = False) -> dict[str, Any]:
    """Writes the export and a model card into DEST; {"path", "layout"}.

    Raises UserError when DEST holds other things, or (unless `overwrite`) the export of another run.
    """
    run = trained.uri.rsplit("/checkpoints/", 1)[0]
    before = _before(dest)
    if before is not None and not overwrite and before.get("run") != run:
        raise UserError(f"{dest} holds the export of {before.get('run')}; give another place, or --overwrite")
    storage.check_writable(dest)
    metrics = None if trained.weights == "raw" else scores_of(trained.uri)
    about = {
        "run": run,
        "classes": trained.labels.to_json()["classes"],
        "image_size": trained.cfg.data.image_size,
        "mean": trained.model.traits.mean,
        "std": trained.model.traits.std,
        "checkpoint_step": load_state(trained.uri)["step"],
        "metrics": metrics,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        layout = (_smp if trained.model.arch["name"] in smp.FAMILIES else _transformers)(trained, folder)
        (folder / "README.md").write_text(_card(trained, layout, metrics), encoding="utf-8")
        storage.delete(storage.join(dest, MARK))  # while files are exchanged, it is no export
        for path in sorted(folder.iterdir()):
            storage.write(storage.join(dest, path.name), path.read_bytes())
    storage.write(storage.join(dest, MARK), json.dumps(about, indent=1).encode())
    return {"path": dest, "layout": layout}


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
    import torch

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
