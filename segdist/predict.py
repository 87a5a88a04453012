"""Classes for images that have no mask: an index mask and an overlay for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from segdist import figures, log, storage
from segdist.data.augment import model_size, resize_image
from segdist.data.importers.files import IMAGE_SUFFIXES, check_range, open_picture
from segdist.errors import DataError, UserError
from segdist.inference import recipe, segment
from segdist.trained import Trained

_ENDS = (".png", "_overlay.png")


def classify(trained: Trained, image: np.ndarray) -> np.ndarray:
    """uint8 (H, W) classes of a uint8 (H, W, 3) image, at its own size, as the run's evaluation would see it."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    cfg, size = trained.cfg, image.shape[:2]
    seen = resize_image(pixels, model_size(cfg.data.image_size, *size))[None]
    pred, _ = segment(trained.model, seen, size, recipe(cfg.eval, cfg.data.crop_size), cfg.eval.batch_size)
    return pred[0].cpu().numpy()


def predict_files(trained: Trained, images: Sequence[str], out: str, max_megapixels: int = 200) -> list[dict[str, Any]]:
    """Writes OUT/NAME.png (index mask) and OUT/NAME_overlay.png for every image; where they went.

    `images` are URIs of files, or of folders whose images are all meant. Raises UserError before the first one when
    something would be overwritten, another image's mask or an image itself. An image that cannot be read, or is larger
    than `max_megapixels`, does not stop the others: UserError names such images at the end.
    """
    uris = [uri for given in images for uri in _images(given)]
    targets = [tuple(storage.join(out, f"{PurePosixPath(uri).stem}{end}") for end in _ENDS) for uri in uris]
    taken = {_place(uri): "" for uri in uris}
    for uri, target in ((uri, t) for uri, pair in zip(uris, targets) for t in pair):
        if other := taken.get(_place(target)):
            raise UserError(
                f"the results for {other} and for {uri} would both be {target}; give images of different names"
            )
        if other is not None:
            raise UserError(f"{target} would overwrite that image; give another --out")
        taken[_place(target)] = uri
    storage.check_writable(out)
    done, failed = [], []
    progress, advance = log.bar("predicting", len(uris))
    with progress:
        for uri, (mask, drawn) in zip(uris, targets):
            try:
                done.append(_predict_file(trained, uri, mask, drawn, max_megapixels))
            except DataError as error:
                failed.append(str(error))
            advance(1)
    if failed:
        raise UserError(
            "\n".join([*failed, f"{len(failed)} of {len(uris)} images could not be read; the others are in {out}"])
        )
    return done


def _images(uri: str) -> list[str]:
    """The image, or those of the folder. Raises UserError when there is none."""
    found = [e.name for e in storage.walk(uri) if PurePosixPath(e.name).suffix.lower() in IMAGE_SUFFIXES]
    if found:
        return [storage.join(uri, name) for name in found]
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such image or folder")
    if storage.is_local(uri) and Path(uri.removeprefix("file://")).is_dir():
        raise UserError(f"{uri}: this folder holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [uri]


def _place(uri: str) -> str:
    """What two URIs of one file have in common."""
    return str(Path(uri.removeprefix("file://")).expanduser().resolve()) if storage.is_local(uri) else uri


def _predict_file(trained: Trained, uri: str, mask: str, drawn: str, max_megapixels: int) -> dict[str, Any]:
    image = _image(uri, max_megapixels)
    classes = classify(trained, image)
    storage.write(mask, figures.png(figures.index_mask(classes, trained.labels)))
    storage.write(drawn, figures.png(figures.overlay(image, classes, trained.labels)))
    counts = np.bincount(classes.ravel(), minlength=trained.labels.num_classes)
    shares = {n: float(c / classes.size) for n, c in zip(trained.labels.names, counts)}
    return {"image": uri, "mask": mask, "overlay": drawn, "shares": shares}


def _image(uri: str, max_megapixels: int) -> np.ndarray:
    """uint8 (H, W, 3) pixels, upright. Raises DataError when they cannot be read, or are too many."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit, with a remedy, stands before the decode
    with open_picture(storage.read(uri), uri, max_megapixels * 10**6) as opened:
        check_range(opened, uri)
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
