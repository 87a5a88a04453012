"""Pictures for people: index masks with a palette, and overlays that need no explanation."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdist.data.labels import Labels
from segdist.ops import IGNORE

_OPACITY = 0.55
_BAND_ROWS = 256  # blended at a time: it takes some sixty bytes a pixel


def index_mask(classes: np.ndarray, labels: Labels) -> Image.Image:
    """Palette picture of uint8 (H, W) classes: its values are the class numbers, its colours the contract's."""
    image = Image.fromarray(classes)
    image.putpalette(labels.palette().tobytes())  # turns it into mode P; the values stay
    return image


def overlay(image: np.ndarray, classes: np.ndarray, labels: Labels) -> Image.Image:
    """The uint8 (H, W, 3) image under its uint8 (H, W) classes, borders drawn, and beside it the classes it holds."""
    blend = np.empty_like(image)
    for first in range(0, len(image), _BAND_ROWS):
        band = slice(first, first + _BAND_ROWS)
        blend[band] = _blend(image[band], classes[band], labels)
    blend[_borders(classes)] = 255
    return _with_legend(Image.fromarray(blend), classes, labels)


def _blend(image: np.ndarray, classes: np.ndarray, labels: Labels) -> np.ndarray:
    """The colours of the classes over the image in grey, so that they look as they do in the legend; void as it is."""
    grey = image.mean(2, keepdims=True)
    mixed = (1 - _OPACITY) * grey + _OPACITY * labels.palette()[classes]
    return np.where((classes == IGNORE)[..., None], image, mixed).round().astype(np.uint8)


def _borders(classes: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels whose lower or right neighbour is of another class."""
    edge = np.zeros(classes.shape, bool)
    edge[:-1] |= classes[:-1] != classes[1:]
    edge[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    return edge


def _with_legend(image: Image.Image, classes: np.ndarray, labels: Labels) -> Image.Image:
    """The picture, enlarged until its legend can be read, with the classes in it, largest first, at its right."""
    zoom = max(1, round(480 / image.height))
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    counts = np.bincount(classes.ravel(), minlength=256)[: labels.num_classes]
    present = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    size = max(12, image.height // 24)
    room = (image.height - size) * 2 // (3 * size)  # lines
    font = ImageFont.load_default(size)
    lines = [(k, f"{labels.names[k]}  {_share(counts[k] / classes.size)}") for k in present[:room]]
    if len(present) > room:
        lines[-1] = (present[room - 1], f"and {len(present) - room} smaller ones")
    width = max((int(font.getlength(text)) for _, text in lines), default=0) + 3 * size
    canvas = Image.new("RGB", (image.width + width, image.height), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (k, text) in enumerate(lines):
        left, top = image.width + size // 2, size // 2 + i * (size * 3 // 2)
        draw.rectangle([left, top, left + size, top + size], fill=labels.classes[k].color, outline="black")
        draw.text((left + size * 3 // 2, top - size // 8), text, fill="black", font=font)
    return canvas


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"
