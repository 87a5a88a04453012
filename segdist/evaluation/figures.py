"""Figures for people: masks with a palette, overlays and curves that need no explanation, confusion matrices."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdist.data.labels import Labels
from segdist.errors import UserError

_OPACITY = 0.55
_THICK_PX = 5  # odd; what is thinner has no border, which would hide it
_RIGHT, _WRONG, _ABSENT, _GREY = (8, 69, 148), (178, 24, 43), (225, 225, 225), (110, 110, 110)
_NAME_PX = 12  # the smallest cell whose row can bear a class name
_NUM_CONFUSIONS, _HEADINGS = 15, 4  # lines beside a confusion matrix
_BAND_ROWS = 256  # blended at a time: it takes some sixty bytes a pixel


def index_mask(classes: np.ndarray, labels: Labels) -> Image.Image:
    """Palette image of uint8 (H, W) classes: its values are the class numbers, its colours the contract's."""
    image = Image.fromarray(classes)
    image.putpalette(labels.palette().tobytes())  # turns it into mode P; the values stay
    return image


def png(image: Image.Image) -> bytes:
    """The image as a PNG file's bytes."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def overlay(image: np.ndarray, classes: np.ndarray, labels: Labels) -> Image.Image:
    """The uint8 (H, W, 3) image under its uint8 (H, W) classes, borders drawn, and beside it a legend.

    The legend has the classes that occur, largest first: one of the contract that is nowhere in the image explains nothing
    that can be seen.
    """
    return _with_legend(Image.fromarray(blended(image, classes, labels)), classes, labels)


def blended(image: np.ndarray, classes: np.ndarray, labels: Labels) -> np.ndarray:
    """The uint8 (H, W, 3) image under its uint8 (H, W) classes, borders drawn."""
    blend = np.empty_like(image)
    for first in range(0, len(image), _BAND_ROWS):
        band = slice(first, first + _BAND_ROWS)
        blend[band] = _blend(image[band], classes[band], labels)
    blend[_borders(classes)] = 255
    return blend


def _blend(image: np.ndarray, classes: np.ndarray, labels: Labels) -> np.ndarray:
    """The colours of the classes over the image in grey, so that they look as they do in the legend; void as it is."""
    grey = image.mean(2, keepdims=True)
    palette = labels.palette()
    plain = (palette == 0).all(1)  # void, and black, which is what backgrounds are given: the image as it is
    mixed = (1 - _OPACITY) * grey + _OPACITY * palette[classes]
    return np.where(plain[classes][..., None], image, mixed).round().astype(np.uint8)


def _borders(classes: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels whose lower or right neighbour is of another class, where neither belongs to something thin."""
    edge, thick = np.zeros(classes.shape, bool), _thick(classes)
    edge[:-1] |= (classes[:-1] != classes[1:]) & thick[:-1] & thick[1:]
    edge[:, :-1] |= (classes[:, :-1] != classes[:, 1:]) & thick[:, :-1] & thick[:, 1:]
    return edge


def _thick(classes: np.ndarray) -> np.ndarray:
    """bool (H, W): pixels in some square of _THICK_PX that is all of one class; beyond the rim, all goes on as it ends."""
    middles = _window(classes, np.minimum) == _window(classes, np.maximum)
    return _window(middles, np.maximum)


