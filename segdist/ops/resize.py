"""Logits at the model's stride to the mask's size, joined with what is wanted there: the loss, or the predicted class.

The resized (B, K, H, W) logits never exist: the loss walks bands of rows and makes its gradient on the way, the
prediction walks classes. Both take the resize rule (`align_corners`) from the model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from segdist.ops import IGNORE

_BAND_ELEMENTS = 1 << 22  # of a band of resized logits: 16 MB in fp32, which stays near the caches


def cross_entropy_sum(
    logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Scalar: the sum over valid pixels of the cross-entropy of bilinearly resized logits, weighted by class (K,) if asked.

    logits (B, K, h, w) in any float type; masks uint8 (B, H, W) with 255 for void. Computed in fp32 (fp64 for fp64 logits).
    An all-void mask gives 0 with a zero gradient. Memory beyond the logits' gradient is bounded, whatever H and W.
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    weights = None if weights is None else weights.to(logits)
    if logits.shape[2:] == masks.shape[1:]:
        return F.cross_entropy(logits, masks.long(), weights, ignore_index=IGNORE, reduction="sum")
    return _ResizedCrossEntropy.apply(logits, masks, align_corners, weights)


def rows_below(first: int, last: int, size: int, full: int, align_corners: bool, like: torch.Tensor) -> Any:
    """For output rows first..last-1 of `full`: the two source rows of `size` between which they lie, and the weight."""
    rows = torch.arange(first, last, device=like.device, dtype=torch.float64)
    at = rows * ((size - 1) / max(full - 1, 1)) if align_corners else ((rows + 0.5) * (size / full) - 0.5).clamp_(min=0)
    low = at.floor().clamp_(max=size - 1)
    weight = (at - low).to(like.dtype)[:, None]
    low = low.long()
    return low, (low + 1).clamp_(max=size - 1), weight


class _ResizedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, weights: torch.Tensor | None
    ) -> torch.Tensor:
        b, k, h, w = logits.shape
        height, width = masks.shape[1:]
        band = max(1, _BAND_ELEMENTS // (b * k * width))
        total = logits.new_zeros((), dtype=torch.float64)
        grad = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        for first in range(0, height, band):
            last = min(height, first + band)
            low, high, weight = rows_below(first, last, h, height, align_corners, logits)
            narrow = torch.lerp(logits[:, :, low], logits[:, :, high], weight)  # (b, k, rows, w)
            wide = F.interpolate(narrow, (last - first, width), mode="bilinear", align_corners=align_corners)
            log_prob = F.log_softmax(wide, 1)
            target = masks[:, first:last].long()
            total += F.nll_loss(log_prob, target, weights, ignore_index=IGNORE, reduction="sum")
            if grad is None:
                continue
            valid = (target != IGNORE)[:, None]
            d_wide = log_prob.exp_()
            d_wide.scatter_add_(1, torch.where(valid[:, 0], target, 0)[:, None], -valid.to(d_wide.dtype))
            d_wide *= valid if weights is None else valid * weights[torch.where(valid, target[:, None], 0)]
            d_narrow = torch.ops.aten.upsample_bilinear2d_backward(
                d_wide, [last - first, width], [b, k, last - first, w], align_corners
            )
            grad.index_add_(2, low, d_narrow * (1 - weight))
            grad.index_add_(2, high, d_narrow * weight)
        ctx.save_for_backward(grad)
        return total.to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, d_total: torch.Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * d_total, None, None, None


def predict(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """uint8 (B, *size): the argmax of bilinearly resized logits (B, K, h, w), bit for bit; ties go to the lower class."""
    logits = logits.float()
    if tuple(logits.shape[2:]) == tuple(size):
        return logits.argmax(1).to(torch.uint8)
    return torch.stack([_predict_one(one[None], size, align_corners) for one in logits])


def _predict_one(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    k = logits.shape[1]
    step = max(1, min(k, _BAND_ELEMENTS // (size[0] * size[1])))
    best = pred = torch.empty(0)
    for first in range(0, k, step):
        wide = F.interpolate(logits[:, first : first + step], size, mode="bilinear", align_corners=align_corners)
        value, index = wide[0].max(0)
        index = (index + first).to(torch.uint8)
        if first == 0:
            best, pred = value, index
        else:
            better = value > best
            best, pred = torch.where(better, value, best), torch.where(better, index, pred)
    return pred
