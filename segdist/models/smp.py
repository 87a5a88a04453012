"""U-Net and its relatives with a chosen encoder, through segmentation-models-pytorch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.errors import UserError
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, AuxHead, Segmenter, Traits
from segdist.models.structure import layers_of, order_of, parts


@dataclass(frozen=True)
class Family:
    kind: str  # its class in segmentation-models-pytorch
    source: str
    least: int = 1  # px of a side


_OWN = {
    "encoder_name",
    "encoder_weights",
    "classes",
    "in_channels",
    "aux_params",
    "activation",
    "kwargs",
}  # not options
FAMILIES = {
    "unet": Family("Unet", "U-Net (Ronneberger et al. 2015, arXiv:1505.04597)"),
    "unetplusplus": Family("UnetPlusPlus", "U-Net++ (Zhou et al. 2018, arXiv:1807.10165)"),
    "fpn": Family("FPN", "FPN (Kirillov et al. 2019, arXiv:1901.02446)"),
    "pspnet": Family("PSPNet", "PSPNet (Zhao et al. 2017, arXiv:1612.01105)"),
    "deeplabv3": Family("DeepLabV3", "DeepLabV3 (Chen et al. 2017, arXiv:1706.05587)"),
    "deeplabv3plus": Family("DeepLabV3Plus", "DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611)"),
    "linknet": Family("Linknet", "LinkNet (Chaurasia & Culurciello 2017, arXiv:1707.03718)"),
    "pan": Family("PAN", "PAN (Li et al. 2018, arXiv:1805.10180)", 128),  # it halves a sixteenth three times
    "manet": Family("MAnet", "MA-Net (Fan et al. 2020, IEEE Access 8)"),
    "smp_upernet": Family("UPerNet", "UPerNet (Xiao et al. 2018, arXiv:1807.10221)"),
    "smp_segformer": Family("Segformer", "SegFormer's head (Xie et al. 2021, arXiv:2105.15203) on any encoder"),
}


def build(cfg: config.Smp, class_names: Sequence[str]) -> Segmenter:
    import segmentation_models_pytorch as smp

    if cfg.encoder not in smp.encoders.get_encoder_names() and not cfg.encoder.startswith("tu-"):
        import difflib

        near = difflib.get_close_matches(cfg.encoder, smp.encoders.get_encoder_names(), 3)
        raise UserError(f"model.encoder {cfg.encoder!r} is unknown; near it: {', '.join(near) or 'resnet34'}")
    arch = {
        "name": cfg.name,
        "encoder": cfg.encoder,
        "classes": len(class_names),
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "aux": cfg.aux_head,
        "options": cfg.options,
    }
    if cfg.weights is None:
        return _wrap(arch, None, [f"random initial weights ({cfg.name}, {cfg.encoder})"])
    if cfg.weights == "imagenet":
        try:
            params = smp.encoders.get_preprocessing_params(cfg.encoder, "imagenet")
            model = _wrap(arch | {k: list(params[k]) for k in ("mean", "std")}, "imagenet", [])
        except Exception as error:  # whatever the download raises
            raise UserError(
                f"model.weights imagenet: the weights of encoder {cfg.encoder} could not be loaded ({error!r}); "
                "they come from the Hugging Face Hub. Without it, give a local folder or model.weights=null"
            ) from None
        model.notes = [f"encoder {cfg.encoder} from ImageNet; newly initialised: the decoder and the head"]
        return model
    return _from_folder(arch, Path(cfg.weights))


def rebuild(arch: dict[str, Any]) -> Segmenter:
    return _wrap(arch, None, [])


def _from_folder(arch: dict[str, Any], folder: Path) -> Segmenter:
    """Weights in smp's own layout (config.json, model.safetensors), whatever their number of classes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        encoder = json.loads((folder / "config.json").read_text(encoding="utf-8"))["encoder_name"]
        weights = load_file(folder / "model.safetensors")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(
            f"model.weights {str(folder)!r}: not a folder in smp's layout with config.json and model.safetensors ({error})"
        ) from None
    if encoder != arch["encoder"]:
        raise UserError(f"model.weights {str(folder)!r} hold encoder {encoder!r}; set model.encoder={encoder}")
    about = folder / "segdist.json"  # of our own exports: the normalisation belongs to the weights
    if about.is_file():
        tree = json.loads(about.read_text(encoding="utf-8"))
        arch = arch | {"mean": tree["mean"], "std": tree["std"]}
    model = _wrap(arch, None, [])
    own = model.net.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.net.load_state_dict(fitting, strict=False)
    model.notes = [f"initial weights from {folder}"]
    if fresh := sorted(set(own) - set(fitting)):
        model.notes.append(f"newly initialised, since the weights have none of this shape: {', '.join(fresh)}")
    return model


def _wrap(arch: dict[str, Any], encoder_weights: str | None, notes: list[str]) -> Segmenter:
    import segmentation_models_pytorch as smp

    options = arch.get("options", {})
    try:
        kind = getattr(smp, FAMILIES[arch["name"]].kind)
        if unknown := sorted(set(options) - (known := set(inspect.signature(kind).parameters) - _OWN)):
            raise UserError(f"model.options.{unknown[0]}: {arch['name']} takes {', '.join(sorted(known))}")
        net = kind(arch["encoder"], encoder_weights=encoder_weights, classes=arch["classes"], **options)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"model.encoder {arch['encoder']!r} cannot make a {arch['name']}: {error}") from None
    family = FAMILIES[arch["name"]]
    stride = net.encoder.output_stride
    least = max(family.least, stride)
    order = order_of(net, (least, least))
    encoder = sorted(parts(net.encoder, "net.encoder"), key=lambda name: order[name])
    traits = Traits(
        tuple(arch["mean"]),
        tuple(arch["std"]),
        align_corners=True,  # of smp's heads; U-Net's logits are as large as its input, so it hardly ever matters
        stride=1,
        multiple=stride,
        least=least,
        encoder_prefix="net.encoder.",
        layers=layers_of(net, encoder),
        blocks=(*encoder, *parts(net.decoder, "net.decoder")),
    )
    aux = AuxHead(net.encoder.out_channels[-2], arch["classes"]) if arch.get("aux") else None
    return Segmenter(net, _logits, traits, arch, notes, aux, _both).to(memory_format=torch.channels_last)


def _logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x.contiguous(memory_format=torch.channels_last))  # convolutions run 1.1 to 1.3 times as fast on CPUs


def _both(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = net.encoder(x.contiguous(memory_format=torch.channels_last))
    return net.segmentation_head(net.decoder(features)), features[-2]
