"""The interface of every model: normalised images in, logits and their resize rule out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segdist.ops.pixels import to_input

Constants = tuple[float, float, float]  # of red, green, blue in 0..1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Traits:
    """What the rest of segdist must know of a model."""

    mean: Constants
    std: Constants
    align_corners: bool  # rule by which its logits are resized to the mask
    stride: int  # image px per logit
    multiple: int  # image sides are padded to a multiple of this, px
    least: int  # and to at least this, px
    encoder_prefix: str  # parameters whose names begin so are the encoder; all others are the head


class Segmenter(nn.Module):
    """A network with its traits. `arch` is all that `models.rebuild` needs; JSON-able."""

    def __init__(
        self,
        net: Any,
        logits_of: Callable[[Any, torch.Tensor], torch.Tensor],
        traits: Traits,
        arch: dict[str, Any],
        notes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.traits, self.arch = net, traits, arch
        self._logits_of = logits_of
        self.notes = notes or []  # what a person should know of how the weights were loaded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (B, 3, H, W), normalised -> logits (B, K, h, w), at the model's own stride."""
        height, width = x.shape[2:]
        below, right = (max(-n % self.traits.multiple, self.traits.least - n) for n in (height, width))
        if not (below or right):
            return self._logits_of(self.net, x)
        logits = self._logits_of(self.net, F.pad(x, (0, right, 0, below)))
        stride = self.traits.stride
        return logits[:, :, : -(-height // stride), : -(-width // stride)]


@torch.inference_mode()
def infer(model: Segmenter, images: torch.Tensor) -> torch.Tensor:
    """fp32 logits of uint8 (B, 3, H, W) images on the model's device, for a model in evaluation mode.

    In fp32 however it was trained, so that a score is the same here, in an export, and on another machine.
    """
    return model(to_input(images, model.traits.mean, model.traits.std))
