"""What measures of overlap need of resized logits, without the resized logits: soft counts, and the Lovász-softmax loss.

Both depend on all pixels of a class before the gradient of any is known. So both go over the logits twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from segdist.ops import IGNORE
from segdist.ops.resize import Resizing


def soft_counts(logits: torch.Tensor, masks: torch.Tensor, align_corners: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 (K,), (K,): over valid pixels, the sums of p_k where the mask says k, and of p_k anywhere.

    logits (B, K, h, w) in fp32 or fp64, resized bilinearly; masks uint8 (B, H, W). Memory beyond the logits' gradient is
    bounded. The second pass is made in the backward.
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
            prob = F.softmax(resizing.wide(logits, first, last), 1).mul_(valid)
            hit.index_add_(0, at.flatten(), prob.gather(1, at).flatten().double())
            anywhere += prob.sum(3).sum((0, 2), dtype=torch.float64)  # a row of pixels in the logits' own precision
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
            prob = F.softmax(resizing.wide(logits, first, last), 1).mul_(valid)
            d_wide = prob * d_anywhere
            d_wide.scatter_add_(1, at, prob.gather(1, at) * d_hit[at])  # p * dp
            d_wide.addcmul_(prob, d_wide.sum(1, keepdim=True), value=-1)
            resizing.back(d_wide, first, last, grad)
        return grad, None, None


def _target(masks: torch.Tensor, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, rows, W): the class of each pixel, 0 where it is void, and whether it is valid."""
    target = masks[:, None, first:last].long()
    valid = target != IGNORE
    return torch.where(valid, target, 0), valid


def lovasz_softmax(logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, present: list[int]) -> torch.Tensor:
    """float64 scalar: the mean over the classes `present` of the Lovász extension of the Jaccard loss; 0 without any.

    logits (B, K, h, w) in fp32 or fp64; masks uint8 (B, H, W). Memory: some twenty numbers per pixel, whatever K. Time: one
    sort of all pixels for each present class. A gradient is made on the way, by a second pass over the logits.
    """
    return _Lovasz.apply(logits, masks, align_corners, present)


class _Lovasz(torch.autograd.Function):
    """With G_k = d loss / d p_k, the gradient in the resized logits is p_k G_k - p_k S, S = sum_j p_j G_j.

    The adjoint of the resize is linear: the first part goes back class by class, the second once S is known. So no G is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, present: list[int]
    ) -> torch.Tensor:
        resizing = Resizing(logits, tuple(masks.shape[1:]), align_corners)
        scale = logits.new_empty(masks.shape)  # log-sum-exp
        for first, last in resizing.bands():
            scale[:, first:last] = torch.logsumexp(resizing.wide(logits, first, last), 1)
        total, grad = logits.new_zeros((), dtype=torch.float64), torch.zeros_like(logits)
        sum_pg = torch.zeros_like(scale)
        for k in present:
            prob = (resizing.wide(logits[:, k : k + 1], 0, resizing.height)[:, 0] - scale).exp_()
            value, slope = _extension(prob, masks == k, masks == IGNORE)
            total += value
            slope *= prob
            sum_pg += slope
            resizing.back(slope[:, None], 0, resizing.height, grad[:, k : k + 1])
        for first, last in resizing.bands():
            prob = (resizing.wide(logits, first, last) - scale[:, None, first:last]).exp_()
            resizing.back(prob.mul_(sum_pg[:, None, first:last]).neg_(), first, last, grad)
        num_present = max(len(present), 1)
        ctx.save_for_backward(grad.div_(num_present))
        return total / num_present

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: torch.Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * d_total, None, None, None


def _extension(prob: torch.Tensor, is_class: torch.Tensor, void: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The Lovász extension of one class's Jaccard loss, and its derivative by `prob`; all of one shape.

    With the errors |is_class - p| in falling order, the i-th weighs what it adds to 1 - I/U: 1/U where it is of the class, and
    I / (U (U - 1)) where not; these have no difference of near-equal numbers, which in fp32 leaves little of a million pixels.
    """
    error = torch.where(
        void, -1, torch.where(is_class, 1 - prob, prob)
    )  # void comes last, where I = 0: it weighs nothing
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
