"""Generate synthetic street scenes with exact masks: thin and thick objects that occlude each other, and void regions.

`python demo/streets.py FOLDER --num 200` writes FOLDER/images, FOLDER/masks and FOLDER/names.txt.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

NAMES = ["sky", "building", "road", "pavement", "tree", "car", "person"]
SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON = range(7)
VOID = 255
Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


class Scene:
    """An image and its mask, drawn together from back to front."""

    def __init__(self, width: int, height: int, rng: np.random.Generator) -> None:
        self.width, self.height, self.rng = width, height, rng
        self.image = Image.new("RGB", (width, height))
        self.mask = Image.new("L", (width, height), VOID)
        self._on_image, self._on_mask = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def shape(self, kind: str, where: object, color: Color, value: int | None, outlined: bool = False) -> None:
        """Draw a polygon, rectangle or ellipse. value None draws a detail on the image that leaves the mask unchanged."""
        getattr(self._on_image, kind)(where, fill=color)
        if value is not None:
            getattr(self._on_mask, kind)(where, fill=value, **({"outline": VOID} if outlined else {}))

    def color(self, *around: int, spread: int = 25) -> Color:
        r, g, b = (int(np.clip(c + self.rng.integers(-spread, spread + 1), 0, 255)) for c in around)
        return r, g, b

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))


def draw(width: int, height: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return (RGB image, L mask with values 0..6 and 255)."""
    scene = Scene(width, height, rng)
    horizon = height * scene.between(0.42, 0.55)
    scene.shape("rectangle", (0, 0, width, height), scene.color(150, 190, 230), SKY)
    for _ in range(rng.integers(0, 4)):
        x, y = scene.between(0, width), scene.between(0, horizon * 0.5)
        scene.shape("ellipse", (x, y, x + width * 0.2, y + height * 0.06), scene.color(235, 235, 240, spread=10), None)
    _buildings(scene, horizon)
    _ground(scene, horizon)
    things = [_tree] * int(rng.integers(1, 4)) + [_car] * int(rng.integers(2, 5)) + [_person] * int(rng.integers(2, 5))
    depths = np.sort(rng.uniform(0.12, 0.9, len(things)))  # far objects first: nearer ones occlude them
    for i, depth in zip(rng.permutation(len(things)), depths):
        things[i](scene, horizon, float(depth))
    hood = height * scene.between(0.93, 0.97)
    scene.shape("ellipse", (-width * 0.1, hood, width * 1.1, height * 1.3), scene.color(40, 42, 48, spread=8), VOID)
    return _photograph(scene), scene.mask


def _buildings(scene: Scene, horizon: float) -> None:
    x = -scene.between(0, scene.width * 0.1)
    while x < scene.width:
        w, top = scene.width * scene.between(0.12, 0.28), horizon * scene.between(0.1, 0.75)
        if scene.rng.random() < 0.85:
            wall = scene.color(150, 110, 95, spread=35)
            scene.shape("rectangle", (x, top, x + w, horizon + 2), wall, BUILDING)
            for wx in np.arange(x + w * 0.12, x + w * 0.85, w * 0.26):
                for wy in np.arange(top + 4, horizon - 6, max(8.0, horizon * 0.14)):
                    scene.shape("rectangle", (wx, wy, wx + w * 0.12, wy + 4), scene.color(70, 80, 100), None)
        x += w


def _ground(scene: Scene, horizon: float) -> None:
    w, h = scene.width, scene.height
    scene.shape("rectangle", (0, horizon, w, h), scene.color(175, 165, 160, spread=15), PAVEMENT)
    middle, near, far = w * scene.between(0.4, 0.6), w * scene.between(0.42, 0.55), w * scene.between(0.05, 0.09)
    road = [(middle - far, horizon), (middle + far, horizon), (middle + near, h), (middle - near, h)]
    scene.shape("polygon", road, scene.color(85, 85, 92, spread=12), ROAD)
    for t in np.arange(0.1, 1, 0.2):
        y0, y1 = horizon + (h - horizon) * t, horizon + (h - horizon) * (t + 0.07)
        scene.shape(
            "polygon",
            [(middle - t, y0), (middle + t, y0), (middle + 2 * t, y1), (middle - 2 * t, y1)],
            (225, 225, 220),
            None,
        )


