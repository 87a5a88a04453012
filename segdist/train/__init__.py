"""One training run: `fit` (in `loop`) reads top to bottom; `setup` holds everything before the first step."""

from segdist.train.agreement import Notice
from segdist.train.loop import fit
from segdist.train.validation import Tell

__all__ = ["Notice", "Tell", "dead_classes", "fit", "setup"]
