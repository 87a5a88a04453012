"""A model as one graph of tensor operations: RGB in 0..255 in, logits or a class-index mask out.

The graph contains everything between a decoded photo and the classes, so that its users cannot normalise, pad, reorder
channels or resize differently from how the model was scored: normalisation, BGR order if the network needs it, padding and,
with `argmax`, the resize of the logits by the model's own rule. The input is float32, which every runtime accepts.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segdist.models.segmenter import Segmenter, Traits

INPUT = "images"


@dataclass(frozen=True)
class Shape:
    """The input shapes that a graph takes."""

    size: tuple[int, int] | None  # (height, width) px; None: any from `least_side` up
    any_batch: bool = True

    def describe(self, traits: Traits) -> str:
        sides = (
            f"{self.size[0]}x{self.size[1]} px (height x width)"
            if self.size
            else f"any sides from {least_side(traits)} px"
        )
        return sides + ("" if self.any_batch else ", one image at a time")


def least_side(traits: Traits) -> int:
    """Return the smallest side in px of a graph of any size: tracing would fix the size of a feature map of one row."""
    return 2 * max(traits.least, traits.multiple)


class Graph(nn.Module):
    """float32 (B, 3, H, W), RGB in 0..255 -> logits (B, K, h, w) at the model's stride, or with `argmax` uint8 (B, H, W)."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, model: Segmenter, argmax: bool, slices: bool) -> None:
        """`slices`: crop the logits with slices (cheap in ONNX) or by selecting rows and columns.

        A slice traced by torch.export carries a guard that something was cut off.
        """
        super().__init__()
        self.model, self.argmax = copy.deepcopy(model).cpu().eval().requires_grad_(False), argmax
        self.model.aux, self._slices = None, slices
        for name, values in (("shift", model.traits.mean), ("scale", model.traits.std)):  # see ops.pixels.to_input
            self.register_buffer(name, torch.tensor(values)[:, None, None] * (1.0 / (1 / 255)))
        for module in self.model.modules():
            if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
                module.forward = functools.partial(_pool, module.output_size)  # type: ignore[method-assign]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        traits, (height, width) = self.model.traits, images.shape[2:]
        x = (images - self.shift) / self.scale
        if traits.multiple > 1 or isinstance(height, int):
            below, right = traits.padding(height, width)
            logits = self._crop(self.model.logits(F.pad(x, (0, right, 0, below))), height, width)
        else:  # any side from least_side up needs no padding
            logits = self.model.logits(x)
        if not self.argmax:
            return logits
        if traits.stride > 1:
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=traits.align_corners)
        return logits.argmax(1).to(torch.uint8)

    def _crop(self, logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
        rows, columns = ((n + self.model.traits.stride - 1) // self.model.traits.stride for n in (height, width))
        if self._slices:
            return logits[:, :, :rows, :columns]
        return logits.index_select(2, torch.arange(rows)).index_select(3, torch.arange(columns))


def program(graph: Graph, shape: Shape) -> torch.export.ExportedProgram:
    """Trace the graph. Raises whatever torch.export raises if this shape cannot be traced."""
    least = least_side(graph.model.traits)
    size = shape.size or (3 * least - 1, 4 * least - 3)  # differs from the sizes of the verification
    images = torch.zeros(2 if shape.any_batch else 1, 3, *size)
    free: Any = torch.export.Dim.DYNAMIC
    axes = dict.fromkeys(((0,) if shape.any_batch else ()) + ((2, 3) if shape.size is None else ()), free)
    with torch.no_grad():
        return torch.export.export(
            graph,
            (images,),
            dynamic_shapes={INPUT: axes},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,  # its solver cannot prove the guards of padded sides
        )


def _pool(output_size: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute adaptive_avg_pool2d as two matrix products, which work at any size; exporters unroll the pooling for one."""
    rows, columns = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    return _shares(rows, x.shape[2], x) @ x @ _shares(columns, x.shape[3], x).T


def _shares(num: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """Return (num, size): row i averages the positions floor(i * size / num) to ceil((i + 1) * size / num) - 1."""
    i, place = torch.arange(num)[:, None], torch.arange(size)
    inside = (place >= i * size // num) & (place < ((i + 1) * size + num - 1) // num)
    return inside.to(like) / inside.sum(1, keepdim=True)
