"""The run as a tree of strict, frozen classes, read from one YAML and the command line."""

from segdist.config.fields import Section, Size, fields, identity_of, is_identity, to_tree
from segdist.config.models import NEEDS_PAIRS, Model, Segformer, Smp, Transformers
from segdist.config.reading import (
    changed,
    explain,
    from_tree,
    holds_credential,
    is_place,
    load,
    loads,
    places,
    published,
)
from segdist.config.recipe import Data, Loss, Optim, Train
from segdist.config.tree import DEFAULTS, Checkpoint, Config, Eval, Hub, Io, Log, Run, Scale

__all__ = [
    "DEFAULTS",
    "NEEDS_PAIRS",
    "Checkpoint",
    "Config",
    "Data",
    "Eval",
    "Hub",
    "Io",
    "Log",
    "Loss",
    "Model",
    "Optim",
    "Run",
    "Scale",
    "Section",
    "Segformer",
    "Size",
    "Smp",
    "Train",
    "Transformers",
    "changed",
    "explain",
    "fields",
    "from_tree",
    "holds_credential",
    "identity_of",
    "is_identity",
    "is_place",
    "load",
    "loads",
    "models",
    "places",
    "published",
    "reading",
    "sweep",
    "to_tree",
]  # fmt: skip
