"""The configs of runs and sweeps: trees of strict, frozen classes, read from one YAML and the command line."""

from segdist.config.fields import Section, Size, fields, identity_of, is_identity, to_tree
from segdist.config.models import NEEDS_TWO_IMAGES, Model, Segformer, Smp, Transformers
from segdist.config.reading import (
    explain,
    from_tree,
    holds_credential,
    is_path_or_uri,
    load,
    loads,
    published,
    update_section,
    uris,
)
from segdist.config.recipe import Data, Loss, Optim, Train
from segdist.config.tree import DEFAULTS, Checkpoint, Config, Eval, Hub, Io, Log, Run, Scale

__all__ = [
    "DEFAULTS",
    "NEEDS_TWO_IMAGES",
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
    "explain",
    "fields",
    "from_tree",
    "holds_credential",
    "identity_of",
    "is_identity",
    "is_path_or_uri",
    "load",
    "loads",
    "models",
    "published",
    "reading",
    "sweep",
    "to_tree",
    "update_section",
    "uris",
]
