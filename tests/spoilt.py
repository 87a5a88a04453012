"""How to spoil a good folder, and what may follow: cases are collected in CASES by the modules spoilt_*, for test_fuzz_*."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from segdist.errors import UserError

T = TypeVar("T")

H, W = 10, 14
rng = np.random.default_rng(7)
MASKS = {f"p{i}": rng.choice(np.array([0, 1, 2, 255], np.uint8), (H, W)) for i in range(4)}
SMALL = MASKS["p0"] % 2  # 0 and 1
NAMES = "a,b,c"


@dataclass
class May:
    """What may follow: with `said` a refusal that holds these words, with `masks` success with these raw values."""

    said: tuple[str, ...] | None = None
    masks: dict[str, np.ndarray] | None = None
    classes: list[str] | None = None  # names, where it is success
    declared: dict[str, object] = field(default_factory=lambda: {"names": NAMES})


Spoil = Callable[[Path], May]
CASES: dict[str, Spoil] = {}


def case(name: str, spoil: Spoil) -> None:
    assert name not in CASES, name
    CASES[name] = spoil


def refused(*said: str, **declared: object) -> May:
    return May(said, declared={"names": NAMES} | declared)


def kept(masks: dict[str, np.ndarray] | None = None, classes: list[str] | None = None, **declared: object) -> May:
    """Success, with the good masks but those that are given."""
    return May(None, MASKS | (masks or {}), classes, {"names": NAMES} | declared)


def either(*said: str) -> May:
    return May(said, MASKS)


def without(*names: str) -> May:
    """Success with fewer samples."""
    return May(None, {k: v for k, v in MASKS.items() if k not in names})


def puts(path: str, data: bytes, may: May) -> Spoil:
    """A case that replaces or adds one file."""

    def spoil(folder: Path) -> May:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        return may

    return spoil


def as_mask(data: bytes, mask: np.ndarray | None, *said: str, **declared: object) -> Spoil:
    """masks/p0.png holds `data`, which means `mask`, or is refused."""
    return puts(
        "masks/p0.png", data, refused("p0.png", *said, **declared) if mask is None else kept({"p0": mask}, **declared)
    )


def draw_good(folder: Path) -> Path:
    """images/ and masks/ of four pairs; two images are JPEG, two PNG."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for i, (name, mask) in enumerate(MASKS.items()):
        image = np.random.default_rng(i).integers(0, 256, (H, W, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.{'jpg' if i < 2 else 'png'}")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    return folder


def attempt(work: Callable[[], T]) -> tuple[str, T | None]:
    """(message of a refusal, None) or ("", what came out)."""
    try:
        return "", work()
    except UserError as error:
        return str(error), None
