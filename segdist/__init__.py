"""segdist fine-tunes semantic segmentation models; see README.md. Importing it loads neither torch nor ray."""

__version__ = "0.1.0"
