"""Which pixels a model finds hard."""

from __future__ import annotations

import math

import torch

from segdist.ops import IGNORE
from segdist.ops.resize import Resizing


@torch.no_grad()
def hard_pixels(
    logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, threshold: float, min_kept: float
) -> torch.Tensor:
    """bool (B, H, W): valid pixels whose class has a probability below `threshold`, at least the share `min_kept` of them.

    logits (B, K, h, w) in fp32 or fp64. Where too few lie below, the hardest are taken, and with the last of these all that
    are exactly as hard: so what is chosen does not depend on an order.
    """
    log_p = torch.where(masks == IGNORE, math.inf, _log_prob(logits, masks, align_corners))
    num_kept = ((masks != IGNORE).sum().double() * min_kept).ceil().long()
    last = (num_kept - 1).clamp_(min=0)[None]
    hardest = log_p.flatten().sort()[0].gather(0, last)  # not kthvalue: its k would have to leave the device
    return (log_p < math.log(threshold)) | ((log_p <= hardest) & (masks != IGNORE))


def _log_prob(logits: torch.Tensor, masks: torch.Tensor, align_corners: bool) -> torch.Tensor:
    """(B, H, W): log of the probability of the pixel's class; of class 0 where it is void."""
    resizing = Resizing(logits, tuple(masks.shape[1:]), align_corners)
    out = logits.new_empty(masks.shape)
    for first, last in resizing.bands():
        wide, target = resizing.wide(logits, first, last), masks[:, None, first:last].long()
        at = torch.where(target == IGNORE, 0, target)
        out[:, first:last] = wide.gather(1, at)[:, 0] - torch.logsumexp(wide, 1)
    return out
