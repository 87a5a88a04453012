"""The run as a tree of strict, frozen classes (`sections`), read from one YAML and the command line (`reading`)."""

from segdist.config.reading import explain, from_tree, load, loads
from segdist.config.sections import (
    Checkpoint,
    Config,
    Data,
    Eval,
    Io,
    Log,
    Loss,
    Optim,
    Run,
    Scale,
    Section,
    Segformer,
    Size,
    Train,
    Unet,
    fields,
    identity_of,
    is_identity,
    to_tree,
)

__all__ = [
    "Checkpoint", "Config", "Data", "Eval", "Io", "Log", "Loss", "Optim", "Run", "Scale", "Section", "Segformer", "Size",
    "Train", "Unet", "explain", "fields", "from_tree", "identity_of", "is_identity", "load", "loads", "to_tree",
]  # fmt: skip