def _foot(scene: Scene, horizon: float, depth: float, sides: bool) -> tuple[float, float, float]:
    """Return (x, y, unit): where an object stands, on the road or beside it, and its size, smaller when farther away."""
    y = horizon + (scene.height - horizon) * depth
    off = scene.between(0.28, 0.48) if sides else scene.between(0, 0.24)
    x = scene.width * (0.5 + off * (0.35 + 0.65 * depth) * scene.rng.choice([-1, 1]))
    return x, y, scene.height * (0.10 + 0.30 * depth)


def _tree(scene: Scene, horizon: float, depth: float) -> None:
    x, y, unit = _foot(scene, horizon, depth, sides=True)
    tall, wide = unit * scene.between(1.3, 1.8), unit * scene.between(0.45, 0.65)
    scene.shape("rectangle", (x - unit * 0.08, y - tall * 0.5, x + unit * 0.08, y), scene.color(95, 65, 40), TREE)
    for _ in range(4):
        cx, cy, r = (
            x + scene.between(-0.4, 0.4) * wide,
            y - tall * scene.between(0.55, 0.9),
            wide * scene.between(0.5, 0.8),
        )
        scene.shape("ellipse", (cx - r, cy - r * 0.8, cx + r, cy + r * 0.8), scene.color(55, 115, 50, spread=18), TREE)


def _car(scene: Scene, horizon: float, depth: float) -> None:
    x, y, unit = _foot(scene, horizon, depth, sides=False)
    w, h, paint = unit * 0.8, unit * 0.6, scene.color(*scene.rng.integers(30, 226, 3).tolist())
    scene.shape("rectangle", (x - w * 0.7, y - h, x + w * 0.7, y - h * 0.4), paint, CAR, outlined=True)
    scene.shape("rectangle", (x - w, y - h * 0.6, x + w, y), paint, CAR, outlined=True)
    scene.shape("rectangle", (x - w * 0.55, y - h * 0.92, x + w * 0.55, y - h * 0.62), (40, 50, 65), CAR)
    for side in (-0.85, 0.85):
        scene.shape(
            "ellipse", (x + w * side - h * 0.14, y - h * 0.2, x + w * side + h * 0.14, y + 1), (25, 25, 28), CAR
        )
        scene.shape("rectangle", (x + w * side - 2, y - h * 0.45, x + w * side + 2, y - h * 0.35), (240, 70, 60), None)


def _person(scene: Scene, horizon: float, depth: float) -> None:
    x, y, unit = _foot(scene, horizon, depth, sides=bool(scene.rng.random() < 0.7))
    tall, w = unit * 1.0, unit * 0.19
    coat = scene.color(*scene.rng.integers(20, 236, 3).tolist())
    scene.shape("rectangle", (x - w * 0.8, y - tall * 0.5, x + w * 0.8, y), scene.color(45, 50, 80), PERSON)
    scene.shape("rectangle", (x - w, y - tall * 0.85, x + w, y - tall * 0.4), coat, PERSON)
    scene.shape(
        "ellipse", (x - w * 0.7, y - tall * 1.08, x + w * 0.7, y - tall * 0.8), scene.color(215, 175, 150), PERSON
    )


def _photograph(scene: Scene) -> Image.Image:
    """Return the scene as a camera would record it: slightly blurred, noisy, under varying light."""
    soft = np.asarray(scene.image.filter(ImageFilter.GaussianBlur(0.5)), np.float32)
    light = scene.between(0.75, 1.15) * np.array([scene.between(0.93, 1.07) for _ in range(3)], np.float32)
    noise = scene.rng.normal(0, 6, soft.shape).astype(np.float32)
    return Image.fromarray(np.clip(soft * light + noise, 0, 255).astype(np.uint8))


def draw_folder(folder: Path, num: int, width: int = 192, height: int = 128, seed: int = 0) -> None:
    """Write images/NNNN.jpg, masks/NNNN.png and names.txt."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(num):
        image, mask = draw(width, height, np.random.default_rng([seed, i]))
        image.save(folder / "images" / f"{i:04d}.jpg", quality=92)
        mask.save(folder / "masks" / f"{i:04d}.png")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=200)
    arguments = parser.parse_args()
    draw_folder(arguments.folder, arguments.num)
