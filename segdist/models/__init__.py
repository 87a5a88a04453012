"""Models behind one small interface: `build` from a config, `rebuild` from what a checkpoint remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segdist.config import Model, Segformer, Smp
from segdist.errors import UserError
from segdist.models import hf, segformer, smp, weights
from segdist.models.segmenter import Segmenter
from segdist.models.weights import Weights

__all__ = [
    "build", "catalogue", "formats", "head", "hf", "licences", "pinned", "rebuild", "segmenter", "smp", "weights",
]  # fmt: skip


def build(cfg: Model, class_names: Sequence[str], found: Weights | None = None) -> Segmenter:
    """A model with its initial weights, drawn from torch's global generator where they are random.

    `found` stands for what model.weights says, where that was fetched already. Raises UserError when the weights are not to
    be had or do not fit.
    """
    if cfg.weights is not None and found is None and not _only_encoder(cfg):
        with weights.fetched(cfg.weights, cfg.revision) as found:
            return build(cfg, class_names, found)
    if found is not None and (theirs := found.about.get("architecture", cfg.name)) != cfg.name:
        raise UserError(
            f"model.weights {found.said!r} is an export of a {theirs}, and this config asks for {cfg.name}; set model.name="
            f"{theirs}"
        )
    if isinstance(cfg, Segformer):
        return segformer.build(cfg, class_names, found)
    if isinstance(cfg, Smp):
        return smp.build(cfg, class_names, found)
    return hf.build(cfg, class_names, found)


def pinned(cfg: Model) -> str | None:
    """The commit that model.weights means on the Hub now; None for weights from elsewhere, and for those of an encoder.

    Raises UserError when the Hub does not tell.
    """
    if cfg.weights is None or _only_encoder(cfg) or not weights.is_hub_id(cfg.weights):
        return None
    return weights.commit_of(cfg.weights, cfg.revision)


def _only_encoder(cfg: Model) -> bool:
    return isinstance(cfg, Smp) and smp.only_encoder(cfg)


def rebuild(arch: dict[str, Any]) -> Segmenter:
    """The model that `arch` (a Segmenter's own, out of a checkpoint) describes, with weights still to be loaded."""
    if arch["name"] == "segformer":
        return segformer.rebuild(arch)
    return (smp if arch["name"] in smp.FAMILIES else hf).rebuild(arch)
