"""Previews: image, mask and prediction side by side, one sample per row; for a dataset, image and mask.

Previews reuse the predictions of the evaluation and are resized on the rank that made them, so no rank holds more than a few
small images and nothing is predicted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from segdist import console
from segdist.data.labels import Labels
from segdist.data.stream import EvalBatch, stratified_rows
from segdist.distributed import World
from segdist.errors import first_few
from segdist.evaluation.figures import blended
from segdist.ops import IGNORE

FOLDER = "previews"  # below a run
_SIDE_PX, _GAP_PX, _TEXT_PX = 288, 12, 15  # longer side of a drawn image (approximate); gap; font size
_COLUMNS = ("image", "mask", "prediction")
_TINY = 4  # images this many times smaller than drawn are enlarged by whole numbers
_NUM_ENTRIES = 24  # classes in the legend
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_GREY = (110, 110, 110)


@dataclass(frozen=True)
class Preview:
    """One sample at the size in which it is drawn."""

    row: int  # in the split
    sample_id: str
    image: np.ndarray  # uint8 (h, w, 3)
    mask: np.ndarray  # uint8 (h, w) classes, 255 where void
    pred: np.ndarray  # uint8 (h, w) classes
    accuracy: float | None  # share of valid pixels that are correct; None if the mask has no valid pixels


class Previews:
    """Collect samples of an evaluation to draw: call `add` with every batch, then `gather`.

    Collects the samples `sample_ids` if given. Otherwise it collects a fixed choice of `num` samples among those evaluated:
    `num_samples` (None: all) of `num_rows`.
    """

    def __init__(
        self, num_rows: int, num: int, num_samples: int | None = None, sample_ids: Iterable[str] | None = None
    ) -> None:
        scored = stratified_rows(num_rows, num_samples)
        self._rows = set(scored[stratified_rows(len(scored), num)].tolist()) if num else set()
        self._ids = None if sample_ids is None else list(dict.fromkeys(sample_ids))
        self._kept: list[Preview] = []

    def add(self, batch: EvalBatch, pred: torch.Tensor) -> None:
        """Keep the chosen samples of a batch, with its uint8 (B, H, W) predictions."""
        for i, (row, sample_id) in enumerate(zip(batch.rows, batch.sample_ids)):
            if (row in self._rows) if self._ids is None else (sample_id in self._ids):
                self._kept.append(_make_preview(row, sample_id, batch.images[i], batch.masks[i], pred[i].cpu()))

    def gather(self, world: World) -> list[Preview]:
        """Return the samples of all ranks, in the order of the split or of the given IDs. All ranks must call it.

        An ID that the evaluation did not see is skipped with a warning. It cannot be an early error, because IDs are known
        only after all rows were read.
        """
        found = sorted((one for kept in world.gather(self._kept) for one in kept), key=lambda one: one.row)
        if self._ids is None:
            return found
        by_id = {one.sample_id: one for one in found}
        if world.is_first and (missing := [sample_id for sample_id in self._ids if sample_id not in by_id]):
            listed = first_few([repr(sample_id) for sample_id in missing], 10)
            console.say(f"warning: the split has no sample {listed}; skipping these previews")
        return [by_id[sample_id] for sample_id in self._ids if sample_id in by_id]


def _make_preview(row: int, sample_id: str, image: torch.Tensor, mask: torch.Tensor, pred: torch.Tensor) -> Preview:
    """Resize a sample for drawing. Tiny images are enlarged by a whole number, so that their pixels stay square."""
    height, width = mask.shape
    zoom = _SIDE_PX / max(height, width)
    zoom = int(zoom) if zoom >= _TINY else zoom
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    resampling = Image.Resampling.NEAREST if zoom >= _TINY else Image.Resampling.BICUBIC
    photo = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(size, resampling)
    truth, classes = (
        np.asarray(Image.fromarray(one.numpy()).resize(size, Image.Resampling.NEAREST)) for one in (mask, pred)
    )
    valid = mask != IGNORE
    accuracy = float(((pred == mask) & valid).sum() / valid.sum()) if valid.any() else None
    return Preview(row, sample_id, np.asarray(photo), truth, classes, accuracy)


def grid(previews: list[Preview], labels: Labels, title: str = "") -> Image.Image:
    """Draw one row per preview (at least one) and, below, a legend of the classes that occur, largest first."""
    assert previews
    font, head = ImageFont.load_default(_TEXT_PX), ImageFont.load_default(_TEXT_PX + 3)
    column = max(_SIDE_PX * 2 // 3, *(one.image.shape[1] for one in previews)) + _GAP_PX
    class_maps = [part for one in previews for part in (one.mask, one.pred)]
    legend = _legend(class_maps, labels, 3 * column - _GAP_PX, font)
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
        columns = (one.image, blended(one.image, one.mask, labels), blended(one.image, one.pred, labels))
        for i, pixels in enumerate(columns):
            canvas.paste(Image.fromarray(pixels), (_GAP_PX + i * column, top))
        top += one.image.shape[0] + 3
        draw.text((_GAP_PX, top), _cut(one.sample_id, font, 2 * column - 2 * _GAP_PX), fill=_GREY, font=font)
        accuracy = "all void" if one.accuracy is None else f"{one.accuracy:.1%} of pixels correct"
        draw.text((_GAP_PX + 2 * column, top), accuracy, fill=_GREY, font=font)
        top += line + _GAP_PX - 3
    _draw_legend(draw, legend, labels, _GAP_PX, top, font)
    return canvas


def pairs(samples: Sequence[tuple[np.ndarray, np.ndarray]], labels: Labels) -> Image.Image:
    """Draw images (H, W, 3) beside their class masks (H, W), one per row, and a legend of all classes that occur and void."""
    drawn = [_pair(image, mask, labels) for image, mask in samples]
    font, line, width = ImageFont.load_default(_TEXT_PX), _TEXT_PX + 9, 2 * _SIDE_PX + 3 * _GAP_PX
    masks = [mask for _, mask in samples]
    legend = _legend(masks, labels, width - 2 * _GAP_PX, font, None)
    top = sum(pair.height + _GAP_PX for pair in drawn) + _GAP_PX
    canvas = Image.new("RGB", (width, top + line * (1 + max((at for _, at, _ in legend), default=0))), "white")
    _draw_legend(ImageDraw.Draw(canvas), legend, labels, _GAP_PX, top, font)
    top = _GAP_PX
    for pair in drawn:
        canvas.paste(pair, ((width - pair.width) // 2, top))
        top += pair.height + _GAP_PX
    return canvas


def _pair(image: np.ndarray, mask: np.ndarray, labels: Labels) -> Image.Image:
    """Draw an image and its mask at the same size: as wide as a column, and at most twice as high as wide."""
    height, width = mask.shape
    zoom = min(_SIDE_PX / width, 2 * _SIDE_PX / height)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    resampling = Image.Resampling.NEAREST if zoom >= _TINY else Image.Resampling.BICUBIC
    canvas = Image.new("RGB", (2 * size[0] + _GAP_PX, size[1]), "white")
    canvas.paste(Image.fromarray(image).resize(size, resampling), (0, 0))
    classes = Image.fromarray(labels.palette()[mask]).resize(size, Image.Resampling.NEAREST)
    canvas.paste(classes, (size[0] + _GAP_PX, 0))
    return canvas


Legend = list[tuple[int, int, int]]  # (class, line, left px) of each entry


def _legend(
    class_maps: Iterable[np.ndarray], labels: Labels, width: int, font: Font, most: int | None = _NUM_ENTRIES
) -> Legend:
    """Lay out the classes that occur, largest first, in lines of `width` px: the first `most`, or all of them and void."""
    counts = np.bincount(np.concatenate([part.ravel() for part in class_maps]), minlength=256)
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
    """Cut off the beginning of a text that is too wide: the end of a path says more."""
    while font.getlength(text) > width:
        text = f"...{text[4:]}" if text.startswith("...") else f"...{text[3:]}"
    return text
