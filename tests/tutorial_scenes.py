"""Scenes that a small model can learn, in the original layouts of the tutorials' data: streets, and pets of our own breed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import streets
from PIL import Image, ImageDraw, ImageFilter
from web_server import Answer, Web

from segdist.data.presets import CONTRACTS, voc_colors

Size = tuple[int, int]  # width, height
_ADE = {streets.SKY: 3, streets.BUILDING: 2, streets.ROAD: 7, streets.PAVEMENT: 12, streets.TREE: 5, streets.CAR: 21,
        streets.PERSON: 13}  # fmt: skip
_VOC = {streets.CAR: 7, streets.PERSON: 15, streets.VOID: 255}  # the rest is background
_SIDEWALK = {  # by class; Segments.ai's 0 is what nobody labelled
    streets.SKY: "sky", streets.BUILDING: "construction-building", streets.ROAD: "flat-road",
    streets.PAVEMENT: "flat-sidewalk", streets.TREE: "nature-vegetation", streets.CAR: "vehicle-car",
    streets.PERSON: "human-person",
}  # fmt: skip


def scenes(num: int, size: Size, seed: int) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """(image, uint8 (H, W) mask of streets.NAMES) of street scenes."""
    for i in range(num):
        image, mask = streets.draw(*size, np.random.default_rng([seed, i]))
        yield image, np.asarray(mask)


def mapped(mask: np.ndarray, values: dict[int, int]) -> np.ndarray:
    """The mask with other values; what `values` does not name is 0."""
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    return table[mask]


def save(image: Image.Image, path: Path, **how: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)


def draw_ade20k(root: Path, num: int, size: Size) -> None:
    """ADEChallengeData2016: `num` images to train on and a quarter of that to validate; masks count from 1, 0 is void."""
    for split, short, many, seed in (("training", "train", num, 1), ("validation", "val", num // 4, 2)):
        for i, (image, mask) in enumerate(scenes(many, size, seed), 1):
            save(image, root / "images" / split / f"ADE_{short}_{i:08d}.jpg", quality=92)
            save(Image.fromarray(mapped(mask, _ADE)), root / "annotations" / split / f"ADE_{short}_{i:08d}.png")


def draw_voc(root: Path, num: int, size: Size) -> None:
    """VOC2007: cars and persons on background, 255 around the cars, as palette PNGs; train, val and test."""
    palette = [channel for color in voc_colors(256) for channel in color]
    lists: dict[str, list[str]] = {}
    for split, many, seed in (("train", num, 3), ("val", num // 4, 4), ("test", num // 4, 5)):
        lists[split] = [f"{seed:03d}{i:03d}" for i in range(many)]
        for name, (image, mask) in zip(lists[split], scenes(many, size, seed)):
            save(image, root / "JPEGImages" / f"{name}.jpg", quality=92)
            classes = Image.fromarray(mapped(mask, _VOC))
            classes.putpalette(palette)
            save(classes, root / "SegmentationClass" / f"{name}.png")
    for split, names in (lists | {"trainval": sorted(lists["train"] + lists["val"])}).items():
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def draw_release(path: Path, web: Web, num: int, size: Size) -> None:
    """A release of Segments.ai whose images and bitmaps `web` serves."""
    colors = ("sky", "building", "road", "sidewalk", "vegetation", "car", "person")
    looks = {c.name: list(c.color) for c in CONTRACTS["cityscapes"].classes}
    categories = [{"id": k + 1, "name": name, "color": looks[colors[k]]} for k, name in _SIDEWALK.items()]
    annotations = [{"id": 10 + k, "category_id": k + 1} for k in _SIDEWALK]
    samples = []
    for i, (image, mask) in enumerate(scenes(num, size, 6)):
        ids = mapped(mask, {k: 10 + k for k in _SIDEWALK})
        bitmap = np.dstack([ids, np.zeros_like(ids), np.zeros_like(ids), np.full_like(ids, 255)])
        for kind, picture, suffix in (("img", image, "JPEG"), ("map", Image.fromarray(bitmap), "PNG")):
            data = io.BytesIO()
            picture.save(data, suffix)
            web.answers[f"/{kind}/{i}"] = [Answer(data.getvalue())]
        label = {"annotations": annotations, "segmentation_bitmap": {"url": f"{web.url}/map/{i}"}}
        samples.append({
            "name": f"walk_{i:04d}.jpg",
            "attributes": {"image": {"url": f"{web.url}/img/{i}"}},
            "metadata": {},
            "labels": {"ground-truth": {"label_status": "LABELED", "attributes": label}},
        })  # fmt: skip
    data_set = {
        "name": "sidewalk",
        "owner": "jane",
        "task_type": "segmentation-bitmap",
        "task_attributes": {"categories": categories},
        "labelsets": [{"name": "ground-truth"}],
        "samples": samples,
    }
    tree = {"name": "v1.0", "created_at": "2026-01-02", "dataset": data_set}
    path.write_text(json.dumps(tree), encoding="utf-8")


def draw_pets(root: Path, num: int, size: Size) -> None:
    """The Oxford-IIIT Pets: trimaps of 1 pet, 2 background, 3 border; `num` in trainval and a quarter of that in test."""
    for split, many, seed in (("trainval", num, 7), ("test", num // 4, 8)):
        lines = []
        for i in range(many):
            name = f"{('Ginger', 'shaggy')[i % 2]}_{seed}{i:03d}"
            image, trimap = pet(size, np.random.default_rng([seed, i]))
            save(image, root / "images" / f"{name}.jpg", quality=92)
            save(trimap, root / "annotations" / "trimaps" / f"{name}.png")
            lines.append(f"{name} 1 1 1\n")
        (root / "annotations" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def pet(size: Size, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """(RGB image, L trimap) of an animal that sits in a room, its border as wide as in the original, about."""
    width, height = size
    room = [tuple(rng.integers(120, 230, 3).tolist()) for _ in range(2)]
    image, mask = Image.new("RGB", size, room[0]), Image.new("L", size, 0)
    on_image, on_mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    on_image.rectangle([0, height * rng.uniform(0.55, 0.8), width, height], fill=room[1])
    for _ in range(3):  # furniture
        x, y = rng.uniform(0, width), rng.uniform(0, height * 0.7)
        box = [x, y, x + width * rng.uniform(0.1, 0.3), y + height * rng.uniform(0.1, 0.3)]
        on_image.rectangle(box, fill=tuple(rng.integers(60, 220, 3).tolist()))
    fur = np.array([(196, 120, 50), (70, 60, 55), (225, 215, 200), (120, 85, 60)])[rng.integers(4)]
    unit, x, y = min(size) * rng.uniform(0.2, 0.32), width * rng.uniform(0.35, 0.65), height * rng.uniform(0.55, 0.7)

    def part(kind: str, where: list[float] | list[tuple[float, float]], shade: float = 1.0) -> None:
        getattr(on_image, kind)(where, fill=tuple(np.clip(fur * shade, 0, 255).astype(int).tolist()))
        getattr(on_mask, kind)(where, fill=1)

    side = rng.choice([-1, 1])
    tail = [(x + side * unit * a, y + unit * b) for a, b in ((0.7, 0.9), (1.7, 0.2), (1.85, 0.4), (0.9, 1.2))]
    part("polygon", tail, 0.8)
    part("ellipse", [x - unit, y - unit * 0.8, x + unit, y + unit * 1.3])
    for ear in (-1, 1):
        top = y - unit * 1.25
        part(
            "polygon", [(x + ear * unit * a, top + unit * b) for a, b in ((0.1, -0.4), (0.7, -0.95), (0.65, 0.1))], 0.7
        )
        part(
            "ellipse",
            [x + ear * unit * 0.5 - unit * 0.3, y + unit, x + ear * unit * 0.5 + unit * 0.3, y + unit * 1.5],
            0.9,
        )
    part("ellipse", [x - unit * 0.7, y - unit * 1.8, x + unit * 0.7, y - unit * 0.5], 1.1)
    for eye in (-1, 1):
        ex, ey, r = x + eye * unit * 0.28, y - unit * 1.25, unit * 0.1
        on_image.ellipse([ex - r, ey - r, ex + r, ey + r], fill=(20, 40, 20))
    on_image.ellipse([x - unit * 0.1, y - unit, x + unit * 0.1, y - unit * 0.85], fill=(60, 30, 30))
    reach = 2 * (max(2, round(min(size) * 0.04)) // 2) + 1
    inner, outer = (np.asarray(mask.filter(kind(reach))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    trimap = np.where(inner == 1, 1, np.where(outer == 1, 3, 2)).astype(np.uint8)
    noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float32) + rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), Image.fromarray(trimap)
