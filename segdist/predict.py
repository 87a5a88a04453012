"""Classes for pictures that have no mask: an index mask and an overlay for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from segdist import figures, log
from segdist.checkpoint import Trained
from segdist.data.augment import model_size, resize_image
from segdist.data.importers import check_range
from segdist.errors import DataError, UserError
from segdist.models.segmenter import infer
from segdist.ops import resize


def classify(trained: Trained, image: np.ndarray, device: torch.device) -> np.ndarray:
    """uint8 (H, W) classes of a uint8 (H, W, 3) image, at its own size, as evaluation would see it."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    size = model_size(trained.cfg.data.image_size, *image.shape[:2])
    logits = infer(trained.model, resize_image(pixels, size)[None].to(device))
    return resize.predict(logits, image.shape[:2], trained.model.traits.align_corners)[0].cpu().numpy()


def predict_files(trained: Trained, images: Sequence[str], out: str, device: torch.device) -> list[dict[str, Any]]:
    """Writes OUT/NAME.png (index mask) and OUT/NAME_overlay.png for every image; where they went.

    Raises UserError before the first one when something would be overwritten, another picture's mask or a picture itself.
    A picture that cannot be read does not stop the others: UserError names such pictures at the end.
    """
    paths, folder = [Path(image) for image in images], Path(out)
    if missing := [str(p) for p in paths if not p.is_file()]:
        what = "is a folder; name the pictures in it" if Path(missing[0]).is_dir() else "no such image"
        raise UserError(f"{missing[0]}: {what} ({len(missing)} of {len(paths)} are no files)")
    targets = [(folder / f"{p.stem}.png", folder / f"{p.stem}_overlay.png") for p in paths]
    taken = {p.resolve() for p in paths}
    for pair in targets:
        for target in pair:
            if target.resolve() in taken:
                raise UserError(f"{target} would overwrite a picture, or the result of another one; give another --out")
            taken.add(target.resolve())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made a folder ({error.strerror}); give another place") from None
    done, failed = [], []
    progress, advance = log.bar("predicting", len(paths))
    with progress:
        for path, (mask, drawn) in zip(paths, targets):
            try:
                done.append(_predict_file(trained, path, mask, drawn, device))
            except DataError as error:
                failed.append(str(error))
            advance(1)
    if failed:
        raise UserError(
            "\n".join([*failed, f"{len(failed)} of {len(paths)} images could not be read; the others are in {out}"])
        )
    return done


def _predict_file(trained: Trained, path: Path, mask: Path, drawn: Path, device: torch.device) -> dict[str, Any]:
    try:
        with Image.open(path) as opened:
            check_range(opened, path)
            image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that can be read ({error})") from None
    classes = classify(trained, image, device)
    figures.index_mask(classes, trained.labels).save(mask)
    figures.overlay(image, classes, trained.labels).save(drawn)
    counts = np.bincount(classes.ravel(), minlength=trained.labels.num_classes)
    shares = {n: float(c / classes.size) for n, c in zip(trained.labels.names, counts)}
    return {"image": str(path), "mask": str(mask), "overlay": str(drawn), "shares": shares}
