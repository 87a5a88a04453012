"""Selection of hard pixels (online hard example mining)."""

from __future__ import annotations

import math

import torch

from segdist.ops import IGNORE
from segdist.ops.resize import Resizing


@torch.no_grad()
def hard_pixels(
    logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, threshold: float, min_kept: float
) -> torch.Tensor:
    """Return bool (B, H, W): valid pixels whose class has a probability below `threshold`, but at least a share `min_kept`.

    `logits` is (B, K, h, w) in fp32 or fp64. If too few pixels are below the threshold, the hardest ones are taken. Ties with
    the last of these are all taken, so the selection does not depend on an order.
    """
    log_p = torch.where(masks == IGNORE, math.inf, _log_prob(logits, masks, align_corners))
    num_kept = ((masks != IGNORE).sum().double() * min_kept).ceil().long()
    last = (num_kept - 1).clamp_(min=0)[None]
    hardest = log_p.flatten().sort()[0].gather(0, last)  # not kthvalue, whose k would have to leave the device
    return (log_p < math.log(threshold)) | ((log_p <= hardest) & (masks != IGNORE))


def _log_prob(logits: torch.Tensor, masks: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """Return (B, H, W): the log-probability of each pixel's class, or of class 0 where the pixel is void."""
    resizing = Resizing(logits, tuple(masks.shape[1:]), align_corners)
    out = logits.new_empty(masks.shape)
    for first, last in resizing.bands():
        resized, target = resizing.resize(logits, first, last), masks[:, None, first:last].long()
        at = torch.where(target == IGNORE, 0, target)
        out[:, first:last] = resized.gather(1, at)[:, 0] - torch.logsumexp(resized, 1)
    return out
