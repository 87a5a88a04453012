"""One training run: `fit` (in `loop`) reads top to bottom. `setup`, `build` and `auto_batch` are what comes before step 1."""

from segdist.train.agreement import Notice
from segdist.train.loop import fit
from segdist.train.validation import Tell

__all__ = ["Notice", "Tell", "dead_classes", "fit", "setup"]
