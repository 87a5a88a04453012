"""segdist fine-tunes semantic segmentation models; see README.md. Importing it loads neither torch nor ray."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from segdist.api import load

        return load
    raise AttributeError(f"module 'segdist' has no attribute {name!r}")
