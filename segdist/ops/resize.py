"""Resize of logits from the model's stride to the mask's size, fused with the loss or with the argmax.

The resized (B, K, H, W) logits are never stored: the loss works on bands of rows and computes its gradient in the same
pass; the prediction works on blocks of classes. The model supplies the resize rule (`align_corners`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from segdist.ops import IGNORE

_BAND_ELEMENTS = 1 << 22  # elements in a band of resized logits: 16 MB in fp32, small enough for the caches


@dataclass(frozen=True)
class PixelTerms:
    """Per-pixel loss terms; p is the probability of the pixel's class.

    cross_entropy * (the smoothed -log p) + focal * (1 - p) ** gamma * -log p
    """

    cross_entropy: float = 1.0
    label_smoothing: float = 0.0  # defined as in F.cross_entropy(weight=, label_smoothing=)
    focal: float = 0.0
    gamma: float = 2.0

    def __call__(self, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cost, -d cost / d log p) from log p, without the smoothed part."""
        share = self.cross_entropy * (1 - self.label_smoothing)
        if not self.focal:
            return -share * log_p, torch.full_like(log_p, share)
        miss = (-torch.expm1(log_p)).clamp_(min=torch.finfo(log_p.dtype).tiny)  # 1 - p; gamma - 1 may be negative
        hard = self.focal * miss**self.gamma
        steeper = self.focal * self.gamma * miss ** (self.gamma - 1) * (1 - miss) * log_p
        return -(share + hard) * log_p, share + hard - steeper


