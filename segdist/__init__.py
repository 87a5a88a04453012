"""segdist fine-tunes semantic segmentation models; see README.md. Importing it loads neither torch nor ray."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["MeanIoU", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from segdist.api import load

        return load
    if name == "MeanIoU":
        from segdist.metric import MeanIoU

        return MeanIoU
    raise AttributeError(f"module 'segdist' has no attribute {name!r}")
