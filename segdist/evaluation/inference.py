"""From uint8 images to classes and their loss: whole or in sliding windows, in one view or in several.

The (B, K, H, W) scores never exist. A large image is read from the top down: a row of windows is blended at the model's
stride, its finished rows of logits are resized once to the mask's size, a band of rows at a time, and forgotten. So memory
is bounded by a row of windows, not by the image. Several views (scales, mirrored) go down the image side by side.

Gaussian weights of windows: nnU-Net (Isensee et al. 2021), sigma = 1/8 of the window. Several views are averaged as class
probabilities, as mmsegmentation averages them: logits of views differ in scale, and their mean would follow the surest view.
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

_BAND_ELEMENTS = 1 << 22  # of a band of resized scores: 16 MB in fp32
Settled = tuple[torch.Tensor, torch.Tensor]  # uint8 (B, H, W) classes, and the sum of the loss over valid pixels


@dataclass(frozen=True)
class InferenceSettings:
    """How the model looks at an image. Scores that were made by different recipes do not compare."""

    window: tuple[int, int] | None = None  # (height, width) px, taken up to the model's stride; None: the whole image
    overlap: float = 0.5  # share of a window that the next one covers again
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False  # mirrored, too

    def words(self) -> str:
        """The recipe as a part of the protocol."""
        how = "whole"
        if self.window is not None:
            how = f"windows of {self.window[0]}x{self.window[1]} px, overlap {self.overlap:g}, Gaussian weights"
        views = f"scales {', '.join(format(s, 'g') for s in self.scales)}"
        if self.scales == (1.0,):
            views = "single-scale"
        return f"{how} / {views}{' and mirrored' if self.flip else ''}"


PLAIN = InferenceSettings()


def inference_settings(cfg: Eval, crop_size: Size) -> InferenceSettings:
    """The recipe that a config asks for; windows are as large as the training crop unless it says otherwise."""
    window = (cfg.window_size or crop_size) if cfg.mode == "sliding" else None
    return InferenceSettings(window, cfg.window_overlap, cfg.scales, cfg.flip)


@torch.no_grad()  # see segmenter.infer
def segment(
    model: Segmenter,
    images: torch.Tensor,
    size: tuple[int, int],
    how: InferenceSettings,
    batch_size: int,
    masks: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> Settled:
    """Classes at `size`, and the loss (0 without masks), of uint8 (B, 3, h, w) images, for a model in evaluation mode.

    `masks`, uint8 (B, *size), on the model's device. `keep`, float (B, K, *size) on any device, takes the class probabilities,
    a band of rows at a time. An image that fits into a window is seen whole, bit for bit. The model
    sees at most `batch_size` windows at a time; every scale holds a uint8 copy of the images. Where a head aligns corners at
    a stride above 1, its windows' logits lie less than a stride beside those of the whole image.
    """
    device, stride, align = next(model.parameters()).device, model.traits.stride, model.traits.align_corners
    if how.scales == (1.0,) and not how.flip and _fits(images, how.window, stride):
        logits = infer(model, images.to(device))
        for one, kept in zip(logits, () if keep is None else keep):
            _combine([_Resized(_Rows(iter([one]), one.shape[1], False), size, align)], size, None, kept)
        return settle(logits, size, align, masks)
    seen: list[list[_Rows]] = []  # [view][image]
    for scale in how.scales:
        scaled = _scaled(images, scale).to(device)
        for mirrored in (False, True) if how.flip else (False,):
            if how.window is None or _fits(scaled, how.window, stride):
                whole = infer(model, scaled.flip(3) if mirrored else scaled)
                seen.append([_Rows(iter([logits]), logits.shape[1], mirrored) for logits in whole])
            else:
                slides = (_slide(model, image, how.window, how.overlap, mirrored, batch_size) for image in scaled)
                seen.append([_Rows(slide, -(-scaled.shape[2] // stride), mirrored) for slide in slides])
    preds, loss = [], torch.zeros((), dtype=torch.float64, device=device)
    for i, views in enumerate(zip(*seen)):
        resized = [_Resized(rows, size, align) for rows in views]
        pred, one = _combine(resized, size, None if masks is None else masks[i], None if keep is None else keep[i])
        preds.append(pred)
        loss += one
    return torch.stack(preds), loss


def settle(
    logits: torch.Tensor, size: tuple[int, int], align_corners: bool, masks: torch.Tensor | None = None
) -> Settled:
    """Classes and loss of logits (B, K, h, w) of whole images."""
    pred = resize.predict(logits, size, align_corners)
    if masks is None:
        return pred, logits.new_zeros(())
    return pred, resize.cross_entropy_sum(logits, masks, align_corners)


@dataclass(frozen=True)
class _Rows:
    """Logits of one view of one image, in blocks (K, rows, w) from the top down."""

    blocks: Iterator[torch.Tensor]
    height: int  # rows in all
    mirrored: bool


def _scaled(images: torch.Tensor, scale: float) -> torch.Tensor:
    """uint8 (B, 3, h, w) images at another scale."""
    if scale == 1:
        return images
    size = (max(1, round(images.shape[2] * scale)), max(1, round(images.shape[3] * scale)))
    return torch.stack([resize_image(image, size) for image in images.cpu()])


def _fits(images: torch.Tensor, window: tuple[int, int] | None, stride: int) -> bool:
    return window is None or all(-(-n // stride) <= -(-w // stride) for n, w in zip(images.shape[2:], window))


def cover(size: int, window: int, overlap: float) -> tuple[list[int], np.ndarray]:
    """Starts of the windows that cover 0..size-1, and their weights, float64 (windows, window).

    All in logits. The last window is moved inwards. Weights are a Gaussian over the window, divided by what all windows have
    at the place: they add up to 1 everywhere. Windows of an image are products of rows and columns, and so are their weights.
    """
    window = min(window, size)
    starts = [*range(0, size - window, max(1, round(window * (1 - overlap)))), size - window]
    bell = np.exp(-0.5 * (8 * ((np.arange(window) + 0.5) / window - 0.5)) ** 2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += bell
    return starts, np.stack([bell / total[start : start + window] for start in starts])


def _slide(
    model: Segmenter, image: torch.Tensor, window: tuple[int, int], overlap: float, mirrored: bool, batch_size: int
) -> Iterator[torch.Tensor]:
    """Blended logits of a uint8 (3, H, W) image, or of its mirror image, in blocks (K, rows, w), from the top down.

    A block comes as soon as no window touches it any more, and is good until the next one is asked for.

    Windows begin at multiples of the model's stride, so that their logits lie on one grid; none is padded. Those at the
    right and the lower edge are less than a stride smaller where the image is no multiple of it.
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
        strip = strip.flip(2) if mirrored else strip
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
    """Numbers of the windows that share a forward pass: neighbours of one width."""
    widths = [min((left + columns) * stride, width) - left * stride for left in lefts]
    for _, run in itertools.groupby(range(len(lefts)), widths.__getitem__):
        alike = list(run)
        yield from (alike[i : i + batch_size] for i in range(0, len(alike), batch_size))