def cross_entropy_sum(
    logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a scalar: the cross-entropy of bilinearly resized logits, summed over valid pixels and weighted by class (K,).

    `logits` is (B, K, h, w) in any float type; `masks` is uint8 (B, H, W) with 255 for void. Computed in fp32 (fp64 for fp64
    logits). An all-void mask gives 0 and a zero gradient. Memory beyond the logits' gradient is bounded, whatever H and W.
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    weights = None if weights is None else weights.to(logits)
    if must_be_deterministic(logits):  # F.nll_loss has no deterministic kernel
        return pixel_sum(logits, masks, align_corners, weights).to(logits.dtype)
    if logits.shape[2:] == masks.shape[1:]:
        return F.cross_entropy(logits, masks.long(), weights, ignore_index=IGNORE, reduction="sum")
    return _PixelSum.apply(logits, masks, align_corners, weights, None, None).to(logits.dtype)


def pixel_sum(
    logits: torch.Tensor,
    masks: torch.Tensor,
    align_corners: bool,
    weights: torch.Tensor | None = None,
    boost: torch.Tensor | None = None,
    terms: PixelTerms = PixelTerms(),
) -> torch.Tensor:
    """Return a float64 scalar: `terms` summed over valid pixels, times the class weights (K,), times `boost` (B, H, W).

    `logits` is (B, K, h, w) in fp32 or fp64; `masks` is uint8 (B, H, W). Memory beyond the logits' gradient is bounded.
    """
    return _PixelSum.apply(logits, masks, align_corners, weights, boost, terms)


class _PixelSum(torch.autograd.Function):
    """Computes the gradient in the forward. Without `terms` the loss is plain cross-entropy in PyTorch's own arithmetic."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        masks: torch.Tensor,
        align_corners: bool,
        weights: torch.Tensor | None,
        boost: torch.Tensor | None,
        terms: PixelTerms | None,
    ) -> torch.Tensor:
        resizing = Resizing(logits, tuple(masks.shape[1:]), align_corners)
        total = logits.new_zeros((), dtype=torch.float64)
        grad = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        for first, last in resizing.bands():
            log_prob = F.log_softmax(resizing.resize(logits, first, last), 1)
            target = masks[:, None, first:last].long()  # (B, 1, rows, W)
            valid = target != IGNORE
            at = torch.where(valid, target, 0)
            slope = valid if weights is None else valid * weights[at]
            smoothing: _Smoothing | None = None
            if terms is None:
                total += F.nll_loss(log_prob, target[:, 0], weights, ignore_index=IGNORE, reduction="sum")
            else:
                factor = valid.to(logits.dtype) if boost is None else valid * boost[:, None, first:last]
                cost, steepness = terms(log_prob.gather(1, at))
                slope = factor if weights is None else factor * weights[at]
                total += (cost * slope).sum(dtype=torch.float64)
                slope = slope * steepness
                if terms.cross_entropy * terms.label_smoothing:
                    smoothing = _Smoothing(
                        terms.cross_entropy * terms.label_smoothing * factor, weights, logits.shape[1]
                    )
                    total += smoothing.cost(log_prob)
            if grad is None:
                continue
            prob = log_prob.exp_()
            extra = None if smoothing is None else smoothing.gradient(prob)
            d_resized = prob.scatter_add_(1, at, -valid.to(prob.dtype))
            d_resized *= slope
            resizing.add_gradient(d_resized if extra is None else d_resized.add_(extra), first, last, grad)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: torch.Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * d_total, None, None, None, None, None


class _Smoothing:
    """The part of a smoothed target that is spread evenly over all classes, times `factor` (B, 1, rows, W)."""

    def __init__(self, factor: torch.Tensor, weights: torch.Tensor | None, num_classes: int) -> None:
        self._factor = factor / num_classes
        self._weights = None if weights is None else weights[:, None, None]
        self._total: torch.Tensor | int = num_classes if weights is None else weights.sum()

    def cost(self, log_prob: torch.Tensor) -> torch.Tensor:
        weighted = log_prob if self._weights is None else log_prob * self._weights
        return -(self._factor * weighted.sum(1, keepdim=True)).sum(dtype=torch.float64)

    def gradient(self, prob: torch.Tensor) -> torch.Tensor:
        return (prob * self._total).sub_(1 if self._weights is None else self._weights).mul_(self._factor)


def must_be_deterministic(logits: torch.Tensor) -> bool:
    """Return whether torch must use deterministic algorithms on a device where scattered additions are not deterministic."""
    return logits.is_cuda and torch.are_deterministic_algorithms_enabled()


class Resizing:
    """The bilinear resize of logits (B, k, h, w) to (H, W), one band of rows at a time, and its adjoint.

    By default the adjoint scatters, in no fixed order on a GPU. With `products` (the default if determinism is required) it
    is two products with the (H, h) and (W, w) interpolation matrices.
    """

    def __init__(
        self, logits: torch.Tensor, size: tuple[int, ...], align_corners: bool, products: bool | None = None
    ) -> None:
        b, k, h, w = logits.shape
        self.height, self._width = size
        self._same, self._align = (h, w) == tuple(size), align_corners
        self._band = max(1, _BAND_ELEMENTS // (b * k * self._width))
        self._low, self._high, self._weight = source_rows(0, self.height, h, self.height, align_corners, logits)
        self._columns: torch.Tensor | None = None  # (W, w)
        if must_be_deterministic(logits) if products is None else products:
            one_hot = torch.eye(w, dtype=logits.dtype, device=logits.device)[:, None, None]
            self._columns = _columns(one_hot, self._width, align_corners)[:, 0, 0].T

    def bands(self) -> Iterator[tuple[int, int]]:
        """Yield (first, last) rows of bands of about _BAND_ELEMENTS elements, from the top."""
        for first in range(0, self.height, self._band):
            yield first, min(self.height, first + self._band)

    def resize(self, logits: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Return resized (B, k, last - first, W) logits for any k. The result may be a view of `logits`: do not write to it."""
        if self._same:
            return logits[:, :, first:last]
        low, high, weight = self._low[first:last], self._high[first:last], self._weight[first:last]
        return _columns(torch.lerp(logits[:, :, low], logits[:, :, high], weight), self._width, self._align)

    def add_gradient(self, d_resized: torch.Tensor, first: int, last: int, grad: torch.Tensor) -> None:
        """Apply the adjoint of `resize` to d_resized (B, k, last - first, W) and add the result to `grad` (B, k, h, w)."""
        if self._same:
            grad[:, :, first:last] += d_resized
            return
        low, high, weight = self._low[first:last], self._high[first:last], self._weight[first:last]
        if self._columns is not None:
            source = torch.arange(grad.shape[2], device=grad.device)
            rows = (low[:, None] == source) * (1 - weight) + (high[:, None] == source) * weight  # (rows, h)
            with torch.autocast(grad.device.type, enabled=False):
                grad += rows.T @ (d_resized @ self._columns)
            return
        narrow = [*d_resized.shape[:3], grad.shape[3]]
        d_narrow = torch.ops.aten.upsample_bilinear2d_backward(d_resized, d_resized.shape[2:], narrow, self._align)
        grad.index_add_(2, low, d_narrow * (1 - weight))
        grad.index_add_(2, high, d_narrow * weight)


def _columns(narrow: torch.Tensor, width: int, align_corners: bool) -> torch.Tensor:
    """Resize the last dimension only. Like F.interpolate, without its slow path under deterministic algorithms."""
    return torch.ops.aten.upsample_bilinear2d(narrow, [narrow.shape[2], width], align_corners)


def source_rows(first: int, last: int, size: int, full: int, align_corners: bool, like: torch.Tensor) -> Any:
    """Return (low, high, weight) for output rows first..last-1 of `full`: the two nearest source rows of `size`, blended."""
    rows = torch.arange(first, last, device=like.device, dtype=torch.float64)
    at = rows * ((size - 1) / max(full - 1, 1)) if align_corners else ((rows + 0.5) * (size / full) - 0.5).clamp_(min=0)
    low = at.floor().clamp_(max=size - 1)
    weight = (at - low).to(like.dtype)[:, None]
    low = low.long()
    return low, (low + 1).clamp_(max=size - 1), weight


def predict(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """Return uint8 (B, *size): the exact argmax of bilinearly resized logits (B, K, h, w). Ties go to the lower class."""
    logits = logits.float()
    if tuple(logits.shape[2:]) == tuple(size):
        return logits.argmax(1).to(torch.uint8)
    return torch.stack([_predict_one(one[None], size, align_corners) for one in logits])


def _predict_one(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    k = logits.shape[1]
    step = max(1, min(k, _BAND_ELEMENTS // (size[0] * size[1])))
    best = pred = torch.empty(0)
    for first in range(0, k, step):
        resized = F.interpolate(logits[:, first : first + step], size, mode="bilinear", align_corners=align_corners)
        value, index = resized[0].max(0)
        index = (index + first).to(torch.uint8)
        if first == 0:
            best, pred = value, index
        else:
            better = value > best
            best, pred = torch.where(better, value, best), torch.where(better, index, pred)
    return pred
