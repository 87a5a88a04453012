"""Figures: masks and overlays (PIL), learning curves and confusion matrices (matplotlib).

Charts use matplotlib's object-oriented API, so they neither need a display nor touch pyplot's global state. matplotlib is
imported inside the functions that draw, because the import takes about a second.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdist.data.labels import Labels
from segdist.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OPACITY = 0.55
_THICK_PX = 5  # odd; a border would hide regions thinner than this
_BAND_ROWS = 256  # blended at a time: blending takes about sixty bytes per pixel

DPI = 100
GREY, LIGHT = "#6e6e6e", "#e1e1e1"  # of secondary text, and of grid lines
_RIGHT, _WRONG, _ABSENT = (8, 69, 148), (178, 24, 43), (225, 225, 225)
_MATRIX_PX, _CELL_PX = 640, (5, 90)  # side of a confusion matrix; smallest and largest cell
_NAME_PX, _PERCENT_PX = 12, 24  # the smallest cells whose row has a class name, and that hold a number
_NUM_CONFUSIONS = 15  # listed below a confusion matrix


def index_mask(classes: np.ndarray, labels: Labels) -> Image.Image:
    """Return uint8 (H, W) classes as a palette image: the values are class numbers, the palette holds the class colours."""
    image = Image.fromarray(classes)
    image.putpalette(labels.palette().tobytes())  # converts to mode P and keeps the values
    return image


def png(image: Image.Image) -> bytes:
    """Encode the image as PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def overlay(image: np.ndarray, classes: np.ndarray, labels: Labels) -> Image.Image:
    """Draw uint8 (H, W) classes over a uint8 (H, W, 3) image, with borders, and a legend beside it.

    The legend lists only the classes that occur in the image, largest first.
    """
    return _with_legend(Image.fromarray(blended(image, classes, labels)), classes, labels)


def blended(image: np.ndarray, classes: np.ndarray, labels: Labels) -> np.ndarray:
    """Return uint8 (H, W, 3): the image with its uint8 (H, W) classes blended over it and white borders between regions."""
    blend = np.empty_like(image)
    for first in range(0, len(image), _BAND_ROWS):
        band = slice(first, first + _BAND_ROWS)
        blend[band] = _blend(image[band], classes[band], labels)
    blend[_borders(classes)] = 255
    return blend


def _blend(image: np.ndarray, classes: np.ndarray, labels: Labels) -> np.ndarray:
    """Blend class colours over the grey image, so that colours match the legend. Void and black classes show the image."""
    grey = image.mean(2, keepdims=True)
    palette = labels.palette()
    plain = (palette == 0).all(1)  # void, and black, the usual colour of background
    mixed = (1 - _OPACITY) * grey + _OPACITY * palette[classes]
    return np.where(plain[classes][..., None], image, mixed).round().astype(np.uint8)


def _borders(classes: np.ndarray) -> np.ndarray:
    """Return bool (H, W): pixels whose lower or right neighbour has another class, unless one of the two regions is thin."""
    edge, thick = np.zeros(classes.shape, bool), _thick(classes)
    edge[:-1] |= (classes[:-1] != classes[1:]) & thick[:-1] & thick[1:]
    edge[:, :-1] |= (classes[:, :-1] != classes[:, 1:]) & thick[:, :-1] & thick[:, 1:]
    return edge


def _thick(classes: np.ndarray) -> np.ndarray:
    """Return bool (H, W): pixels inside some _THICK_PX square of a single class; the image is extended by its edge pixels."""
    import torch  # here, because charts do not need it

    from segdist.ops.windows import window_max, window_min

    x, reach = torch.tensor(classes), _THICK_PX // 2
    middles = window_min(x, reach) == window_max(x, reach)
    return window_max(middles.byte(), reach).bool().numpy()


