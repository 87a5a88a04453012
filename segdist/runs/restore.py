"""Models out of checkpoints: to be used, or to begin another run."""

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
from segdist.models.segmenter import NOWHERE, Segmenter
from segdist.models.weights import Weights, inherited, origin_of, tell
from segdist.runs import checkpoints, snapshot


@dataclass(frozen=True)
class Trained:
    """A model out of a checkpoint, with what one must know to use it."""

    uri: str
    model: Segmenter
    labels: Labels
    cfg: Config
    weights: Literal["trained", "averaged", "raw"] = (
        "trained"  # raw: those that train on, of a run that scores their average
    )
    digest: str | None = None  # of an export; that of a checkpoint is checkpoint.digest(uri)


def load_trained(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """The model of a run (its best checkpoint) or of a checkpoint, in evaluation mode on the device.

    `raw`: see checkpoint.load_model. Raises CheckpointError when there is none or it does not verify.
    """
    return load_resolved(checkpoints.resolve(uri), device, raw)


def load_resolved(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """As `load_trained`, of a checkpoint that checkpoint.resolve gave."""
    state = checkpoints.load_state(uri)
    weights: Any = ("raw" if raw else "averaged") if snapshot.has_average(uri) else "trained"
    model = models.rebuild(state["arch"])
    model.load_state_dict(snapshot.load_model(uri, raw))
    return Trained(uri, model.to(device).eval(), Labels.from_json(state["labels"]), config_of(uri, state), weights)


def config_of(uri: str, state: dict[str, Any]) -> Config:
    """The config of the run that left this checkpoint and its state."""
    return config.from_tree(state["config"], storage.join(uri, checkpoints.STATE))


def begin(cfg: Config, class_names: Sequence[str], parent: str | None) -> Segmenter:
    """The model of a new run with its initial weights: those of model.weights and, over them, those of its parent.

    Raises UserError when they are not to be had or do not fit.
    """
    if parent is None:
        return build(cfg.model, class_names)
    model = build(cfg.model.model_copy(update={"transfer_head": "none"}), class_names)
    return load_fitting(parent, model, class_names, cfg.model.transfer_head)


def build(cfg: config.Model, class_names: Sequence[str]) -> Segmenter:
    """models.build, where model.weights may also be a run (its best checkpoint) or a checkpoint.

    The size of the network is then that of the run, as it is that of any other weights.
    """
    if cfg.weights is None or not is_run(cfg.weights):
        return models.build(cfg, class_names)
    if cfg.revision is not None:
        raise UserError(f"model.revision pins a Hub id, and model.weights {cfg.weights} is a run; leave it out")
    uri = checkpoints.resolve(cfg.weights)
    state = checkpoints.load_state(uri)
    if (theirs := state["arch"]["name"]) != cfg.name:
        raise UserError(
            f"model.weights {cfg.weights} is a {theirs}, and this config asks for {cfg.name}; set `model` as that run had it: "
            f"{said_model(state)}"
        )
    with tempfile.TemporaryDirectory() as place:
        return models.build(cfg, class_names, as_folder(uri, Path(place)))


def pinned(cfg: config.Model) -> dict[str, str]:
    """What model.weights means now, as fields of `model` that go on meaning it: a run's checkpoint, a Hub id's commit.

    Empty where nothing can be pinned: random weights, a folder, an encoder's. Raises UserError when they are not to be had.
    """
    if cfg.weights is not None and cfg.revision is None and is_run(cfg.weights):
        return {"weights": checkpoints.resolve(cfg.weights)}
    commit = models.pinned(cfg)
    return {"revision": commit} if commit else {}


def is_run(uri: str) -> bool:
    """Whether a run or a checkpoint lies there."""
    if "://" in uri and not uri.lower().startswith(("s3://", "file://")):
        return False
    return any(storage.exists(storage.join(uri, name)) for name in (checkpoints.STATE, "checkpoints"))


def as_folder(uri: str, folder: Path) -> Weights:
    """Puts the model of a checkpoint into a folder, in the layout of its library, which has no place for our auxiliary head."""
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
    """Where the weights of a checkpoint with this state began, as `models.weights` has it."""
    if "initial" in state:
        return state["initial"]
    said = state["config"]["model"].get("weights")  # of a run from before that was recorded
    return origin_of(said, None, licences.of(said, None)) if said else NOWHERE


def said_model(state: dict[str, Any]) -> str:
    """The line of a run's config that describes its model."""
    model = {k: v for k, v in state["config"]["model"].items() if v not in (None, {}, False, "none")}
    return f"model: {{{', '.join(f'{k}: {json.dumps(v).strip(chr(34))}' for k, v in model.items())}}}"


def load_fitting(uri: str, model: Segmenter, class_names: Sequence[str], transfer: str) -> Segmenter:
    """The model with the weights of a checkpoint as far as names and shapes fit, and the head's as their classes allow.

    Raises CheckpointError when it holds another architecture.
    """
    state = checkpoints.load_state(uri)
    traits, theirs = model.traits, models.rebuild(state["arch"]).traits
    if (traits.encoder_prefix, traits.mean, traits.std) != (theirs.encoder_prefix, theirs.mean, theirs.std):
        raise CheckpointError(
            f"{uri}: its encoder or its normalisation is another model's: it is a {state['arch']['name']}, and this config "
            f"asks for {model.arch['name']}; set `model` as its run had it: {said_model(state)}"
        )
    names = Labels.from_json(state["labels"]).names
    done = head.load(snapshot.load_model(uri), model, names, class_names, transfer, uri)
    return tell(model, uri, inherited(initial_of(state), uri), done)
