"""One training run: `fit` (in `loop`) reads top to bottom; `setup` holds everything before the first step."""

from segdist.train.loop import fit
from segdist.train.validation import Tell
from segdist.train.votes import Notice

__all__ = ["Notice", "Tell", "dead_classes", "fit", "setup"]