def _window(x: np.ndarray, extreme: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """The extreme over the square of _THICK_PX around each pixel of (H, W)."""
    reach = _THICK_PX // 2
    for _ in range(2):  # rows, then columns
        padded = np.pad(x, ((reach, reach), (0, 0)), "edge")
        x = functools.reduce(extreme, (padded[i : i + len(x)] for i in range(_THICK_PX))).T
    return x


def _with_legend(image: Image.Image, classes: np.ndarray, labels: Labels) -> Image.Image:
    """The image, enlarged until its legend can be read, with the classes in it, largest first, at its right."""
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


def confusion(counts: np.ndarray | Sequence[Sequence[int]], names: Sequence[str]) -> Image.Image:
    """The confusion matrix (K, K) of [true class][predicted class] pixels, rows in percent; beside it its largest confusions.

    Right pixels are blue and wrong ones red, by the root of their share, so that 1 % can still be seen; the row of a class
    without pixels is grey. Where there is no room for names, every tenth class bears its number.
    """
    pixels = np.asarray(counts, np.int64)
    num_classes = len(names)
    assert pixels.shape == (num_classes, num_classes) and num_classes >= 2
    cell = min(90, max(6, 1000 // num_classes))
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    labels = _axis_labels(names, cell)
    font = ImageFont.load_default(max(11, min(16, cell - 2)))
    edge = 24 + max(int(font.getlength(text)) for text in labels.values())
    lines = _confusions(pixels, shares, names)
    side, beside = cell * num_classes, ImageFont.load_default(16)
    width = edge + side + 60 + max(int(beside.getlength(text)) for text in lines)
    canvas = Image.new("RGB", (width, edge + max(side, 24 * len(lines)) + 24), "white")
    squares = Image.fromarray(_cell_colors(pixels, shares))
    canvas.paste(squares.resize((side, side), Image.Resampling.NEAREST), (edge, edge))
    _draw_axes(canvas, labels, font, edge, cell, side)
    if cell >= 30:
        _draw_percents(canvas, shares, pixels.sum(1) > 0, edge, cell)
    for i, text in enumerate(lines):
        ink = "black" if i >= _HEADINGS else _GREY
        ImageDraw.Draw(canvas).text((edge + side + 36, edge + 24 * i), text, fill=ink, font=beside)
    return canvas


def _confusions(pixels: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> list[str]:
    """What stands beside the matrix: how to read it, and the confusions with the most pixels."""
    wrong = pixels * ~np.eye(len(names), dtype=bool)
    largest = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:_NUM_CONFUSIONS]]
    lines = [
        f"{wrong[t, p]:,} px: {_short(names[t], 30)} taken for {_short(names[p], 30)}, {_percent(shares[t, p])} of it"
        for t, p in largest
        if wrong[t, p]
    ]
    total = max(int(pixels.sum()), 1)
    return [
        "rows: the true class, in percent of its pixels (grey: it has none)",
        "columns: what they were predicted to be",
        f"wrong: {_percent(wrong.sum() / total)} of {int(pixels.sum()):,} px; the largest confusions, by pixels:",
        "",
        *(lines or ["none"]),
    ]


def _cell_colors(pixels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """uint8 (K, K, 3)."""
    ink = np.where(np.eye(len(pixels), dtype=bool)[..., None], _RIGHT, _WRONG)
    colors = 255 - np.sqrt(shares)[..., None] * (255 - ink)
    colors[pixels.sum(1) == 0] = _ABSENT
    return colors.round().astype(np.uint8)


def _axis_labels(names: Sequence[str], cell: int) -> dict[int, str]:
    """The text at each row and column that has one."""
    if cell >= _NAME_PX:
        return {k: _short(name) for k, name in enumerate(names)}
    return {k: str(k) for k in range(0, len(names), 10)}


def _draw_axes(
    canvas: Image.Image,
    labels: dict[int, str],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    edge: int,
    cell: int,
    side: int,
) -> None:
    """Labels at the left and, turned, at the top; a frame; and lines between cells that can bear them."""
    draw = ImageDraw.Draw(canvas)
    for k, text in labels.items():
        middle = edge + k * cell + cell // 2
        draw.text((edge - 8, middle), text, fill="black", font=font, anchor="rm")
        strip = Image.new("RGB", (edge, 2 * (cell // 2) + 14), "white")
        ImageDraw.Draw(strip).text((0, strip.height // 2), text, fill="black", font=font, anchor="lm")
        turned = strip.crop((0, 0, edge - 8, strip.height)).rotate(90, expand=True)
        canvas.paste(Image.new("RGB", turned.size, "black"), (middle - turned.width // 2, 0), _ink(turned))
        draw.line([edge - 5, middle, edge - 1, middle], fill=_GREY)
        draw.line([middle, edge - 5, middle, edge - 1], fill=_GREY)
    for at in range(edge, edge + side + 1, cell if cell >= _NAME_PX else side):
        draw.line([at, edge, at, edge + side], fill=_ABSENT if cell >= _NAME_PX else _GREY)
        draw.line([edge, at, edge + side, at], fill=_ABSENT if cell >= _NAME_PX else _GREY)


def _ink(image: Image.Image) -> Image.Image:
    """How dark each pixel is: pasted through it, the white of neighbouring labels hides none of them."""
    return image.convert("L").point(lambda value: 255 - value)


def _draw_percents(canvas: Image.Image, shares: np.ndarray, present: np.ndarray, edge: int, cell: int) -> None:
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(11, min(18, cell // 3)))
    for t, p in np.argwhere((shares >= 0.005) & present[:, None]).tolist():
        at = (edge + p * cell + cell // 2, edge + t * cell + cell // 2)
        ink = "white" if shares[t, p] > 0.3 else "black"
        draw.text(at, f"{100 * shares[t, p]:.0f}", fill=ink, font=font, anchor="mm")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 or share == 0 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def _short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else f"{name[: length - 3]}..."


_PANELS = {
    "loss": (("train", "loss", "training", (86, 180, 233)), ("eval", "loss", "validation", (213, 94, 0))),
    "scores": (
        ("eval", "miou", "mIoU", (0, 114, 178)),
        ("eval", "mean_dice", "mean F1", (0, 158, 115)),
        ("eval", "mean_accuracy", "mean accuracy", (204, 121, 167)),
        ("eval", "overall_accuracy", "accuracy", (150, 150, 150)),
    ),
    "learning rate": (("train", "lr", "", (90, 90, 90)),),
}  # title -> (kind of record, field, its name, colour)
_NUM_MARKS = 40  # of a curve of evaluations; one of more points has none
_PLOT_PX = (640, 190)  # width and height of a panel
_SHARPER = 3  # drawn so much larger first, which makes lines smooth


class _Curve(NamedTuple):
    points: list[tuple[int, float]]  # (step, value)
    text: str  # beside it; the last value follows
    ink: tuple[int, int, int]
    marked: bool  # point by point, where they are few


def learning_curve(records: Sequence[dict[str, Any]], title: str = "") -> Image.Image:
    """Loss, scores and learning rate over the steps, from a run's records of training and evaluation (record.read_metrics).

    A loss that leaves the picture is cut off at its upper edge. Raises UserError where nothing was recorded.
    """
    last = max((row["step"] for row in records), default=0)
    if not last:
        raise UserError("a learning curve needs a run that has made its first steps")
    left, right, gap, (width, height) = 70, 170, 46, _PLOT_PX
    heights = [height, height, height // 2]
    canvas = Image.new("RGB", (left + width + right, gap + sum(heights) + gap * len(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    draw.text((12, 8), title, fill="black", font=ImageFont.load_default(17))
    top = gap + 12
    for (name, lines), tall in zip(_PANELS.items(), heights):
        found = [_Curve(_points(records, kind, field), text, ink, kind == "eval") for kind, field, text, ink in lines]
        curves = [curve for curve in found if curve.points]
        high = 1.0 if name == "scores" else _top([value for curve in curves for _, value in curve.points])
        draw.text((left, top - 21), name, fill="black", font=font)
        for i in range(5):
            y = top + tall * i // 4
            draw.line([left, y, left + width, y], fill=_ABSENT)
            draw.text((left - 8, y), f"{high * (4 - i) / 4:.3g}", fill=_GREY, font=font, anchor="rm")
        canvas.paste(_plotted(canvas.crop((left, top, left + width, top + tall)), curves, last, high), (left, top))
        for i, curve in enumerate(curve for curve in curves if curve.text):
            value = f"{curve.text} {curve.points[-1][1]:.3g}"
            draw.text((left + width + 10, top + 8 + 22 * i), value, fill=curve.ink, font=font, anchor="lm")
        top += tall + gap
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        text = f"{round(last * share):,}" + (" steps" if share == 1 else "")
        draw.text((left + width * share, top - gap + 14), text, fill=_GREY, font=font, anchor="mm")
    return canvas


def _points(records: Sequence[dict[str, Any]], kind: str, field: str) -> list[tuple[int, float]]:
    """(step, value) where there is a finite one."""
    found = [(row["step"], row.get(field)) for row in records if row["kind"] == kind]
    return [(step, value) for step, value in found if value is not None and np.isfinite(value)]


def _top(values: list[float]) -> float:
    """The upper end of an axis from 0, four round numbers above nearly all values: one spike should not flatten the rest."""
    high = max(values, default=0.0)
    usual = float(np.quantile(values, 0.98)) if values else 0.0
    high = usual if high > 3 * usual else high
    if not high > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(high / 4))
    return next(4 * n * power for n in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if 4 * n * power >= high)


def _plotted(panel: Image.Image, curves: list[_Curve], last: int, high: float) -> Image.Image:
    """The panel with its curves; the first lies above the others."""
    large = panel.resize((panel.width * _SHARPER, panel.height * _SHARPER), Image.Resampling.NEAREST)
    draw, (width, height) = ImageDraw.Draw(large), large.size
    for curve in reversed(curves):
        line = [(x / last * width, height * (1 - max(0.0, min(1.0, y / high)))) for x, y in curve.points]
        draw.line(line, fill=curve.ink, width=2 * _SHARPER, joint="curve")
        for x, y in line if curve.marked and len(line) <= _NUM_MARKS else []:
            draw.ellipse([x - 3 * _SHARPER, y - 3 * _SHARPER, x + 3 * _SHARPER, y + 3 * _SHARPER], fill=curve.ink)
    return large.resize(panel.size, Image.Resampling.LANCZOS)
