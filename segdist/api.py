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
from segdist.predict import batches, outputs
from segdist.publish.exported import load_model
from segdist.runs.restore import Trained

MAX_MEGAPIXELS = 200


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of one image."""

    image: np.ndarray  # uint8 (H, W, 3), upright
    classes: np.ndarray  # uint8 (H, W): class numbers, starting at 0
    labels: Labels

    def mask(self) -> Image.Image:
        """Return a palette image: the values are class numbers, the colours are those of the dataset."""
        return figures.index_mask(self.classes, self.labels)

    def overlay(self) -> Image.Image:
        """Return the image with its classes drawn over it, and a legend."""
        return figures.overlay(self.image, self.classes, self.labels)

    @property
    def shares(self) -> dict[str, float]:
        """Each class's share of the pixels, by class name."""
        return dict(zip(self.labels.names, outputs.class_shares(self.classes, self.labels)))


@dataclass(frozen=True)
class Model:
    """A trained model. Create it with `load`."""

    trained: Trained

    @property
    def names(self) -> list[str]:
        """The class names, in the order of the class numbers."""
        return self.trained.labels.names

    def predict(self, image: str | os.PathLike[str] | Image.Image | np.ndarray) -> Prediction:
        """Predict the classes of an image, with the evaluation settings of the model's run.

        `image`: a path or URI, a PIL image, or uint8 (H, W, 3) pixels. Raises DataError if the file cannot be read, and
        UserError if the array is not an image.
        """
        if isinstance(image, str | os.PathLike):
            pixels = batches.read_image(os.fspath(image), MAX_MEGAPIXELS)
        else:
            pixels = np.array(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UserError(f"An image must be uint8 pixels of shape (H, W, 3), not {pixels.dtype} {pixels.shape}")
        return Prediction(pixels, batches.classify(self.trained, pixels), self.trained.labels)


def load(uri: str | os.PathLike[str], device: str = "auto", raw: bool = False) -> Model:
    """Load the model of a run (its best checkpoint), of one checkpoint or of an export, from a path or URI.

    An export may be on the Hugging Face Hub: `OWNER/NAME`, or `hf://OWNER/NAME@REVISION`. `raw`: use the raw weights instead of
    the EMA weights. Raises UserError if there is no model.
    """
    return Model(load_model(os.fspath(uri), choose_device(device), raw))
