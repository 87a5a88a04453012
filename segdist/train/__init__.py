"""One training run: `fit` reads top to bottom in `loop`; `setup` is everything before the first step."""

from segdist.train.loop import Notice, Tell, fit

__all__ = ["Notice", "Tell", "fit", "loop", "setup"]
