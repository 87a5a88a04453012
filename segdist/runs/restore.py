"""Load models from checkpoints, to use them or to start another run from them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from segdist import config, models, storage
from segdist.config import Config
from segdist.data.labels import Labels
from segdist.errors import CheckpointError, UserError
from segdist.models import head, licences, smp
from segdist.models.segmenter import NO_ORIGIN, Segmenter
from segdist.models.weights import Weights, inherited, origin_of, record_origin
from segdist.runs import checkpoints, snapshot


@dataclass(frozen=True)
class Trained:
    """A trained model with everything needed to use it."""

    uri: str
    model: Segmenter
    labels: Labels
    cfg: Config
    # averaged: EMA weights; raw: those of a run that has EMA weights
    weights: Literal["trained", "averaged", "raw"] = "trained"
    digest: str | None = None  # of an export; for a checkpoint see checkpoints.digest


def load_trained(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """Load the model of a run (its best checkpoint) or of a checkpoint, in evaluation mode on the device.

    `raw`: see snapshot.load_model. Raises CheckpointError if there is no checkpoint or it does not verify.
    """
    return load_resolved(checkpoints.resolve(uri), device, raw)


def load_resolved(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """Like `load_trained`, for a checkpoint that checkpoints.resolve returned."""
    state = checkpoints.load_state(uri)
    weights: Any = ("raw" if raw else "averaged") if snapshot.has_ema(uri) else "trained"
    model = models.rebuild(state["arch"])
    model.load_state_dict(snapshot.load_model(uri, raw))
    return Trained(uri, model.to(device).eval(), Labels.from_json(state["labels"]), config_of(uri, state), weights)


def config_of(uri: str, state: dict[str, Any]) -> Config:
    """Return the config of the run that wrote this checkpoint. `state` is the checkpoint's state.json."""
    return config.from_tree(state["config"], storage.join(uri, checkpoints.STATE), stored=True)


def begin(cfg: Config, class_names: Sequence[str], parent: str | None) -> Segmenter:
    """Return the model of a new run with its initial weights: model.weights, then the parent's weights on top.

    Raises UserError if the weights are not available or do not fit.
    """
    if parent is None:
        return build(cfg.model, class_names)
    model = build(cfg.model.model_copy(update={"transfer_head": "none"}), class_names)
    return load_fitting(parent, model, class_names, cfg.model.transfer_head)


def build(cfg: config.Model, class_names: Sequence[str]) -> Segmenter:
    """Like models.build, but model.weights may also be a run (its best checkpoint) or a checkpoint.

    As with all other weights, the size of the network is then that of the weights.
    """
    if cfg.weights is None or not is_run(cfg.weights):
        return models.build(cfg, class_names)
    if cfg.revision is not None:
        raise UserError(
            f"model.revision applies to Hub IDs only, and model.weights {cfg.weights} is a run. Remove model.revision"
        )
    uri = checkpoints.resolve(cfg.weights)
    state = checkpoints.load_state(uri)
    if (theirs := state["arch"]["name"]) != cfg.name:
        raise UserError(
            f"model.weights {cfg.weights} holds a {theirs}, but this config has model.name={cfg.name}. "
            f"Use the `model` of that run: {model_line(state)}"
        )
    with tempfile.TemporaryDirectory() as place:
        return models.build(cfg, class_names, as_folder(uri, Path(place)))


def pinned(cfg: config.Model) -> dict[str, str]:
    """Return fields of `model` that pin what model.weights means now: the checkpoint of a run, or the commit of a Hub ID.

    Returns {} for random weights, a folder or an encoder's weights. Raises UserError if the weights are not available.
    """
    if cfg.weights is not None and cfg.revision is None and is_run(cfg.weights):
        return {"weights": checkpoints.resolve(cfg.weights)}
    commit = models.pinned(cfg)
    return {"revision": commit} if commit else {}


def is_run(uri: str) -> bool:
    """Return whether the URI is a run or a checkpoint."""
    if "://" in uri and not uri.lower().startswith(("s3://", "file://")):
        return False
    return any(storage.exists(storage.join(uri, name)) for name in (checkpoints.STATE, "checkpoints"))


def as_folder(uri: str, folder: Path) -> Weights:
    """Write the model of a checkpoint to a folder in the layout of its library, without the auxiliary head."""
    state = checkpoints.load_state(uri)
    arch = state["arch"]
    held = {k.removeprefix("net."): v for k, v in snapshot.load_model(uri).items()}
    save_file(held, folder / "model.safetensors")
    about = {"classes": state["labels"]["classes"], "mean": arch["mean"], "std": arch["std"]}
    scale = {"image_mean": arch["mean"], "image_std": arch["std"], "do_normalize": True}
    library = smp.library_config(arch) if "encoder" in arch else arch["config"]
    for name, tree in (("config.json", library), ("segdist.json", about), ("preprocessor_config.json", scale)):
        (folder / name).write_text(json.dumps(tree), encoding="utf-8")
    return Weights(uri, folder, inherited(initial_of(state), uri))


def initial_of(state: dict[str, Any]) -> dict[str, Any]:
    """Return where the weights of a checkpoint with this state came from originally, in the form of `models.weights`."""
    if "initial" in state:
        return state["initial"]
    said = state["config"]["model"].get("weights")  # runs of older versions did not record this
    return origin_of(said, None, licences.of(said, None)) if said else NO_ORIGIN


def model_line(state: dict[str, Any]) -> str:
    """Return the `model` line of a run's config."""
    model = {k: v for k, v in state["config"]["model"].items() if v not in (None, {}, False, "none")}
    return f"model: {{{', '.join(f'{k}: {json.dumps(v).strip(chr(34))}' for k, v in model.items())}}}"


def load_fitting(uri: str, model: Segmenter, class_names: Sequence[str], transfer: str) -> Segmenter:
    """Load the weights of a checkpoint whose names and shapes fit, and the head's weights as `transfer` and the classes allow.

    Raises CheckpointError if the checkpoint holds another architecture.
    """
    state = checkpoints.load_state(uri)
    traits, theirs = model.traits, models.rebuild(state["arch"]).traits
    if (traits.encoder_prefix, traits.mean, traits.std) != (theirs.encoder_prefix, theirs.mean, theirs.std):
        raise CheckpointError(
            f"{uri} holds a {state['arch']['name']} with another encoder or normalisation; this config has "
            f"model.name={model.arch['name']}. Use the `model` of its run: {model_line(state)}"
        )
    names = Labels.from_json(state["labels"]).names
    done = head.load(snapshot.load_model(uri), model, names, class_names, transfer, uri)
    return record_origin(model, uri, inherited(initial_of(state), uri), done)
