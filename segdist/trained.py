"""Models out of checkpoints: to be used, or to begin another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from segdist import checkpoint, config, models, storage
from segdist.config import Config
from segdist.data.labels import Labels
from segdist.errors import CheckpointError
from segdist.models.segmenter import Segmenter


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


def load_trained(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """The model of a run (its best checkpoint) or of a checkpoint, in evaluation mode on the device.

    `raw`: see checkpoint.load_model. Raises CheckpointError when there is none or it does not verify.
    """
    return load_resolved(checkpoint.resolve(uri), device, raw)


def load_resolved(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """As `load_trained`, of a checkpoint that checkpoint.resolve gave."""
    state = checkpoint.load_state(uri)
    weights: Any = ("raw" if raw else "averaged") if checkpoint.has_average(uri) else "trained"
    model = models.rebuild(state["arch"])
    model.load_state_dict(checkpoint.load_model(uri, raw))
    return Trained(uri, model.to(device).eval(), Labels.from_json(state["labels"]), config_of(uri, state), weights)


def config_of(uri: str, state: dict[str, Any]) -> Config:
    """The config of the run that left this checkpoint and its state."""
    return config.from_tree(state["config"], storage.join(uri, checkpoint.STATE))


def load_fitting(uri: str, model: Segmenter) -> list[str]:
    """Puts the weights of a checkpoint into a model as far as names and shapes fit; notes for a person on what did not.

    Raises CheckpointError when it holds another architecture.
    """
    own, stored = model.state_dict(), checkpoint.load_model(uri)
    fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape}
    traits, theirs = model.traits, models.rebuild(checkpoint.load_state(uri)["arch"]).traits
    if not any(k.startswith(traits.encoder_prefix) for k in fitting) or (traits.mean, traits.std) != (
        theirs.mean,
        theirs.std,
    ):
        raise CheckpointError(
            f"{uri}: its encoder or its normalisation is another model's; set `model` as its run had it"
        )
    model.load_state_dict(fitting, strict=False)
    fresh = sorted(set(own) - set(fitting))
    notes = [f"initial weights from {uri}"]
    return [*notes, f"newly initialised, since it has none of this shape: {', '.join(fresh)}"] if fresh else notes
