"""Shared fixtures: a small drawn dataset, folders in other layouts, and configs of small, fast runs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test uses the internet
os.environ.setdefault("OMP_NUM_THREADS", "1")  # some tests compare bits
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background; commands would inherit this
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from PIL import Image

pytest_plugins = ["balance", "leaks", "long_tests", "spending"]
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "demo"))

import balance
import ray_head
import streets
from ray_head import Head

from segdist import config
from segdist.config import Config
from segdist.data import codec, index
from segdist.data.importers.layout import ImportOptions
from segdist.data.label_options import LabelOptions
from segdist.data.prepare import prepare as segdist_prepare
from segdist.data.source import Source

SEGFORMER = {"name": "segformer", "size": "tiny", "dropout": 0.1, "drop_path": 0.3}
UNET = {"name": "unet", "encoder": "tu-test_resnet", "options": {"decoder_channels": [32, 16, 16, 8, 8]}}  # 0.5 M


def tree(data: str, run: str, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a small run as a plain tree, with these sections merged into it."""
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
    """`segdist prepare`, with what a person says as keywords of LabelOptions and ImportOptions."""
    asked = {k: said.pop(k) for k in list(said) if k in ImportOptions.__dataclass_fields__}
    return segdist_prepare(
        source, dest, layout, LabelOptions(**said), ImportOptions(**asked), overwrite, max_megapixels
    )


@pytest.fixture(scope="session")
def street_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 drawn scenes of 48x32 pixels. Four of them have masks that are mostly or entirely void."""
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
    """The same scenes, prepared: 15 for training, in row groups of 4, 4, 4 and 3, and 5 for validation."""
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


@pytest.fixture(autouse=True)
def _forked_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify exports in a forked process without segdist instead of a cold one."""
    proof = sys.modules.get("segdist.publish.export.verification")
    if proof is not None:
        import forks

        monkeypatch.setattr(proof, "subprocess", forks.proofs())


@pytest.fixture(scope="module")
def head() -> Head:
    """A Ray head shared by all tests that do not stop it or drain its node."""
    return ray_head.shared()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path.name not in balance.ON_A_HEAD:
        ray_head.stop_shared()  # an idle head takes a tenth of two cores


def pytest_sessionfinish() -> None:
    ray_head.stop_shared()


@pytest.fixture
def make_config(street_data: str, tmp_path: Path) -> Callable[..., Config]:
    """Return a function: make_config(section={...}) returns the config of a small run in tmp_path."""

    def make(**sections: dict[str, Any]) -> Config:
        return config.from_tree(tree(street_data, str(tmp_path / "run"), **sections), "test")

    return make


def write_pair(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, split: str = "") -> None:
    """Write one image and its mask in the `folder` layout."""
    for kind, pixels in (("images", image), ("masks", mask)):
        path = folder / split / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def plain_folder(
    folder: Path, num: int = 6, values: tuple[int, ...] = (0, 1, 2, 255), size: tuple[int, int] = (8, 12)
) -> Path:
    """Write a valid folder of `num` random pairs whose masks contain these values."""
    rng = np.random.default_rng(0)
    for i in range(num):
        mask = rng.choice(np.array(values, np.uint8), size)
        mask[0, : len(values)] = values
        write_pair(folder, f"p{i}", rng.integers(0, 256, (*size, 3), dtype=np.uint8), mask)
    return folder


def read_back(uri: str, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return sample_id -> (RGB image, raw mask) of all samples in a split."""
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
