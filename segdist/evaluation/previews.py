"""Samples as people look at them: image, truth and prediction side by side, one sample a row; of a data set, image and truth.

They are the predictions that the evaluation makes anyway, shrunk where they were made: no rank ever holds more than a few
small pictures, and none is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from segdist import console
from segdist.data.labels import Labels
from segdist.data.stream import EvalBatch, spread
from segdist.distributed import World
from segdist.evaluation.figures import blended
from segdist.ops import IGNORE

FOLDER = "previews"  # below a run
_SIDE_PX, _GAP_PX, _TEXT_PX = 288, 12, 15  # a picture's longer side, about
_COLUMNS = ("image", "truth", "prediction")
_TINY = 4  # times smaller than they are drawn
_NUM_ENTRIES = 24  # of the legend
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_GREY = (110, 110, 110)


@dataclass(frozen=True)
class Preview:
    """One sample, small."""

    row: int  # in the split
    sample_id: str
    image: np.ndarray  # uint8 (h, w, 3)
    mask: np.ndarray  # uint8 (h, w) classes, 255 where void
    pred: np.ndarray  # uint8 (h, w) classes
    right: float | None  # share of the mask's own valid pixels; None where it has none


class Previews:
    """Keeps those samples of an evaluation that are to be drawn: show it every batch by `see`, then call `meet`.

    `sample_ids`, where given; else `num` of those `num_samples` (None: all) of `num_rows` samples that are scored, always the
    same.
    """

    def __init__(
        self, num_rows: int, num: int, num_samples: int | None = None, sample_ids: Iterable[str] | None = None
    ) -> None:
        scored = spread(num_rows, num_samples)
        self._rows = set(scored[spread(len(scored), num)].tolist()) if num else set()
        self._ids = None if sample_ids is None else list(dict.fromkeys(sample_ids))
        self._kept: list[Preview] = []

    def see(self, batch: EvalBatch, pred: torch.Tensor) -> None:
        """Keeps what is wanted of a batch and its uint8 (B, H, W) predictions."""
        for i, (row, sample_id) in enumerate(zip(batch.rows, batch.sample_ids)):
            if (row in self._rows) if self._ids is None else (sample_id in self._ids):
                self._kept.append(_shrunk(row, sample_id, batch.images[i], batch.masks[i], pred[i].cpu()))

    def gather(self, world: World) -> list[Preview]:
        """Those of all ranks, in the order of the split, or of the ids that were given. All ranks must call it.

        An id that the evaluation did not see costs its picture and a warning, not the scores: ids are known only once all
        rows were read.
        """
        found = sorted((one for kept in world.gather(self._kept) for one in kept), key=lambda one: one.row)
        if self._ids is None:
            return found
        by_id = {one.sample_id: one for one in found}
        if world.is_first and (lost := [sample_id for sample_id in self._ids if sample_id not in by_id]):
            console.say(
                f"warning: no sample of the split is called {', '.join(map(repr, lost))}; the previews are without"
            )
        return [by_id[sample_id] for sample_id in self._ids if sample_id in by_id]


def _shrunk(row: int, sample_id: str, image: torch.Tensor, mask: torch.Tensor, pred: torch.Tensor) -> Preview:
    """A sample at the size in which it is drawn; tiny ones are enlarged by whole numbers, so that their pixels stay square."""
    height, width = mask.shape
    zoom = _SIDE_PX / max(height, width)
    zoom = int(zoom) if zoom >= _TINY else zoom
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    soft = Image.Resampling.NEAREST if zoom >= _TINY else Image.Resampling.BICUBIC
    photo = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(size, soft)
    truth, classes = (
        np.asarray(Image.fromarray(one.numpy()).resize(size, Image.Resampling.NEAREST)) for one in (mask, pred)
    )
    valid = mask != IGNORE
    right = float(((pred == mask) & valid).sum() / valid.sum()) if valid.any() else None
    return Preview(row, sample_id, np.asarray(photo), truth, classes, right)


def grid(previews: list[Preview], labels: Labels, title: str = "") -> Image.Image:
    """The picture: a row per sample (one at least) and, below, a legend of the classes that occur, largest first."""
    assert previews
    font, head = ImageFont.load_default(_TEXT_PX), ImageFont.load_default(_TEXT_PX + 3)
    column = max(_SIDE_PX * 2 // 3, *(one.image.shape[1] for one in previews)) + _GAP_PX
    seen = [part for one in previews for part in (one.mask, one.pred)]
    legend = _legend(seen, labels, 3 * column - _GAP_PX, font)
    line = _TEXT_PX + 9
    top = _GAP_PX + (line + 6 if title else 0) + line
    tall = sum(one.image.shape[0] + line + _GAP_PX for one in previews)
    height = top + tall + line * (1 + max((at for _, at, _ in legend), default=0)) + _GAP_PX
    canvas = Image.new("RGB", (3 * column + _GAP_PX, height), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP_PX, _GAP_PX - 2), title, fill="black", font=head)
    for i, name in enumerate(_COLUMNS):
        draw.text((_GAP_PX + i * column, top - line), name, fill="black", font=font)
    for one in previews:
        shown = (one.image, blended(one.image, one.mask, labels), blended(one.image, one.pred, labels))
        for i, pixels in enumerate(shown):
            canvas.paste(Image.fromarray(pixels), (_GAP_PX + i * column, top))
        top += one.image.shape[0] + 3
        draw.text((_GAP_PX, top), _cut(one.sample_id, font, 2 * column - 2 * _GAP_PX), fill=_GREY, font=font)
        right = "all void" if one.right is None else f"{one.right:.1%} of pixels right"
        draw.text((_GAP_PX + 2 * column, top), right, fill=_GREY, font=font)
        top += line + _GAP_PX - 3
    _draw_legend(draw, legend, labels, _GAP_PX, top, font)
    return canvas


def pairs(samples: Sequence[tuple[np.ndarray, np.ndarray]], labels: Labels) -> Image.Image:
    """Images (H, W, 3) beside their masks (H, W) of classes, a row each, and below a legend of all that occurs, void too."""
    drawn = [_pair(image, mask, labels) for image, mask in samples]
    font, line, width = ImageFont.load_default(_TEXT_PX), _TEXT_PX + 9, 2 * _SIDE_PX + 3 * _GAP_PX
    masks = [mask for _, mask in samples]
    legend = _legend(masks, labels, width - 2 * _GAP_PX, font, None)
    top = sum(picture.height + _GAP_PX for picture in drawn) + _GAP_PX
    canvas = Image.new("RGB", (width, top + line * (1 + max((at for _, at, _ in legend), default=0))), "white")
    _draw_legend(ImageDraw.Draw(canvas), legend, labels, _GAP_PX, top, font)
    top = _GAP_PX
    for picture in drawn:
        canvas.paste(picture, ((width - picture.width) // 2, top))
        top += picture.height + _GAP_PX
    return canvas


def _pair(image: np.ndarray, mask: np.ndarray, labels: Labels) -> Image.Image:
    """Both at one size: as wide as a column, but no higher than twice that."""
    height, width = mask.shape
    zoom = min(_SIDE_PX / width, 2 * _SIDE_PX / height)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    soft = Image.Resampling.NEAREST if zoom >= _TINY else Image.Resampling.BICUBIC
    picture = Image.new("RGB", (2 * size[0] + _GAP_PX, size[1]), "white")
    picture.paste(Image.fromarray(image).resize(size, soft), (0, 0))
    classes = Image.fromarray(labels.palette()[mask]).resize(size, Image.Resampling.NEAREST)
    picture.paste(classes, (size[0] + _GAP_PX, 0))
    return picture


Legend = list[tuple[int, int, int]]  # (class, line, left px) of each entry


def _legend(
    seen: Iterable[np.ndarray], labels: Labels, width: int, font: Font, most: int | None = _NUM_ENTRIES
) -> Legend:
    """What occurs, largest first, in lines of `width` px: at most so many classes, or all, and then void as well."""
    counts = np.bincount(np.concatenate([part.ravel() for part in seen]), minlength=256)
    present = [k for k in np.argsort(-counts[: labels.num_classes], kind="stable").tolist() if counts[k]][:most]
    entries, line, left = [], 0, 0
    for k in [*present, *([IGNORE] if most is None and counts[IGNORE] else [])]:
        wide = _TEXT_PX + 6 + int(font.getlength(_name(labels, k))) + 18
        if left and left + wide > width:
            line, left = line + 1, 0
        entries.append((k, line, left))
        left += wide
    return entries


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Legend, labels: Labels, left: int, top: int, font: Font) -> None:
    for k, at, right in legend:
        x, y = left + right, top + at * (_TEXT_PX + 9)
        fill = tuple(labels.palette()[k].tolist())
        draw.rectangle([x, y, x + _TEXT_PX, y + _TEXT_PX], fill=fill, outline="black")
        draw.text((x + _TEXT_PX + 6, y - 1), _name(labels, k), fill="black", font=font)


def _name(labels: Labels, k: int) -> str:
    return "void" if k == IGNORE else labels.names[k]


def _cut(text: str, font: Font, width: int) -> str:
    """The text, its beginning cut off where it is too long: the end of a path says more."""
    while font.getlength(text) > width:
        text = f"...{text[4:]}" if text.startswith("...") else f"...{text[3:]}"
    return text
