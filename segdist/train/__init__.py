"""One training run: `fit` (in `loop`) trains and evaluates. `setup`, `build` and `auto_batch` prepare it, before step 1."""

from segdist.train.agreement import Notice
from segdist.train.loop import fit
from segdist.train.validation import Tell

__all__ = ["Notice", "Tell", "dead_classes", "fit", "setup"]
