"""A Hub's folder of drawn scenes, for `hub_server`: data sets of all kinds, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from odd_pictures import written
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    return written(pixels, "PNG")


def scene(i: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1000 + i)
    return rng.integers(0, 256, (8, 12, 3), dtype=np.uint8), rng.integers(0, 4, (8, 12), dtype=np.uint8)


def palette_png(mask: np.ndarray) -> bytes:
    image = Image.fromarray(mask)
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    return written(image, "PNG")


def index_png(i: int) -> bytes:
    return png(scene(i)[1])


def table_of(
    numbers: range,
    image: str = "image",
    mask: str = "mask",
    encode: Callable[[int], bytes] = index_png,
    **more: list[Any],
) -> Any:
    """A data set of scenes, with further columns; `encode` makes the mask's file."""
    import datasets

    images = {image: [png(scene(i)[0]) for i in numbers], mask: [encode(i) for i in numbers]}
    columns = {name: [{"bytes": data, "path": None} for data in found] for name, found in images.items()}
    made = datasets.Dataset.from_dict(columns | more)
    for name in images:
        made = made.cast_column(name, datasets.Image())
    return made


def push(repo: Path, files: dict[str, Any], readme: str = "") -> None:
    """Tables as Parquet, texts as they are."""
    for name, content in files.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str | bytes):
            (repo / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        else:
            content.to_parquet(str(repo / name), batch_size=10)
    if readme:
        (repo / "README.md").write_text(readme, encoding="utf-8")


def draw_hub(root: Path) -> Path:
    """Data sets of all kinds below root/datasets/someone; returns root."""
    data = root / "datasets" / "someone"
    names = [f"scene{i}" for i in range(200)]
    card = "---\nlicense: cc-by-4.0\n---\n# Scenes\n"
    thirds = {
        f"data/train-{k:05d}-of-00003.parquet": table_of(
            range(60 * k, 60 * k + 60), "pixel_values", "label", id=names[60 * k : 60 * k + 60]
        )
        for k in range(3)
    }
    val = {"data/validation-00000-of-00001.parquet": table_of(range(180, 200), "pixel_values", "label", id=names[180:])}
    id2label = json.dumps({"0": "unlabeled", "1": "a", "2": "b", "3": "c"})
    push(data / "scenes", {**thirds, **val, "id2label.json": id2label}, card)
    push(data / "scenes@v2", {"train.parquet": table_of(range(4, 12)), "validation.parquet": table_of(range(4))})
    push(data / "only-train", {"train.parquet": table_of(range(40), id=[7] * 40, scene_category=[1] * 40)})
    import datasets

    bare = table_of(range(6))
    no_masks = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(scene(0)[0]), "path": None}] * 3, "mask": [None] * 3}, features=bare.features
    )
    push(
        data / "partial",
        {"train.parquet": bare, "valid.parquet": table_of(range(6, 8)), "test.parquet": no_masks},
    )
    push(data / "scripted", {"scripted.py": "raise SystemExit('never run')"}, card)
    push(data / "scripted@refs_convert_parquet", {
        "default/train/0000.parquet": table_of(range(6)), "default/validation/0000.parquet": table_of(range(6, 8)),
    })  # fmt: skip
    push(data / "script-alone", {"script-alone.py": "raise SystemExit('never run')"})
    for status in (401, 403):
        push(data / f"gated{status}", {"GATED": str(status), "train.parquet": bare})
    configs = "".join(f"- config_name: {c}\n  data_files: {c}/*.parquet\n" for c in ("city", "country"))
    push(data / "two", {"city/train.parquet": bare, "country/train.parquet": bare}, f"---\nconfigs:\n{configs}---\n")
    push(data / "classes", {"train.parquet": table_of(range(6)).remove_columns("mask")})
    objects = [{"bytes": index_png(i), "path": None} for i in range(6)]
    push(data / "many", {"train.parquet": table_of(range(6), "left", "depth", objects=objects)})
    kinds = {
        "colours": lambda i: png(scene(i)[0]),
        "palette": lambda i: palette_png(scene(i)[1]),
        "bomb": lambda i: png(np.zeros((3000, 3000), np.uint8)),
    }
    for kind, encode in kinds.items():
        push(data / kind, {"train.parquet": table_of(range(6), encode=encode)})
    table_of(range(5)).save_to_disk(str(root / "disk"))
    several = {"train": table_of(range(4)), "validation": table_of(range(4, 7)), "test": table_of(range(7, 9))}
    datasets.DatasetDict(several).save_to_disk(str(root / "disks"))
    hostile = datasets.Dataset.from_dict({
        "image": [{"bytes": None, "path": "/etc/hostname"}] * 6, "mask": [{"bytes": png(scene(0)[1]), "path": None}] * 6
    })  # fmt: skip
    push(data / "hostile", {"train.parquet": hostile})
    lines = ["file_name,mask_file_name"]
    for i in range(6):
        push(data / "files", {f"train/i{i}.png": png(scene(i)[0]), f"train/masks/m{i}.png": png(scene(i)[1])})
        lines.append(f"i{i}.png,masks/m{i}.png")
    push(data / "files", {"train/metadata.csv": "\n".join(lines)})
    push(data / "empty", {"notes.xyz": "nothing"})
    return root
