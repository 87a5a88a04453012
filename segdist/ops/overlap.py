"""Overlap losses on resized logits that are never stored: soft counts (for Dice-like losses) and the Lovász-softmax loss.

Both need all pixels of a class before any gradient is known, so both pass over the logits twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from segdist.ops import IGNORE
from segdist.ops.resize import Resizing


def soft_counts(logits: torch.Tensor, masks: torch.Tensor, align_corners: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 (K,), (K,): over valid pixels, the sum of p_k where the mask is k, and the sum of p_k everywhere.

    `logits` is (B, K, h, w) in fp32 or fp64 and is resized bilinearly; `masks` is uint8 (B, H, W). Memory beyond the logits'
    gradient is bounded. The second pass runs in the backward.
    """
    return _SoftCounts.apply(logits, masks, align_corners)


class _SoftCounts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(logits, masks)
        ctx.align_corners = align_corners
        resizing = Resizing(logits, tuple(masks.shape[1:]), align_corners)
        hit, anywhere = logits.new_zeros((2, logits.shape[1]), dtype=torch.float64)
        for first, last in resizing.bands():
            at, valid = _target(masks, first, last)
            prob = F.softmax(resizing.resize(logits, first, last), 1).mul_(valid)
            hit.index_add_(0, at.flatten(), prob.gather(1, at).flatten().double())
            # one row of pixels is summed in the logits' precision
            anywhere += prob.sum(3).sum((0, 2), dtype=torch.float64)
        return hit, anywhere

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hit: torch.Tensor, d_anywhere: torch.Tensor) -> Any:
        logits, masks = ctx.saved_tensors
        d_hit, d_anywhere = d_hit.to(logits.dtype), d_anywhere.to(logits.dtype)[:, None, None]
        resizing = Resizing(logits, tuple(masks.shape[1:]), ctx.align_corners)
        grad = torch.zeros_like(logits)
        for first, last in resizing.bands():
            at, valid = _target(masks, first, last)
            prob = F.softmax(resizing.resize(logits, first, last), 1).mul_(valid)
            d_resized = prob * d_anywhere
            d_resized.scatter_add_(1, at, prob.gather(1, at) * d_hit[at])  # p * dp
            d_resized.addcmul_(prob, d_resized.sum(1, keepdim=True), value=-1)
            resizing.add_gradient(d_resized, first, last, grad)
        return grad, None, None


def _target(masks: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two (B, 1, rows, W): each pixel's class (0 where it is void), and whether it is valid."""
    target = masks[:, None, first:last].long()
    valid = target != IGNORE
    return torch.where(valid, target, 0), valid


def lovasz_softmax(logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, present: list[int]) -> torch.Tensor:
    """Return a float64 scalar: the mean Lovász extension of the Jaccard loss over the classes `present`; 0 if there are none.

    `logits` is (B, K, h, w) in fp32 or fp64; `masks` is uint8 (B, H, W). Memory is about twenty numbers per pixel, whatever K.
    Each present class costs one sort of all pixels. The gradient is computed in the forward, by a second pass over the logits.
    """
    return _Lovasz.apply(logits, masks, align_corners, present)


class _Lovasz(torch.autograd.Function):
    """With G_k = d loss / d p_k, the gradient of the resized logits is p_k G_k - p_k S, where S = sum_j p_j G_j.

    The adjoint of the resize is linear. The first term is resized back class by class, the second once S is known, so no G_k
    is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, present: list[int]
    ) -> torch.Tensor:
        resizing = Resizing(logits, tuple(masks.shape[1:]), align_corners)
        scale = logits.new_empty(masks.shape)  # log-sum-exp
        for first, last in resizing.bands():
            scale[:, first:last] = torch.logsumexp(resizing.resize(logits, first, last), 1)
        total, grad = logits.new_zeros((), dtype=torch.float64), torch.zeros_like(logits)
        sum_pg = torch.zeros_like(scale)
        for k in present:
            prob = (resizing.resize(logits[:, k : k + 1], 0, resizing.height)[:, 0] - scale).exp_()
            value, slope = _extension(prob, masks == k, masks == IGNORE)
            total += value
            slope *= prob
            sum_pg += slope
            resizing.add_gradient(slope[:, None], 0, resizing.height, grad[:, k : k + 1])
        for first, last in resizing.bands():
            prob = (resizing.resize(logits, first, last) - scale[:, None, first:last]).exp_()
            resizing.add_gradient(prob.mul_(sum_pg[:, None, first:last]).neg_(), first, last, grad)
        num_present = max(len(present), 1)
        ctx.save_for_backward(grad.div_(num_present))
        return total / num_present

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: torch.Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * d_total, None, None, None


def _extension(prob: torch.Tensor, is_class: torch.Tensor, void: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Lovász extension of one class's Jaccard loss, and its derivative by `prob`. All tensors have one shape.

    Errors |is_class - p| are sorted in descending order. The weight of the i-th is what it adds to 1 - I/U: 1/U for a pixel of
    the class, and I / (U (U - 1)) otherwise. This form avoids differences of nearly equal numbers, which lose most digits in
    fp32 at a million pixels.
    """
    # void sorts last, where I = 0 and the weight is 0
    error = torch.where(void, -1, torch.where(is_class, 1 - prob, prob))
    error, order = error.flatten().sort(descending=True)
    truth = is_class.flatten()[order]
    misses = truth.cumsum(0, dtype=torch.int64)
    inter = misses[-1] - misses
    union = misses[-1] + torch.arange(1, len(order) + 1, device=prob.device) - misses
    inter, union = inter.to(prob.dtype), union.to(prob.dtype)
    rise = torch.where(truth, 1, inter / (union - 1)) / union
    value = (error.clamp_(min=0) * rise).sum(dtype=torch.float64)
    slope = torch.empty_like(rise)
    slope[order] = torch.where(truth, -rise, rise)
    return value, slope.view(prob.shape)
