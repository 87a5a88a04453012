"""SegFormer (Xie et al. 2021, arXiv:2105.15203) through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.models import weights
from segdist.models.hf import label_maps, load_pretrained, normalisation
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, AuxHead, Constants, Segmenter, Traits

# Sizes: arXiv:2105.15203, table 6. `tiny` is our own, for demos and tests: 0.4 M parameters.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64},
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b1": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "b3": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    "b4": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    "b5": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
}
TRAITS = Traits(
    IMAGENET_MEAN,
    IMAGENET_STD,
    align_corners=False,
    stride=4,
    multiple=1,
    least=32,  # below this size the attention of the first stage has nothing to reduce
    encoder_prefix="net.segformer.",
    classifiers=("net.decode_head.classifier",),
)


def build(cfg: config.Segformer, class_names: Sequence[str], found: weights.Weights | None) -> Segmenter:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    own: dict[str, Any] = {"classifier_dropout_prob": cfg.dropout, "drop_path_rate": cfg.drop_path}
    if found is None:
        assert cfg.size is not None
        net = SegformerForSemanticSegmentation(SegformerConfig(**_SIZES[cfg.size], **own, **label_maps(class_names)))
        return _wrap(net, [f"random initial weights (SegFormer {cfg.size})"], aux=cfg.aux_head)
    heads = ("decode_head.classifier",)
    net, loaded = load_pretrained(SegformerForSemanticSegmentation, found, own, heads, class_names, cfg.transfer_head)
    model = _wrap(net, [], *normalisation(found.folder, IMAGENET_MEAN, IMAGENET_STD), aux=cfg.aux_head)
    return weights.record_weights(model, found, loaded)


def outline(size: str, num_classes: int) -> nn.Module:
    """Return the library's network without memory for weights, to count its parameters."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    fields = {**_SIZES[size], "num_labels": num_classes}
    with torch.device("meta"):
        return SegformerForSemanticSegmentation(SegformerConfig(**fields))


def rebuild(arch: dict[str, Any]) -> Segmenter:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    net = SegformerForSemanticSegmentation(SegformerConfig.from_dict(arch["config"]))
    return _wrap(net, [], tuple(arch["mean"]), tuple(arch["std"]), aux=arch.get("aux", False))


def _wrap(
    net: Any, notes: list[str], mean: Constants = IMAGENET_MEAN, std: Constants = IMAGENET_STD, aux: bool = False
) -> Segmenter:
    arch = {"name": "segformer", "config": net.config.to_dict(), "mean": list(mean), "std": list(std), "aux": aux}
    blocks = [f"net.segformer.stages.{i}.blocks.{j}" for i, n in enumerate(net.config.depths) for j in range(n)]
    layers: list[tuple[str, ...]] = [(f"{name}.",) for name in blocks]
    # a stage's embedding joins the layer of its first block, its norm the last's
    for i in range(len(net.config.depths)):
        inside = [k for k, name in enumerate(blocks) if name.startswith(f"net.segformer.stages.{i}.")]
        layers[inside[0]] += (f"net.segformer.stages.{i}.patch_embeddings.",)
        layers[inside[-1]] += (f"net.segformer.stages.{i}.layer_norm.",)
    traits = replace(TRAITS, mean=mean, std=std, layers=tuple(layers), blocks=tuple(blocks))
    head = AuxHead(net.config.hidden_sizes[-2], net.config.num_labels) if aux else None
    return Segmenter(net, _logits, traits, arch, notes, head, _both)


def _logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(pixel_values=x).logits


def _both(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = net(pixel_values=x, output_hidden_states=True)
    return out.logits, out.hidden_states[-2]
