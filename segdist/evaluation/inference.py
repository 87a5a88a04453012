"""Inference: classes and loss of uint8 images, whole or in sliding windows, in one view or several (scales, flip).

A (B, K, H, W) tensor of scores never exists. A large image is processed from top to bottom: the logits of a row of windows
are blended at the model's stride, finished rows are resized once to the mask's size, one band at a time, and then dropped.
Memory is therefore bounded by a row of windows, not by the image. Several views are processed in parallel, band by band.

Window weights are Gaussian with sigma = 1/8 of the window, as in nnU-Net (Isensee et al. 2021). Views are averaged as class
probabilities, as in mmsegmentation: logits of different views differ in scale, and the most confident view would dominate
their mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from segdist.config import Eval, Size
from segdist.data.augment import resize_image
from segdist.models.segmenter import Segmenter, infer
from segdist.ops import IGNORE, resize

_BAND_ELEMENTS = 1 << 22  # scores in a resized band: 16 MB in fp32
ClassesAndLoss = tuple[torch.Tensor, torch.Tensor]  # uint8 (B, H, W), and the loss summed over valid pixels


@dataclass(frozen=True)
class InferenceSettings:
    """Inference settings. Only scores made with the same settings are comparable."""

    window: tuple[int, int] | None = None  # (height, width) px, rounded up to the model's stride; None: the whole image
    overlap: float = 0.5  # share of a window that the next window covers too
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False  # also predict the horizontally flipped image

    def describe(self) -> str:
        """Return the settings as a part of the protocol string, which reports store and compare."""
        windows = "whole"
        if self.window is not None:
            windows = f"windows of {self.window[0]}x{self.window[1]} px, overlap {self.overlap:g}, Gaussian weights"
        views = f"scales {', '.join(format(s, 'g') for s in self.scales)}"
        if self.scales == (1.0,):
            views = "single-scale"
        return f"{windows} / {views}{' and mirrored' if self.flip else ''}"


PLAIN = InferenceSettings()


def inference_settings(cfg: Eval, crop_size: Size) -> InferenceSettings:
    """Return the settings of a config's `eval` section. Windows default to the size of the training crop."""
    window = (cfg.window_size or crop_size) if cfg.mode == "sliding" else None
    return InferenceSettings(window, cfg.window_overlap, cfg.scales, cfg.flip)


