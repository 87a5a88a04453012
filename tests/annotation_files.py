"""Annotation files of labelling tools, drawn small: random images, COCO's JSON, and what `prepare` makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import prepare, read_back
from PIL import Image

from segdist.data import index
from segdist.errors import DataError, LabelError

SIZE = (12, 16)  # height, width


def samples_of(summary: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """sample_id -> (RGB image, raw mask) of everything that was prepared."""
    splits = index.load(summary["uri"]).splits
    return {name: pixels for split in splits for name, pixels in read_back(summary["uri"], split).items()}


def masks_of(summary: dict[str, Any]) -> dict[str, np.ndarray]:
    return {sample_id: mask for sample_id, (_, mask) in samples_of(summary).items()}


def noise(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def far_inside_and_outside(points: list[tuple[float, float]], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(inside, outside): pixels whose centre lies in the polygon, or out of it, and 1.5 px or more from its outline.

    By the winding angle that the outline sweeps around each centre: nothing of this is in the code under test.
    """
    inside, outside = np.zeros(size, bool), np.zeros(size, bool)
    edges = list(zip(points, points[1:] + points[:1]))
    for y, x in np.ndindex(*size):
        cx, cy = x + 0.5, y + 0.5
        angle, nearest = 0.0, math.inf
        for (x0, y0), (x1, y1) in edges:
            a, b = complex(x0 - cx, y0 - cy), complex(x1 - cx, y1 - cy)
            angle += math.atan2((a.conjugate() * b).imag, (a.conjugate() * b).real) if a and b else 0.0
            d = b - a
            t = min(1.0, max(0.0, -(a.real * d.real + a.imag * d.imag) / (abs(d) ** 2 or 1.0)))
            nearest = min(nearest, abs(a + t * d))
        if nearest >= 1.5:
            (inside if abs(angle) > math.pi else outside)[y, x] = True
    return inside, outside


def prepared(source: Path, layout: str, **said: Any) -> dict[str, Any]:
    return prepare(str(source), f"{source}-out", layout, overwrite=True, **said)


def refused(source: Path, layout: str, **said: Any) -> str:
    """The message for preparing the source, and proof that nothing counts as prepared."""
    with pytest.raises((DataError, LabelError)) as error:
        prepare(str(source), f"{source}-refused", layout, **said)
    assert not Path(f"{source}-refused", "index.json").exists()
    return str(error.value)


# -- COCO's JSON ---

CAT, DOG, SKY = {"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 200, "name": "sky"}


def images_in(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(folder / name)


def entry(number: int, file_name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]} | more


def note(image: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    """An annotation with an outline; boxes and areas of a kind that nothing may rely on."""
    note.count += 1  # type: ignore[attr-defined]
    outline = {"id": note.count, "image_id": image, "category_id": category, "segmentation": segmentation}  # type: ignore[attr-defined]
    return outline | {"bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0} | more


note.count = 0  # type: ignore[attr-defined]


def rect(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    """Whole corners: exactly the pixels [y0:y1, x0:x1]."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """The uncompressed RLE of a mask, written down here."""
    flat, counts, value, length = mask.T.ravel(), [], False, 0
    for pixel in flat:
        if pixel != value:
            counts.append(length)
            value, length = bool(pixel), 0
        length += 1
    return {"size": list(mask.shape), "counts": [*counts, length]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's own compressed RLE."""
    from pycocotools import mask as api

    rle = api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def coco(path: Path, images: list[Any], notes: list[Any], categories: list[Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"images": images, "annotations": notes, "categories": categories} | more
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def instances(folder: Path, *notes: dict[str, Any], categories: Any = (CAT, DOG), **more: Any) -> Path:
    """Two sets, train2017 with images a (of `notes`) and b, val2017 with c."""
    images_in(folder / "train2017", "a.jpg", "b.jpg")
    images_in(folder / "val2017", "c.jpg")
    where = folder / "annotations"
    images = [entry(1, "a.jpg", **more), entry(2, "b.jpg")]
    coco(where / "instances_train2017.json", images, list(notes), list(categories))
    coco(where / "instances_val2017.json", [entry(3, "c.jpg")], [note(3, 18, rect(0, 0, 2, 2))], list(categories))
    return folder


def panoptic(folder: Path, ids: np.ndarray, segments: list[dict[str, Any]], beside: str = "annotations") -> Path:
    """A panoptic set of two images, a with `ids` (H, W) and b all void, and a third for validation."""
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)
    black = np.zeros((*SIZE, 3), np.uint8)
    categories = [CAT | {"color": [1, 2, 3], "isthing": 1}, SKY | {"color": [70, 130, 180], "isthing": 0}]
    for name, stems in (("train2017", "ab"), ("val2017", "c")):
        images_in(folder / "images" / name, *(f"{s}.jpg" for s in stems))
        where = folder / beside / f"panoptic_{name}"
        where.mkdir(parents=True, exist_ok=True)
        notes = []
        for s in stems:
            Image.fromarray(colors if s == "a" else black).save(where / f"{s}.png")
            info = segments if s == "a" else []
            notes.append({"image_id": ord(s), "file_name": f"{s}.png", "segments_info": info})
        images = [entry(ord(s), f"{s}.jpg") for s in stems]
        info = {"url": "http://cocodataset.org"}
        coco(folder / "annotations" / f"panoptic_{name}.json", images, notes, categories, info=info)
    return folder
