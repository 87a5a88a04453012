"""The interface of every model: normalised images in; logits and their resize rule out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from segdist.errors import ConfigError
from segdist.ops.pixels import to_input
from segdist.ops.tf32 import tf32

Tensors = dict[str, torch.Tensor]  # by name, as in a state dict
Constants = tuple[float, float, float]  # red, green, blue in 0..1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NO_ORIGIN: dict[str, Any] = {
    "source": None,
    "revision": None,
    "licence": None,
    "through": [],
}  # origin of random weights


@dataclass(frozen=True)
class Traits:
    """What the rest of segdist needs to know about a model."""

    mean: Constants
    std: Constants
    align_corners: bool  # how its logits are resized to the mask
    stride: int  # image px per logit
    multiple: int  # image sides are padded to a multiple of this, px
    least: int  # and to at least this, px
    encoder_prefix: str  # name prefix of the encoder's parameters; all others belong to the head
    layers: tuple[tuple[str, ...], ...] = ()  # name prefixes of each encoder layer's parameters, from the input up
    blocks: tuple[str, ...] = ()  # modules for Segmenter.enable_activation_checkpointing
    most: int | None = None  # largest side, px; a model with this accepts images of one size only
    square: bool = False  # images are padded to squares
    classifiers: tuple[str, ...] = ()  # modules with one row per class

    def check(self, height: int, width: int) -> None:
        """Raise ConfigError if the image is larger than the only size that the model accepts."""
        if self.most is not None and max(height, width) > self.most:
            raise ConfigError(
                f"an image of {height}x{width} px does not fit a model that takes only {self.most}x{self.most} px. Set "
                f"data.crop_size=[{self.most},{self.most}] eval.mode=sliding eval.window_size=[{self.most},{self.most}] "
                f"(on the command line: --mode sliding --window {self.most}x{self.most}), or set data.image_size"
            )

    def padding(self, height: int, width: int) -> tuple[int, int]:
        """Return the px to add below and to the right of an image so that the model accepts it."""
        sides: list[Any] = [(n + self.multiple - 1) // self.multiple * self.multiple for n in (height, width)]
        if self.least > self.multiple:
            sides = [torch.sym_max(side, self.least) for side in sides]  # sides are symbolic while a graph is traced
        if self.square:
            sides = [torch.sym_max(*sides)] * 2
        return sides[0] - height, sides[1] - width


class AuxHead(nn.Sequential):
    """Class logits from an intermediate encoder stage, for an auxiliary loss in training (Zhao et al. 2017,
    arXiv:1612.01105, section 3.3). It is neither scored nor exported."""

    def __init__(self, channels: int, num_classes: int) -> None:
        inner = max(channels // 4, 16)
        super().__init__(
            nn.Conv2d(channels, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(inner, num_classes, 1),
        )


class Segmenter(nn.Module):
    """A network with its traits. `arch` is JSON-able and holds everything that `models.rebuild` needs.

    `logits_of(net, x)` returns logits at the model's stride. `both_of(net, x)` returns those and the feature map for `aux`.
    """

    frozen = False  # whether the encoder's weights and running statistics are frozen: see `freeze`

    def __init__(
        self,
        net: Any,
        logits_of: Callable[[Any, torch.Tensor], torch.Tensor],
        traits: Traits,
        arch: dict[str, Any],
        notes: list[str] | None = None,
        aux: nn.Module | None = None,
        both_of: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.traits, self.arch, self.aux = net, traits, arch, aux
        self._logits_of, self._both_of = logits_of, both_of
        self.notes = notes or []  # messages to the user about how the weights were loaded
        self.origin: dict[str, Any] = dict(NO_ORIGIN)  # where the weights come from: see models.weights
        self.tensors: dict[str, list[str]] = {}  # what happened to each tensor: see models.weights

    def forward(self, x: torch.Tensor) -> Any:
        """Return logits (B, K, h, w) at the model's own stride, for normalised float images (B, 3, H, W).

        In training with an auxiliary head: (logits, auxiliary logits (B, K, h', w')).
        """
        height, width = x.shape[2:]
        self.traits.check(height, width)
        below, right = self.traits.padding(height, width)
        padded = F.pad(x, (0, right, 0, below)) if below or right else x
        if self.aux is None or not self.training:
            return self._crop(self.logits(padded), x, self.traits.stride)
        assert self._both_of is not None
        logits, feature = self._both_of(self.net, padded)
        stride = padded.shape[2] // feature.shape[2]
        return self._crop(logits, x, self.traits.stride), self._crop(self.aux(feature), x, stride)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of images that are padded already. They are not cropped; the auxiliary head does not run."""
        return self._logits_of(self.net, x)

    @staticmethod
    def _crop(logits: torch.Tensor, x: torch.Tensor, stride: int) -> torch.Tensor:
        """Crop away the logits of padded pixels."""
        return logits[:, :, : -(-x.shape[2] // stride), : -(-x.shape[3] // stride)]

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Modules with one row per class: the main head's first, then those of auxiliary heads."""
        return self.traits.classifiers + (("aux.4",) if isinstance(self.aux, AuxHead) else ())

    def encoder(self) -> nn.Module:
        return self.get_submodule(self.traits.encoder_prefix.rstrip("."))

    def freeze(self) -> None:
        """Freeze the encoder's weights and running statistics, and skip its backward pass, until `unfreeze`."""
        self._trainable = [p for p in self.encoder().parameters() if p.requires_grad]
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    def unfreeze(self) -> None:
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self.frozen = False
        self.train(self.training)

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        if self.frozen:
            self.encoder().eval()
        return self

    def enable_activation_checkpointing(self) -> None:
        """Store only each block's input for the backward pass, which recomputes the rest.

        Results stay the same, bit for bit. Running statistics must be read before the backward pass updates them again.
        """
        for name in self.traits.blocks:
            block = self.get_submodule(name)
            block.forward = functools.partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@torch.no_grad()  # under inference_mode, transformers would cache tensors that training cannot use afterwards
def infer(model: Segmenter, images: torch.Tensor) -> torch.Tensor:
    """Return fp32 logits of uint8 (B, 3, H, W) images on the model's device. The model must be in evaluation mode.

    fp32 without TF32, whatever precision it was trained in, so that scores agree with exports and other machines.
    """
    with tf32(False):
        return model(to_input(images, model.traits.mean, model.traits.std))
