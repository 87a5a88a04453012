"""Models behind one interface: `build` from a config, `rebuild` from a checkpoint's description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segdist.config import Model, Segformer, Smp
from segdist.errors import UserError
from segdist.models import hf, segformer, smp, weights
from segdist.models.segmenter import Segmenter
from segdist.models.weights import Weights

__all__ = [
    "build", "catalogue", "export_formats", "head", "hf", "licences", "pinned", "rebuild", "segmenter", "smp", "weights",
]  # fmt: skip


def build(cfg: Model, class_names: Sequence[str], found: Weights | None = None) -> Segmenter:
    """Return a model with its initial weights; random weights are drawn from torch's global generator.

    `found` replaces model.weights if those were fetched already. Raises UserError if the weights cannot be loaded or do not
    fit.
    """
    if cfg.weights is not None and found is None and not _only_encoder(cfg):
        with weights.fetched(cfg.weights, cfg.revision) as found:
            return build(cfg, class_names, found)
    if found is not None and (theirs := found.about.get("architecture", cfg.name)) != cfg.name:
        raise UserError(
            f"model.weights {found.source!r} is an export of a {theirs}, but model.name is {cfg.name}. Set model.name={theirs}"
        )
    if isinstance(cfg, Segformer):
        return segformer.build(cfg, class_names, found)
    if isinstance(cfg, Smp):
        return smp.build(cfg, class_names, found)
    return hf.build(cfg, class_names, found)


def pinned(cfg: Model) -> str | None:
    """Return the commit that model.weights currently resolves to on the Hub, or None if the weights are not a Hub model.

    Weights of an encoder alone give None too. Raises UserError if the Hub cannot answer.
    """
    if cfg.weights is None or _only_encoder(cfg) or not weights.is_hub_id(cfg.weights):
        return None
    return weights.commit_of(cfg.weights, cfg.revision)


def _only_encoder(cfg: Model) -> bool:
    return isinstance(cfg, Smp) and smp.only_encoder(cfg)


def rebuild(arch: dict[str, Any]) -> Segmenter:
    """Return the model that `arch` (Segmenter.arch, from a checkpoint) describes, before its weights are loaded."""
    if arch["name"] == "segformer":
        return segformer.rebuild(arch)
    return (smp if arch["name"] in smp.FAMILIES else hf).rebuild(arch)
