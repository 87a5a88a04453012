"""Exports in the layout of the model's own library (transformers or segmentation_models_pytorch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from segdist.models import hf, smp
from segdist.models.export_formats import FORMATS
from segdist.runs.restore import Trained


def write(trained: Trained, folder: Path) -> str:
    """Write the library's files. Return the name of the library."""
    name = trained.model.arch["name"]
    (_smp if name in smp.FAMILIES else _transformers)(trained, folder)
    return FORMATS[name].native


def channel_order(trained: Trained) -> str:
    """Return the channel order of the network's input. The image processor of transformers converts from RGB itself."""
    family = hf.FAMILIES.get(trained.model.arch["name"])
    return "BGR" if family and family.bgr else "RGB"


def _transformers(trained: Trained, folder: Path) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    trained.model.net.save_pretrained(folder)
    size = trained.cfg.data.image_size
    resize: dict[str, Any] = {"do_resize": size is not None, "size": _processor_size(size), "do_reduce_labels": False}
    if channel_order(trained) == "BGR":  # this processor flips channels and does not normalise
        kind: Any = transformers.MobileViTImageProcessor
        kind(**resize, do_center_crop=False, do_flip_channel_order=True, do_normalize=False).save_pretrained(folder)
        return
    mean, std = list(trained.model.traits.mean), list(trained.model.traits.std)
    transformers.SegformerImageProcessor(**resize, image_mean=mean, image_std=std).save_pretrained(folder)


def _processor_size(size: int | tuple[int, int] | None) -> dict[str, int]:
    if isinstance(size, int):
        return {"shortest_edge": size}
    height, width = size or (512, 512)  # unused without do_resize
    return {"height": height, "width": width}


def _smp(trained: Trained, folder: Path) -> None:
    net = trained.model.net.to(memory_format=torch.contiguous_format)
    net.save_pretrained(str(folder))
