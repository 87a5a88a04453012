"""Classes for pictures that have no mask: an index mask and an overlay for each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from segdist import figures, log, storage
from segdist.checkpoint import Trained
from segdist.data.augment import model_size, resize_image
from segdist.data.importers.files import IMAGE_SUFFIXES, check_range
from segdist.errors import DataError, UserError
from segdist.models.segmenter import infer
from segdist.ops import resize

_ENDS = (".png", "_overlay.png")


def classify(trained: Trained, image: np.ndarray, device: torch.device) -> np.ndarray:
    """uint8 (H, W) classes of a uint8 (H, W, 3) image, at its own size, as evaluation would see it."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    size = model_size(trained.cfg.data.image_size, *image.shape[:2])
    logits = infer(trained.model, resize_image(pixels, size)[None].to(device))
    return resize.predict(logits, image.shape[:2], trained.model.traits.align_corners)[0].cpu().numpy()


def predict_files(trained: Trained, images: Sequence[str], out: str, device: torch.device) -> list[dict[str, Any]]:
    """Writes OUT/NAME.png (index mask) and OUT/NAME_overlay.png for every image; where they went.

    `images` are URIs of pictures, or of folders whose pictures are all meant. Raises UserError before the first one when
    something would be overwritten, another picture's mask or a picture itself. A picture that cannot be read does not
    stop the others: UserError names such pictures at the end.
    """
    uris = [uri for given in images for uri in _pictures(given)]
    targets = [tuple(storage.join(out, f"{PurePosixPath(uri).stem}{end}") for end in _ENDS) for uri in uris]
    taken = {_place(uri) for uri in uris}
    for target in (t for pair in targets for t in pair):
        if _place(target) in taken:
            raise UserError(f"{target} would overwrite a picture, or the result of another one; give another --out")
        taken.add(_place(target))
    storage.check_writable(out)
    done, failed = [], []
    progress, advance = log.bar("predicting", len(uris))
    with progress:
        for uri, (mask, drawn) in zip(uris, targets):
            try:
                done.append(_predict_file(trained, uri, mask, drawn, device))
            except DataError as error:
                failed.append(str(error))
            advance(1)
    if failed:
        raise UserError(
            "\n".join([*failed, f"{len(failed)} of {len(uris)} images could not be read; the others are in {out}"])
        )
    return done


def _pictures(uri: str) -> list[str]:
    """The picture, or those of the folder. Raises UserError when there is none."""
    found = [e.name for e in storage.walk(uri) if PurePosixPath(e.name).suffix.lower() in IMAGE_SUFFIXES]
    if found:
        return [storage.join(uri, name) for name in found]
    if not storage.exists(uri):
        raise UserError(f"{uri}: no such image or folder")
    if storage.is_local(uri) and Path(uri.removeprefix("file://")).is_dir():
        raise UserError(f"{uri}: this folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [uri]


def _place(uri: str) -> str:
    """What two URIs of one file have in common."""
    return str(Path(uri.removeprefix("file://")).expanduser().resolve()) if storage.is_local(uri) else uri


def _predict_file(trained: Trained, uri: str, mask: str, drawn: str, device: torch.device) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(storage.read(uri))) as opened:
            check_range(opened, uri)
            image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{uri}: not an image that can be read ({error})") from None
    classes = classify(trained, image, device)
    storage.write(mask, _png(figures.index_mask(classes, trained.labels)))
    storage.write(drawn, _png(figures.overlay(image, classes, trained.labels)))
    counts = np.bincount(classes.ravel(), minlength=trained.labels.num_classes)
    shares = {n: float(c / classes.size) for n, c in zip(trained.labels.names, counts)}
    return {"image": uri, "mask": mask, "overlay": drawn, "shares": shares}


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