def _with_legend(image: Image.Image, classes: np.ndarray, labels: Labels) -> Image.Image:
    """Return the image with a legend at its right, enlarged by a whole number until the legend is readable."""
    zoom = max(1, round(480 / image.height))
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    counts = np.bincount(classes.ravel(), minlength=256)[: labels.num_classes]
    present = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    size = max(12, image.height // 24)
    num_lines = (image.height - size) * 2 // (3 * size)
    font = ImageFont.load_default(size)
    lines = [(k, f"{labels.names[k]}  {_whole_percent(counts[k] / classes.size)}") for k in present[:num_lines]]
    if len(present) > num_lines:
        lines[-1] = (present[num_lines - 1], f"and {len(present) - num_lines} smaller ones")
    width = max((int(font.getlength(text)) for _, text in lines), default=0) + 3 * size
    canvas = Image.new("RGB", (image.width + width, image.height), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (k, text) in enumerate(lines):
        left, top = image.width + size // 2, size // 2 + i * (size * 3 // 2)
        draw.rectangle([left, top, left + size, top + size], fill=labels.classes[k].color, outline="black")
        draw.text((left + size * 3 // 2, top - size // 8), text, fill="black", font=font)
    return canvas


def _whole_percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def new_figure(width_px: float, height_px: float) -> Figure:
    """Return an empty white matplotlib figure that is independent of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")


def style_axes(axes: Axes, title: str = "") -> None:
    """Give axes the common look: light grid lines, no frame, grey tick labels, title at the left."""
    axes.set_axisbelow(True)
    axes.grid(color=LIGHT, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=GREY)
    axes.set_title(title, loc="left", fontsize=10.5, parse_math=False)


def render(figure: Figure) -> Image.Image:
    """Return the figure as an RGB image, cropped (or grown) to what is drawn plus a small margin."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts the bundled font lacks
        figure.savefig(out, format="png", bbox_inches="tight", pad_inches=0.15)
    return Image.open(out).convert("RGB")


def confusion(counts: np.ndarray | Sequence[Sequence[int]], names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix (K, K) of [true class][predicted class] pixels, rows in percent, and list the largest errors.

    Correct pixels are blue and wrong ones red. Intensity grows with the square root of the share, so that 1 % is visible.
    Rows of classes without pixels are grey. If the cells are too small for class names, every tenth class has its number.
    """
    pixels = np.asarray(counts, np.int64)
    num_classes = len(names)
    assert pixels.shape == (num_classes, num_classes) and num_classes >= 2
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    cell = min(_CELL_PX[1], max(_CELL_PX[0], _MATRIX_PX // num_classes))
    figure = new_figure(cell * num_classes, cell * num_classes)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(_cell_colors(pixels, shares), interpolation="nearest")
    _label_classes(axes, names, cell)
    if cell >= _PERCENT_PX:
        for t, p in np.argwhere(shares >= 0.005).tolist():
            ink = "white" if shares[t, p] > 0.3 else "black"
            size = _points_of(min(18, cell / 3))
            axes.text(p, t, f"{100 * shares[t, p]:.0f}", color=ink, fontsize=size, ha="center", va="center")
    total, wrong = int(pixels.sum()), int(pixels.sum() - np.trace(pixels))
    heading = (
        "Cells: percent of the true class. Grey rows: classes without pixels.\n"
        f"{_percent(wrong / max(total, 1))} of {total:,} px are wrong. The most frequent confusions:"
    )
    text: dict[str, Any] = {"va": "top", "fontsize": 9, "parse_math": False}
    below = {"xycoords": "axes fraction", "textcoords": "offset pixels", **text}
    axes.annotate(heading, (0, 0), (0, -14), color=GREY, **below)
    axes.annotate("\n".join(_largest_confusions(pixels, shares, names)), (0, 0), (0, -50), **below)
    return render(figure)


def _cell_colors(pixels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the colours of the cells, uint8 (K, K, 3)."""
    ink = np.where(np.eye(len(pixels), dtype=bool)[..., None], _RIGHT, _WRONG)
    colors = 255 - np.sqrt(shares)[..., None] * (255 - ink)
    colors[pixels.sum(1) == 0] = _ABSENT
    return colors.round().astype(np.uint8)


def _label_classes(axes: Axes, names: Sequence[str], cell: int) -> None:
    """Write class names at the left and the top, and lines between the cells; numbers and no lines where cells are small."""
    named, num_classes = cell >= _NAME_PX, len(names)
    at = range(num_classes) if named else range(0, num_classes, 10)
    texts = [_shortened(names[k], 20) if named else str(k) for k in at]
    size = _points_of(min(12.5, cell - 2)) if named else 8
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(at, texts, rotation=90 if named else 0, fontsize=size, parse_math=False)
    axes.set_yticks(at, texts, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted class", color=GREY, fontsize=9)
    axes.set_ylabel("true class", color=GREY, fontsize=9)
    axes.spines[:].set_color(GREY)
    axes.tick_params(length=3, color=GREY)
    if named:
        edges, ends = np.arange(1, num_classes) - 0.5, (-0.5, num_classes - 0.5)
        axes.hlines(edges, *ends, color=LIGHT, linewidth=0.6)
        axes.vlines(edges, *ends, color=LIGHT, linewidth=0.6)


def _largest_confusions(pixels: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return one line per confusion, most pixels first."""
    wrong = pixels * ~np.eye(len(names), dtype=bool)
    largest = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:_NUM_CONFUSIONS]]
    short = [_shortened(name, 28) for name in names]
    lines = [
        f"{wrong[t, p]:,} px: {short[t]} predicted as {short[p]} ({_percent(shares[t, p])} of the true class)"
        for t, p in largest
        if wrong[t, p]
    ]
    return lines or ["none"]


def _points_of(px: float) -> float:
    """Convert pixels to points, the unit of font sizes."""
    return px * 72 / DPI


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 or share == 0 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 3]}..."


_PANELS = {
    "loss": (("train", "loss", "training", "#56b4e9"), ("eval", "loss", "validation", "#d55e00")),
    "scores": (
        ("eval", "miou", "mIoU", "#0072b2"),
        ("eval", "mean_dice", "mean F1", "#009e73"),
        ("eval", "mean_accuracy", "mean accuracy", "#cc79a7"),
        ("eval", "overall_accuracy", "accuracy", "#969696"),
    ),
    "learning rate": (("train", "lr", "", "#5a5a5a"),),
}  # title -> (kind of record, field, name of the curve, colour)
_NUM_MARKS = 40  # evaluations are marked one by one in curves of up to this many


def learning_curve(records: Sequence[dict[str, Any]], title: str = "") -> Image.Image:
    """Draw loss, scores and learning rate over the steps, from a run's records (`segments.read_metrics`).

    A loss spike is cut off at the upper edge. Raises UserError if nothing was recorded.
    """
    last = max((row["step"] for row in records), default=0)
    if not last:
        raise UserError("cannot draw a learning curve: the run has recorded no steps yet")
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(580, 600)
    grid = figure.add_gridspec(3, 1, height_ratios=(2, 2, 1), hspace=0.3, left=0, right=1, bottom=0, top=1)
    for i, (name, curves) in enumerate(_PANELS.items()):
        axes = figure.add_subplot(grid[i])
        style_axes(axes, name)
        _draw_curves(axes, records, curves)
        axes.set_xlim(0, last)
        axes.set_ylim(0, 1 if name == "scores" else None)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
        if i < len(_PANELS) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel("steps", color=GREY, fontsize=9)
    figure.suptitle(title, x=0, y=1.1, ha="left", fontsize=12, parse_math=False)
    return render(figure)


def _draw_curves(axes: Axes, records: Sequence[dict[str, Any]], curves: Sequence[tuple[str, str, str, str]]) -> None:
    """Draw the curves that have points, the first one on top, and a legend with their last values."""
    drawn: list[float] = []
    for order, (kind, field, name, color) in enumerate(curves):
        points = _points(records, kind, field)
        if not points:
            continue
        steps, values = zip(*points)
        drawn += values
        mark = "o" if kind == "eval" and len(points) <= _NUM_MARKS else None
        label = f"{name} {values[-1]:.3g}" if name else None
        axes.plot(steps, values, color=color, marker=mark, markersize=4, label=label, zorder=3 - 0.1 * order)
    axes.set_ylim(top=_upper_limit(drawn))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.04), frameon=False, labelcolor="linecolor", fontsize=9)


def _points(records: Sequence[dict[str, Any]], kind: str, field: str) -> list[tuple[int, float]]:
    """Return (step, value) of the records that hold a finite value."""
    found = [(row["step"], row.get(field)) for row in records if row["kind"] == kind]
    return [(step, value) for step, value in found if value is not None and np.isfinite(value)]


def _upper_limit(values: list[float]) -> float:
    """Return the upper end of an axis that starts at 0, a little above nearly all values: a spike must not flatten the rest."""
    high = max(values, default=0.0)
    usual = float(np.quantile(values, 0.98)) if values else 0.0
    return 1.05 * (usual if high > 3 * usual > 0 else high) or 1.0
