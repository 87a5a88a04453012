"""The catalogue of architectures: sizes, constraints, published weights and their licences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from segdist.config import NEEDS_TWO_IMAGES
from segdist.models import hf, licences, segformer, smp
from segdist.models.export_formats import FORMATS

_HUB = {  # well-known published weights
    "segformer": ["nvidia/mit-b0", "nvidia/segformer-b0-finetuned-ade-512-512"],
    "beit": ["microsoft/beit-base-finetuned-ade-640-640"],
    "data2vec_vision": ["facebook/data2vec-vision-base-ft1k"],
    "dpt": ["Intel/dpt-large-ade"],
    "mobilenet_v2": ["google/deeplabv3_mobilenet_v2_1.0_513"],
    "mobilevit": ["apple/deeplabv3-mobilevit-small"],
    "mobilevitv2": ["apple/mobilevitv2-1.0-voc-deeplabv3"],
    "sapiens2": ["facebook/sapiens2-seg-0.4b"],
    "upernet": ["openmmlab/upernet-convnext-tiny"],
}
_COUNTED: dict[
    str, dict[str, Any]
] = {  # options of the network whose parameters are counted, if the defaults give none
    "beit": {"image_size": 640, "out_indices": [3, 5, 7, 11], "use_relative_position_bias": True},
    "sapiens2": {"head_config": {"upsample_out_channels": [512, 256], "conv_out_channels": [256]}},
    "upernet": {
        "backbone_config": {
            "model_type": "convnext",
            "hidden_sizes": [96, 192, 384, 768],
            "depths": [3, 3, 9, 3],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        "auxiliary_in_channels": 384,
    },
}
_NUM_CLASSES = 19  # of the networks whose parameters are counted: the number of classes in Cityscapes


@dataclass(frozen=True)
class Entry:
    name: str  # model.name
    source: str
    package: str  # library that implements it
    example: str  # one line of YAML
    parameters: dict[str, int]  # parameter counts, by name of the size
    smallest: str  # YAML line of the smallest model that starts from published weights
    smallest_parameters: int
    stride: int  # image px per logit
    align_corners: bool  # how logits are resized to the mask
    images: str  # accepted image sizes, in words
    needs_pairs: bool  # needs at least two images in a micro-batch
    aux_head: bool  # whether an auxiliary head is available
    exports: list[str]  # export formats that pass verification
    one_size: bool  # whether exported graphs accept only one image size
    weights: list[dict[str, Any]]  # on the Hub: {"repo", "licence"}; a licence of None means: see the model's page


def entries(names: Sequence[str] = ()) -> list[Entry]:
    """Return the entries of these values of model.name, or all entries if `names` is empty."""
    known = ["segformer", *smp.FAMILIES, *hf.FAMILIES]
    return [_entry(name) for name in known if not names or name in names]


def _entry(name: str) -> Entry:
    if name in smp.FAMILIES:
        return _of_smp(name)
    weights = [{"repo": repo, "licence": licences.of(repo, None)} for repo in _HUB[name]]
    example = f"{{name: {name}, weights: {_HUB[name][0]}}}"
    exports = _exports(name)
    if name == "segformer":
        source, traits = "SegFormer (Xie et al. 2021, arXiv:2105.15203)", segformer.TRAITS
        sizes = {size: _count(segformer.outline(size, _NUM_CLASSES)) for size in ("b0", "b1", "b2", "b3", "b4", "b5")}
        return Entry(
            name, source, "transformers", example, sizes, example, sizes["b0"], traits.stride, traits.align_corners,
            f"sides of any size from {traits.least} px", False, True, *exports, weights,
        )  # fmt: skip
    family = hf.FAMILIES[name]
    net, stride = hf.outline(name, _COUNTED.get(name, {}), _NUM_CLASSES)
    called = {"upernet": "ConvNeXt-T"}.get(name, "default")
    return Entry(
        name, family.source, "transformers", example, {called: _count(net)}, example, _count(net), stride, False,
        hf.describe_sides(family), name in NEEDS_TWO_IMAGES, family.own_aux, *exports, weights,
    )  # fmt: skip


def _of_smp(name: str) -> Entry:
    family = smp.FAMILIES[name]
    encoder = "tu-vit_base_patch16_224" if name == "smp_dpt" else "resnet34"
    least = f", at least {family.least} px" if family.least > 1 else ""
    small = "tu-vit_tiny_patch16_224" if name == "smp_dpt" else "mobilenet_v2"
    return Entry(
        name, family.source, "segmentation-models-pytorch", f"{{name: {name}, encoder: {encoder}, weights: imagenet}}",
        {encoder: _count(smp.outline(name, encoder, _NUM_CLASSES))},
        f"{{name: {name}, encoder: {small}, weights: imagenet}}", _count(smp.outline(name, small, _NUM_CLASSES)), 1, True,
        f"padded to {'twice ' if family.strides > 1 else ''}the encoder's stride{least}", name in NEEDS_TWO_IMAGES, True,
        *_exports(name), [],
    )  # fmt: skip


def _exports(name: str) -> tuple[list[str], bool]:
    """Return (export formats that pass verification, whether exported graphs accept only one image size)."""
    formats = FORMATS[name]
    return [formats.native, "onnx", "torch.export"], "fixed" in (formats.onnx, formats.torch)


def _count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
