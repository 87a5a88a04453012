"""The run as a tree of strict, frozen classes, read from one YAML and the command line."""

from segdist.config.fields import Section, Size, fields, identity_of, is_identity, to_tree
from segdist.config.reading import changed, explain, from_tree, load, loads
from segdist.config.recipe import Data, Loss, Optim, Segformer, Train, Unet
from segdist.config.tree import DEFAULTS, Checkpoint, Config, Eval, Io, Log, Run, Scale

__all__ = [
    "DEFAULTS", "Checkpoint", "Config", "Data", "Eval", "Io", "Log", "Loss", "Optim", "Run", "Scale", "Section",
    "Segformer", "Size", "Train", "Unet", "changed", "explain", "fields", "from_tree", "identity_of", "is_identity",
    "load", "loads", "to_tree",
]  # fmt: skip
