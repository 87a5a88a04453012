"""From image files to classes: images are decoded ahead in threads, and neighbours of equal size share a forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice

import numpy as np
import torch
from PIL import Image, ImageOps

from segdist import storage
from segdist.data.augment import model_size, resize_image
from segdist.data.importers.files import check_range, open_image
from segdist.errors import DataError
from segdist.evaluation.inference import inference_settings, segment
from segdist.runs.restore import Trained
from segdist.threads import map_ahead

_AHEAD = 4  # images decoded in advance
_BATCH_PIXELS = 1 << 24  # per batch of more than one image
_KEPT_BYTES = 1 << 28  # of probabilities, per batch of more than one image
_MOST_BYTES = 1 << 31  # of probabilities, per image


@dataclass(frozen=True)
class Job:
    """An image to predict, and where its results go."""

    uri: str
    names: dict[str, str]  # kind of output -> file name below OUT
    tag: str | None  # see outputs.Stamp
    sha256: str = ""  # of the image file, once it was read


def read_image(uri: str, max_megapixels: int) -> np.ndarray:
    """Return uint8 (H, W, 3) pixels, upright. Raises DataError if the image is unreadable or too large."""
    return _decode(storage.read(uri), uri, max_megapixels)


def _decode(data: bytes, uri: str, max_megapixels: int) -> np.ndarray:
    Image.MAX_IMAGE_PIXELS = None  # open_picture checks our own limit before decoding, with a better message
    with open_image(data, uri, max_megapixels * 10**6) as image:
        check_range(image, uri)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def classify(trained: Trained, image: np.ndarray) -> np.ndarray:
    """Return uint8 (H, W) classes of a uint8 (H, W, 3) image at its own size, with the run's evaluation settings."""
    return classify_batch(trained, [image])[0]


def classify_batch(trained: Trained, images: list[np.ndarray], probabilities: torch.Tensor | None = None) -> np.ndarray:
    """Return uint8 (B, H, W) classes of uint8 (H, W, 3) images of equal size. Fills `probabilities` (B, K, H, W) if given."""
    cfg, size = trained.cfg, images[0].shape[:2]
    input_size = model_size(cfg.data.image_size, *size)
    resized = torch.stack([resize_image(torch.from_numpy(image).permute(2, 0, 1), input_size) for image in images])
    settings = inference_settings(cfg.eval, cfg.data.crop_size)
    pred, _ = segment(trained.model, resized, size, settings, cfg.eval.batch_size, probabilities=probabilities)
    return pred.cpu().numpy()


def batches(
    jobs: list[Job],
    batch_size: int,
    max_megapixels: int,
    num_kept: int,
    failed: list[str],
    advance: Callable[[int], None],
) -> Iterator[tuple[list[Job], list[np.ndarray]]]:
    """Yield jobs and their images in order, neighbours of equal size in one batch. Unreadable images go to `failed`.

    `num_kept`: number of classes whose probabilities will be held in memory.
    """

    def load(job: Job) -> tuple[Job, np.ndarray] | DataError:
        data = storage.read(job.uri)
        try:
            image = _decode(data, job.uri, max_megapixels)
        except DataError as error:
            return error
        height, width = image.shape[:2]
        if (size := 2 * num_kept * height * width) > _MOST_BYTES:
            return DataError(
                f"{job.uri}: the probabilities of {num_kept} classes at {height}x{width} px (height x width) take "
                f"{size / 1e9:.1f} GB, more than the limit of {_MOST_BYTES / 1e9:.1f} GB. Cut the image into parts, or predict "
                "it without --save probabilities"
            )
        return replace(job, sha256=hashlib.sha256(data).hexdigest()), image

    def readable() -> Iterator[tuple[Job, np.ndarray]]:
        for loaded in map_ahead(pool, load, jobs, _AHEAD):
            if isinstance(loaded, DataError):
                failed.append(str(loaded))
                advance(1)
            else:
                yield loaded

    with ThreadPoolExecutor(4, "decode") as pool:
        for shape, run in groupby(readable(), lambda pair: pair[1].shape):
            num_pixels = shape[0] * shape[1]
            most = max(1, min(batch_size, _BATCH_PIXELS // num_pixels))
            if num_kept:
                most = max(1, min(most, _KEPT_BYTES // (2 * num_kept * num_pixels)))
            while batch := list(islice(run, most)):
                yield [job for job, _ in batch], [image for _, image in batch]
