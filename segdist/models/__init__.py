"""Models behind one small interface: `build` from a config, `rebuild` from what a checkpoint remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segdist.config import Segformer, Unet
from segdist.models import segformer, unet
from segdist.models.segmenter import Segmenter

_FAMILIES = {"segformer": segformer, "unet": unet}


def build(cfg: Segformer | Unet, class_names: Sequence[str]) -> Segmenter:
    """A model with its initial weights, drawn from torch's global generator where they are random.

    Raises UserError when the weights are not to be had or do not fit.
    """
    if isinstance(cfg, Segformer):
        return segformer.build(cfg, class_names)
    return unet.build(cfg, class_names)


def rebuild(arch: dict[str, Any]) -> Segmenter:
    """The model that `arch` (a Segmenter's own, out of a checkpoint) describes, with weights still to be loaded."""
    return _FAMILIES[arch["name"]].rebuild(arch)
