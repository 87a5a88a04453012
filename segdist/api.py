"""Trained models in Python: `from segdist import load; load("runs/photos").predict("photo.jpg").overlay().save("out.png")`."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segdist.data.labels import Labels
from segdist.distributed import choose_device
from segdist.errors import UserError
from segdist.evaluation import figures
from segdist.predict import files, outputs
from segdist.publish.exported import load_model
from segdist.runs.restore import Trained

MAX_MEGAPIXELS = 200


@dataclass(frozen=True)
class Prediction:
    """The classes of an image."""

    image: np.ndarray  # uint8 (H, W, 3), upright
    classes: np.ndarray  # uint8 (H, W): 0 is the first class
    labels: Labels

    def mask(self) -> Image.Image:
        """Palette image: its values are the class numbers, its colours those of the data set."""
        return figures.index_mask(self.classes, self.labels)

    def overlay(self) -> Image.Image:
        """The image under its classes, with a legend."""
        return figures.overlay(self.image, self.classes, self.labels)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each class."""
        return dict(zip(self.labels.names, outputs.shares(self.classes, self.labels)))


@dataclass(frozen=True)
class Model:
    """A trained model; see `load`."""

    trained: Trained

    @property
    def names(self) -> list[str]:
        """The classes, in order of their numbers."""
        return self.trained.labels.names

    def predict(self, image: str | os.PathLike[str] | Image.Image | np.ndarray) -> Prediction:
        """The classes of an image: a path or URI, a PIL image, or uint8 (H, W, 3) pixels; as the run's evaluation sees it.

        Raises DataError when it cannot be read, UserError when it is no image.
        """
        if isinstance(image, str | os.PathLike):
            pixels = files.read_image(os.fspath(image), MAX_MEGAPIXELS)
        else:
            pixels = np.array(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UserError(f"an image is uint8 (H, W, 3) pixels; this is {pixels.dtype} {pixels.shape}")
        return Prediction(pixels, files.classify(self.trained, pixels), self.trained.labels)


def load(uri: str | os.PathLike[str], device: str = "auto", raw: bool = False) -> Model:
    """The model of a run (its best checkpoint), of one checkpoint or of an export, from a path or URI.

    An export may lie on the Hugging Face Hub: `OWNER/NAME`, or `hf://OWNER/NAME@REVISION`.
    `raw`: the weights that train on, where the run averages and scores others. Raises UserError when there is none.
    """
    return Model(load_model(os.fspath(uri), choose_device(device), raw))