class _Resized:
    """One view of an image at the size of its mask, band after band from the top; holds only the logits still needed."""

    def __init__(self, rows: _Rows, size: tuple[int, int], align_corners: bool) -> None:
        self._blocks, self._mirrored, self._align = rows.blocks, rows.mirrored, align_corners
        self._held, self._top = next(self._blocks), 0  # (K, rows, w), and the number of its first row
        self._same_height, self._width = rows.height == size[0], size[1]
        like = self._held.new_zeros((), device="cpu")
        self._low, self._high, weight = resize.rows_below(0, size[0], rows.height, size[0], align_corners, like)
        self._weight = weight.to(self._held.device)
        self.num_classes, self.device = len(self._held), self._held.device

    def band(self, first: int, last: int) -> torch.Tensor:
        """Resized logits (K, last - first, W). Bands are asked for in order."""
        low, high = self._low[first:last], self._high[first:last]
        self._reach(int(low[0]), int(high[-1]) + 1)
        above, below = (self._held[:, (n - self._top).to(self.device)] for n in (low, high))
        narrow = above if self._same_height else torch.lerp(above, below, self._weight[first:last])
        wide = F.interpolate(narrow[None], (last - first, self._width), mode="bilinear", align_corners=self._align)[0]
        return wide.flip(2) if self._mirrored else wide

    def _reach(self, first: int, last: int) -> None:
        """Holds rows first..last-1; what lies above is forgotten."""
        while self._top + self._held.shape[1] < last:
            gone = min(first - self._top, self._held.shape[1])
            kept = self._held[:, gone:].clone()
            block = next(self._blocks)
            self._held, self._top = torch.cat([kept, block], 1) if kept.shape[1] else block, self._top + gone


def _combine(
    views: list[_Resized], size: tuple[int, int], mask: torch.Tensor | None, keep: torch.Tensor | None
) -> Settled:
    """Classes (H, W) and the loss of one image: of its only view's logits, or of the mean of all views' probabilities.

    `keep` (K, H, W) takes the probabilities.
    """
    height, width = size
    rows = max(1, _BAND_ELEMENTS // (views[0].num_classes * width))
    pred = torch.empty(
        size, dtype=torch.uint8, device=views[0].device
    )  # in one piece: small ones would scatter the heap
    loss = torch.zeros((), dtype=torch.float64, device=views[0].device)
    for first in range(0, height, rows):
        last = min(height, first + rows)
        scores = _mean([view.band(first, last) for view in views])
        pred[first:last] = scores.max(0)[1]  # on CPUs argmax takes more than twice as long
        if keep is not None:
            keep[:, first:last] = scores.softmax(0)
        if mask is not None:
            truth = mask[None, first:last].long()
            loss += F.cross_entropy(scores[None], truth, ignore_index=IGNORE, reduction="sum")
    return pred, loss


def _mean(views: list[torch.Tensor]) -> torch.Tensor:
    """The logarithm of the mean of the views' class probabilities; a single view's logits as they are."""
    if len(views) == 1:
        return views[0]
    total = F.log_softmax(views[0], 0)
    for view in views[1:]:
        total = torch.logaddexp(total, F.log_softmax(view, 0))
    return total - math.log(len(views))
