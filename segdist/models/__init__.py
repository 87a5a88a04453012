"""Models behind one small interface: `build` from a config, `rebuild` from what a checkpoint remembers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdist import storage
from segdist.config import Model, Segformer, Smp
from segdist.models import hf, segformer, smp
from segdist.models.segmenter import Segmenter


def build(cfg: Model, class_names: Sequence[str]) -> Segmenter:
    """A model with its initial weights, drawn from torch's global generator where they are random.

    Raises UserError when the weights are not to be had or do not fit.
    """
    if cfg.weights is None or "://" not in cfg.weights:
        return _build(cfg, class_names)
    with tempfile.TemporaryDirectory() as place:
        folder = str(storage.download(cfg.weights, Path(place)))
        model = _build(cfg.model_copy(update={"weights": folder}), class_names)
    model.notes = [note.replace(folder, cfg.weights) for note in model.notes]
    return model


def _build(cfg: Model, class_names: Sequence[str]) -> Segmenter:
    if isinstance(cfg, Segformer):
        return segformer.build(cfg, class_names)
    if isinstance(cfg, Smp):
        return smp.build(cfg, class_names)
    return hf.build(cfg, class_names)


def rebuild(arch: dict[str, Any]) -> Segmenter:
    """The model that `arch` (a Segmenter's own, out of a checkpoint) describes, with weights still to be loaded."""
    if arch["name"] == "segformer":
        return segformer.rebuild(arch)
    return (smp if arch["name"] in smp.FAMILIES else hf).rebuild(arch)
