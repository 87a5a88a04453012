"""The loss of a global batch: a sum over its micro-batches, with divisors that are known before any backward pass.

The divisors are computed from the masks alone, summed over micro-batches and ranks in integers, and divide once. The gradient
therefore does not depend on how void pixels, a rare class or boundaries are distributed over micro-batches and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from segdist.config import Loss
from segdist.data.class_weights import class_weights
from segdist.ops import IGNORE
from segdist.ops.boundary import class_distance
from segdist.ops.hard_pixels import hard_pixels
from segdist.ops.overlap import lovasz_softmax, soft_counts
from segdist.ops.resize import PixelTerms, cross_entropy_sum, pixel_sum


class Criterion:
    """The weighted sum of a config's loss terms. p is the softmax of the logits at the mask's size, y the pixel's class.

    Pixel terms are a mean over the valid pixels of the global batch, with the weights class_weight[y] * boundary:
      cross_entropy  -log p_y; label smoothing as in PyTorch (Szegedy et al. 2016, arXiv:1512.00567, section 7)
      focal          -(1 - p_y)^gamma log p_y (Lin et al. 2017, arXiv:1708.02002, equations 4 and 5, class weights for alpha);
                     a softmax over classes and a mean over pixels; the paper uses sigmoids and divides by the number of anchors
      boundary       1 + w exp(-d^2 / (2 sigma^2)), after Ronneberger et al. 2015 (arXiv:1505.04597, equation 2): here d is the
                     chessboard distance to the nearest pixel of another class, and the weight is 1 beyond 3 sigma

    Micro-batch terms are a mean over the micro-batches that have valid pixels:
      ohem           cross-entropy of hard pixels only, see ops.hard_pixels (Shrivastava et al. 2016, arXiv:1604.03540, section
                     4; for pixels, with a threshold and a minimum number: Wu et al. 2016, arXiv:1605.06885)
      dice           1 - 2I / (P + T) (Milletari et al. 2016, arXiv:1606.04797, section 3, with sums instead of sums of squares)
      jaccard        1 - I / (P + T - I) (Rahman & Wang 2016, Int. Symp. on Visual Computing, doi:10.1007/978-3-319-50835-1_22)
      tversky        1 - I / (I + alpha (P - I) + (1 - alpha) (T - I)) (Salehi et al. 2017, arXiv:1706.05721, equation 3)
      lovasz         Lovász-softmax over all pixels of the micro-batch (Berman et al. 2018, arXiv:1705.08790, equations 8 to 12)
    with I = sum of p_k where y = k, P = sum of p_k, T = number of pixels with y = k, all over the micro-batch's valid pixels.
    Each is averaged over the classes k that occur in its masks.
    """

    def __init__(self, cfg: Loss, class_pixels: Sequence[int]) -> None:
        """`class_pixels` (K,) are the training pixels of each class. Raises ConfigError as class_weights does."""
        self._cfg, self._weights = cfg, class_weights(cfg, class_pixels)
        near = any(cfg.pixel_terms.values()) and cfg.boundary_weight > 0
        self._reach = math.floor(3 * cfg.boundary_sigma_px) if near else 0  # px
        d = torch.arange(self._reach + 1, dtype=torch.float64)
        self._boost = 1 + cfg.boundary_weight * torch.exp(-0.5 * (d / cfg.boundary_sigma_px) ** 2)
        self._boost[0] = 1  # class_distance is 0 beyond the reach
        classes = torch.ones(1) if self._weights is None else self._weights
        self._weight = torch.outer(classes.double(), self._boost).flatten()  # per cell of the tally
        self._terms = PixelTerms(cfg.cross_entropy, cfg.label_smoothing, cfg.focal, cfg.focal_gamma)
        self._plain = not (cfg.label_smoothing or cfg.focal or self._reach)

    def tally(self, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return int64 (n,): the tally of uint8 (B, H, W) masks, one tensor per micro-batch, to be summed over ranks.

        It holds the number of micro-batches with valid pixels, then the valid pixels by class and boundary distance, where the
        weights depend on these.
        """
        return self.total([self.count(mask) for mask in masks])

    def total(self, counts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the tally, from the result of `count` for each micro-batch."""
        total = torch.zeros(1 + self._weight.numel(), dtype=torch.int64)
        for count in counts:
            total[0] += count.any()
            total[1:] += count
        return total

    def count(self, mask: torch.Tensor) -> torch.Tensor:
        """Return int64 (classes * distances,): the valid pixels of uint8 (B, H, W). Without class weights there is one class.

        Boundary weights make it expensive, so the stream's threads compute it.
        """
        if self._weight.numel() == 1:
            return (mask != IGNORE).sum()[None]
        num_distances = len(self._boost)
        cell = mask.int() * num_distances + class_distance(mask, self._reach)
        table = torch.bincount(cell.flatten(), minlength=256 * num_distances).view(256, num_distances)[:IGNORE]
        return table.sum(0) if self._weights is None else table[: len(self._weights)].flatten()

    def divisors(self, tallied: torch.Tensor) -> torch.Tensor:
        """Return float64 (2,): the divisors of pixel and micro-batch terms, from the sum of all ranks' tallies; never 0."""
        total = torch.stack([(tallied[1:] * self._weight.to(tallied.device)).sum(), tallied[0].double()])
        return torch.where(total > 0, total, 1.0)

    def __call__(
        self,
        outputs: torch.Tensor | tuple[torch.Tensor, ...],
        masks: torch.Tensor,
        divisors: torch.Tensor,
        align_corners: bool,
    ) -> torch.Tensor:
        """Return this micro-batch's part of the global batch's loss (the sum over micro-batches and ranks), a float64 scalar.

        `outputs` are logits (B, K, h, w) of any float type, optionally with those of auxiliary heads, which are weighted by
        `aux_weight`. `masks` are uint8 (B, H, W) on the same device. Computed in fp32 (fp64 for fp64 logits), independent of
        autocast. Besides some numbers per pixel, each term holds a gradient of the logits' size until the backward pass.
        """
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        boost = self._boost.to(masks.device)[class_distance(masks, self._reach).long()] if self._reach else None
        divisors = divisors.to(masks.device)
        loss = self._head_loss(heads[0], masks, boost, divisors, align_corners)
        for aux in heads[1:] if self._cfg.aux_weight else ():
            loss = loss + self._cfg.aux_weight * self._head_loss(aux, masks, boost, divisors, align_corners)
        return loss

    def _head_loss(
        self,
        logits: torch.Tensor,
        masks: torch.Tensor,
        boost: torch.Tensor | None,
        divisors: torch.Tensor,
        align_corners: bool,
    ) -> torch.Tensor:
        """Return the loss of one head's logits. `boost` is float64 (B, H, W)."""
        cfg = self._cfg
        logits = logits if logits.dtype == torch.float64 else logits.float()
        weights = None if self._weights is None else self._weights.to(logits)
        parts: list[torch.Tensor] = []
        if self._plain and cfg.cross_entropy:
            parts.append(cfg.cross_entropy * cross_entropy_sum(logits, masks, align_corners, weights) / divisors[0])
        elif any(cfg.pixel_terms.values()):
            boost = None if boost is None else boost.to(logits)
            parts.append(pixel_sum(logits, masks, align_corners, weights, boost, self._terms) / divisors[0])
        if cfg.ohem:
            parts.append(cfg.ohem * self._ohem(logits, masks, align_corners, weights) / divisors[1])
        if cfg.dice or cfg.jaccard or cfg.tversky or cfg.lovasz:
            parts.append(self._overlap(logits, masks, align_corners) / divisors[1])
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def _ohem(
        self, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, weights: torch.Tensor | None
    ) -> torch.Tensor:
        hard = hard_pixels(logits, masks, align_corners, self._cfg.ohem_threshold, self._cfg.ohem_min_kept)
        kept = hard.to(logits.dtype)
        weight = kept if weights is None else kept * weights[torch.where(hard, masks, 0).long()]
        total = weight.sum(dtype=torch.float64)
        return pixel_sum(logits, masks, align_corners, weights, kept) / torch.where(total > 0, total, 1.0)

    def _overlap(self, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool) -> torch.Tensor:
        """Return the weighted sum of dice, jaccard, tversky and lovasz of one micro-batch; 0 if it has no valid pixel."""
        cfg = self._cfg
        truth = torch.bincount(masks.flatten(), minlength=256)[: logits.shape[1]]
        loss = logits.new_zeros((), dtype=torch.float64)
        if cfg.dice or cfg.jaccard or cfg.tversky:
            hit, anywhere = soft_counts(logits, masks, align_corners)
            mean = partial(_mean_miss, truth > 0)
            miss, false = truth - hit, anywhere - hit
            loss = loss + cfg.dice * mean(2 * hit, anywhere + truth) + cfg.jaccard * mean(hit, anywhere + miss)
            loss = loss + cfg.tversky * mean(hit, hit + cfg.tversky_alpha * false + (1 - cfg.tversky_alpha) * miss)
        if cfg.lovasz:
            present = truth.nonzero()[:, 0].tolist()
            loss = loss + cfg.lovasz * lovasz_softmax(logits, masks, align_corners, present)
        return loss


def _mean_miss(present: torch.Tensor, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return the mean of 1 - part / whole over the classes `present` (K,); 0 if there are none."""
    whole = whole.clamp(min=1e-7)  # px; avoids 0 / 0 if all pixels are void, or with tversky_alpha=1 if p_k rounds to 0
    return ((1 - part / whole) * present).sum() / present.sum().clamp(min=1)
