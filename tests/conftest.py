"""Shared pieces: a small drawn data set, folders in foreign layouts, and configs of small fast runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches out
os.environ.setdefault("OMP_NUM_THREADS", "1")  # bits are compared

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "demo"))

import streets

from segdist import config
from segdist.config import Config
from segdist.data import codec, index
from segdist.data.importers.layout import ImportOptions
from segdist.data.prepare import Declared
from segdist.data.prepare import prepare as segdist_prepare
from segdist.data.source import Source

SEGFORMER = {"name": "segformer", "size": "tiny", "dropout": 0.1, "drop_path": 0.3}
UNET = {"name": "unet", "encoder": "resnet18"}


def tree(data: str, run: str, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A small run as a plain tree; sections are merged into it."""
    base: dict[str, Any] = {
        "run": {"uri": run},
        "data": {"uri": data, "crop_size": [32, 48], "scale_range": [0.75, 1.5]},
        "model": SEGFORMER,
        "train": {"num_steps": 4, "global_batch_size": 4, "micro_batch_size": 2, "seed": 3},
        "optim": {"lr": 1e-3, "head_lr_factor": 2.0, "warmup_steps": 1, "clip_grad_norm": 1.0},
        "eval": {"every_steps": 2, "batch_size": 3},
        "checkpoint": {"every_steps": 1},
        "scale": {"device": "cpu", "cpu_threads": 1},
        "io": {"loader_threads": 2, "fetch_threads": 2},
        "log": {"every_steps": 1},
    }
    for name, fields in sections.items():
        base[name] = fields if name == "model" else {**base.get(name, {}), **fields}
    return base


def prepare(
    source: str, dest: str, layout: str = "folder", overwrite: bool = False, max_megapixels: int = 200, **said: Any
) -> dict[str, Any]:
    """`segdist prepare`, with what a person says as keywords of Declared and Ask."""
    asked = {k: said.pop(k) for k in list(said) if k in ImportOptions.__dataclass_fields__}
    return segdist_prepare(source, dest, layout, Declared(**said), ImportOptions(**asked), overwrite, max_megapixels)


@pytest.fixture(scope="session")
def street_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 drawn scenes of 48x32 px; the masks of four of them are almost or wholly void."""
    folder = tmp_path_factory.mktemp("streets")
    streets.draw_folder(folder, 20, 48, 32, seed=1)
    for i, share in enumerate((1.0, 0.97, 0.5, 0.9)):
        path = folder / "masks" / f"{i:04d}.png"
        mask = np.array(Image.open(path))
        mask[: int(32 * share)] = 255
        Image.fromarray(mask).save(path)
    return folder


@pytest.fixture(scope="session")
def street_data(street_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, prepared: 15 to train on, in row groups of 4, 4, 4 and 3; 5 to validate."""
    root = tmp_path_factory.mktemp("prepared")
    for kind in ("images", "masks"):
        for i, path in enumerate(sorted((street_folder / kind).iterdir())):
            place = root / "source" / ("train" if i < 15 else "val") / kind
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segdist.data.write.rows_per_group", lambda largest, num, shuffled: 4)
        prepare(str(root / "source"), str(root / "streets"), names=str(street_folder / "names.txt"))
    return str(root / "streets")


@pytest.fixture
def make_config(street_data: str, tmp_path: Path) -> Callable[..., Config]:
    """make_config(section={...}) -> the config of a small run below tmp_path."""

    def make(**sections: dict[str, Any]) -> Config:
        return config.from_tree(tree(street_data, str(tmp_path / "run"), **sections), "test")

    return make


def write_pair(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, split: str = "") -> None:
    """One image and mask in the `folder` layout."""
    for kind, pixels in (("images", image), ("masks", mask)):
        path = folder / split / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def plain_folder(
    folder: Path, num: int = 6, values: tuple[int, ...] = (0, 1, 2, 255), size: tuple[int, int] = (8, 12)
) -> Path:
    """A valid folder of `num` random pairs whose masks hold `values`."""
    rng = np.random.default_rng(0)
    for i in range(num):
        mask = rng.choice(np.array(values, np.uint8), size)
        mask[0, : len(values)] = values
        write_pair(folder, f"p{i}", rng.integers(0, 256, (*size, 3), dtype=np.uint8), mask)
    return folder


def read_back(uri: str, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """sample_id -> (RGB image, raw mask) of everything in a split."""
    loaded = index.load(uri)
    source = Source(uri, loaded, split)
    found = {}
    for g in range(len(source.sizes)):
        group = source.fetch(g)
        for row in range(group.num_rows):
            s = group.sample(row)
            found[s.sample_id] = (
                codec.decode_image(s.image).permute(1, 2, 0).numpy(),
                codec.decode_mask(s.mask, s.mask_codec, s.height, s.width),
            )
    return found