@torch.no_grad()  # see segmenter.infer
def segment(
    model: Segmenter,
    images: torch.Tensor,
    size: tuple[int, int],
    settings: InferenceSettings,
    batch_size: int,
    masks: torch.Tensor | None = None,
    probabilities: torch.Tensor | None = None,
) -> ClassesAndLoss:
    """Return the classes at `size` and the loss (0 without masks) of uint8 (B, 3, h, w) images. Expects model.eval().

    `masks`: uint8 (B, *size) on the model's device. `probabilities`: float (B, K, *size) on any device; it is filled with the
    class probabilities, one band of rows at a time. An image that fits into one window gives bit-identical results to whole
    inference. A forward pass holds at most `batch_size` windows. Every scale holds a uint8 copy of the images. If a head has
    align_corners=True and a stride above 1, the logits of windows are offset from those of the whole image by less than a
    stride.
    """
    device, stride, align = next(model.parameters()).device, model.traits.stride, model.traits.align_corners
    if settings.scales == (1.0,) and not settings.flip and _fits(images, settings.window, stride):
        logits = infer(model, images.to(device))
        for one, out in zip(logits, () if probabilities is None else probabilities):
            _combine([_Resized(_Rows(iter([one]), one.shape[1], False), size, align)], size, None, out)
        return classes_and_loss(logits, size, align, masks)
    views: list[list[_Rows]] = []  # [view][image]
    for scale in settings.scales:
        scaled = _scaled(images, scale).to(device)
        for flipped in (False, True) if settings.flip else (False,):
            if settings.window is None or _fits(scaled, settings.window, stride):
                whole = infer(model, scaled.flip(3) if flipped else scaled)
                views.append([_Rows(iter([logits]), logits.shape[1], flipped) for logits in whole])
            else:
                window, overlap = settings.window, settings.overlap
                slides = (_slide(model, image, window, overlap, flipped, batch_size) for image in scaled)
                views.append([_Rows(slide, -(-scaled.shape[2] // stride), flipped) for slide in slides])
    preds, loss = [], torch.zeros((), dtype=torch.float64, device=device)
    for i, views_of_image in enumerate(zip(*views)):
        resized = [_Resized(rows, size, align) for rows in views_of_image]
        out = None if probabilities is None else probabilities[i]
        pred, one_loss = _combine(resized, size, None if masks is None else masks[i], out)
        preds.append(pred)
        loss += one_loss
    return torch.stack(preds), loss


def classes_and_loss(
    logits: torch.Tensor, size: tuple[int, int], align_corners: bool, masks: torch.Tensor | None = None
) -> ClassesAndLoss:
    """Return the classes at `size` and the loss (0 without masks) of whole-image logits (B, K, h, w)."""
    pred = resize.predict(logits, size, align_corners)
    if masks is None:
        return pred, logits.new_zeros(())
    return pred, resize.cross_entropy_sum(logits, masks, align_corners)


@dataclass(frozen=True)
class _Rows:
    """Logits of one view of one image, in blocks (K, rows, w) from top to bottom."""

    blocks: Iterator[torch.Tensor]
    height: int  # rows of all blocks
    flipped: bool


def _scaled(images: torch.Tensor, scale: float) -> torch.Tensor:
    """Resize uint8 (B, 3, h, w) images by a factor."""
    if scale == 1:
        return images
    size = (max(1, round(images.shape[2] * scale)), max(1, round(images.shape[3] * scale)))
    return torch.stack([resize_image(image, size) for image in images.cpu()])


def _fits(images: torch.Tensor, window: tuple[int, int] | None, stride: int) -> bool:
    return window is None or all(-(-n // stride) <= -(-w // stride) for n, w in zip(images.shape[2:], window))


def cover(size: int, window: int, overlap: float) -> tuple[list[int], np.ndarray]:
    """Return the starts of the windows that cover 0..size-1 along one axis, and their weights, float64 (windows, window).

    All sizes are in logits. The last window is moved inwards. Weights are Gaussian over the window and normalised to sum to 1
    at every position. The weights of an image's window are the product of its row weights and its column weights.
    """
    window = min(window, size)
    starts = [*range(0, size - window, max(1, round(window * (1 - overlap)))), size - window]
    bell = np.exp(-0.5 * (8 * ((np.arange(window) + 0.5) / window - 0.5)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += bell
    return starts, np.stack([bell / total[start : start + window] for start in starts])


def _slide(
    model: Segmenter, image: torch.Tensor, window: tuple[int, int], overlap: float, flipped: bool, batch_size: int
) -> Iterator[torch.Tensor]:
    """Yield the blended logits of a uint8 (3, H, W) image, optionally flipped, in blocks (K, rows, w) from top to bottom.

    A block is yielded once no further window overlaps it, and is valid until the next block is requested.

    Windows start at multiples of the model's stride, so that all logits share one grid. Windows are never padded: if the image
    size is not a multiple of the stride, those at the right and lower edges are smaller by less than a stride.
    """
    stride = model.traits.stride
    height, width = (-(-n // stride) for n in image.shape[1:])
    tops, down = cover(height, -(-window[0] // stride), overlap)
    lefts, across = cover(width, -(-window[1] // stride), overlap)
    weights = [torch.from_numpy(part).to(image.device, torch.float32) for part in (down, across)]
    rows, columns = down.shape[1], across.shape[1]
    band: torch.Tensor | None = None
    for i, top in enumerate(tops):
        strip = image[:, top * stride : (top + rows) * stride]
        strip = strip.flip(2) if flipped else strip
        for chunk in _chunks(lefts, columns, strip.shape[2], stride, batch_size):
            tiles = torch.stack([strip[:, :, lefts[j] * stride : (lefts[j] + columns) * stride] for j in chunk])
            for j, logits in zip(chunk, infer(model, tiles)):
                if band is None:
                    band = logits.new_zeros(len(logits), rows, width)
                place = band[:, :, lefts[j] : lefts[j] + columns]
                place.addcmul_(logits, weights[0][i][:, None] * weights[1][j])
        assert band is not None
        done = tops[i + 1] - top if i + 1 < len(tops) else rows
        yield band[:, :done]
        band[:, : rows - done] = band[:, done:].clone()
        band[:, rows - done :] = 0


def _chunks(lefts: list[int], columns: int, width: int, stride: int, batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of windows that share a forward pass: neighbours of equal width, at most `batch_size`."""
    widths = [min((left + columns) * stride, width) - left * stride for left in lefts]
    for _, run in itertools.groupby(range(len(lefts)), widths.__getitem__):
        same_width = list(run)
        yield from (same_width[i : i + batch_size] for i in range(0, len(same_width), batch_size))


class _Resized:
    """One view of an image, resized to its mask's size band by band from the top. Holds only the logits still needed."""

    def __init__(self, rows: _Rows, size: tuple[int, int], align_corners: bool) -> None:
        self._blocks, self._flipped, self._align = rows.blocks, rows.flipped, align_corners
        self._held, self._top = next(self._blocks), 0  # (K, rows, w), and the index of its first row
        self._same_height, self._width = rows.height == size[0], size[1]
        like = self._held.new_zeros((), device="cpu")
        self._low, self._high, weight = resize.source_rows(0, size[0], rows.height, size[0], align_corners, like)
        self._weight = weight.to(self._held.device)
        self.num_classes, self.device = len(self._held), self._held.device

    def band(self, first: int, last: int) -> torch.Tensor:
        """Return resized logits (K, last - first, W). Call in order, from the top."""
        low, high = self._low[first:last], self._high[first:last]
        self._reach(int(low[0]), int(high[-1]) + 1)
        above, below = (self._held[:, (n - self._top).to(self.device)] for n in (low, high))
        narrow = above if self._same_height else torch.lerp(above, below, self._weight[first:last])
        wide = F.interpolate(narrow[None], (last - first, self._width), mode="bilinear", align_corners=self._align)[0]
        return wide.flip(2) if self._flipped else wide

    def _reach(self, first: int, last: int) -> None:
        """Hold rows first..last-1 and drop the rows above."""
        while self._top + self._held.shape[1] < last:
            gone = min(first - self._top, self._held.shape[1])
            kept = self._held[:, gone:].clone()
            block = next(self._blocks)
            self._held, self._top = torch.cat([kept, block], 1) if kept.shape[1] else block, self._top + gone


def _combine(
    views: list[_Resized], size: tuple[int, int], mask: torch.Tensor | None, probabilities: torch.Tensor | None
) -> ClassesAndLoss:
    """Return classes (H, W) and loss of one image, from its only view's logits or the mean probabilities of its views.

    `probabilities` (K, H, W) is filled with the class probabilities.
    """
    height, width = size
    rows = max(1, _BAND_ELEMENTS // (views[0].num_classes * width))
    pred = torch.empty(size, dtype=torch.uint8, device=views[0].device)  # one allocation: bands would fragment the heap
    loss = torch.zeros((), dtype=torch.float64, device=views[0].device)
    for first in range(0, height, rows):
        last = min(height, first + rows)
        scores = _mean([view.band(first, last) for view in views])
        pred[first:last] = scores.max(0)[1]  # on CPUs, argmax takes more than twice as long
        if probabilities is not None:
            probabilities[:, first:last] = scores.softmax(0)
        if mask is not None:
            truth = mask[None, first:last].long()
            loss += F.cross_entropy(scores[None], truth, ignore_index=IGNORE, reduction="sum")
    return pred, loss


def _mean(views: list[torch.Tensor]) -> torch.Tensor:
    """Return the log of the views' mean class probabilities, or the logits of a single view unchanged."""
    if len(views) == 1:
        return views[0]
    total = F.log_softmax(views[0], 0)
    for view in views[1:]:
        total = torch.logaddexp(total, F.log_softmax(view, 0))
    return total - math.log(len(views))
