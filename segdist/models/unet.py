"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with a chosen encoder, through segmentation-models-pytorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.errors import UserError
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, Traits


def build(cfg: config.Unet, class_names: Sequence[str]) -> Segmenter:
    import segmentation_models_pytorch as smp

    if cfg.encoder not in smp.encoders.get_encoder_names() and not cfg.encoder.startswith("tu-"):
        import difflib

        near = difflib.get_close_matches(cfg.encoder, smp.encoders.get_encoder_names(), 3)
        raise UserError(f"model.encoder {cfg.encoder!r} is unknown; near it: {', '.join(near) or 'resnet34'}")
    arch = {
        "name": "unet",
        "encoder": cfg.encoder,
        "classes": len(class_names),
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    if cfg.weights is None:
        return _wrap(arch, None, [f"random initial weights (U-Net, {cfg.encoder})"])
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

    try:
        net = smp.Unet(arch["encoder"], encoder_weights=encoder_weights, classes=arch["classes"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"model.encoder {arch['encoder']!r} cannot make a U-Net: {error}") from None
    traits = Traits(
        tuple(arch["mean"]),
        tuple(arch["std"]),
        align_corners=True,  # of smp's heads; U-Net's logits are as large as its input, so it hardly ever matters
        stride=1,
        multiple=net.encoder.output_stride,
        least=net.encoder.output_stride,
        encoder_prefix="net.encoder.",
    )
    _freeze_unused(net, traits.multiple)
    return Segmenter(net.to(memory_format=torch.channels_last), _logits, traits, arch, notes)


def _freeze_unused(net: nn.Module, size: int) -> None:
    """Freezes parameters that take no part in the output: some encoders carry the head of their classifier along.

    DDP would wait for their gradients, and a checkpoint would lack their moments.
    """
    net.eval()(torch.zeros(1, 3, size, size)).sum().backward()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    net.train()


def _logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x.contiguous(memory_format=torch.channels_last))  # convolutions run 1.1 to 1.3 times as fast on CPUs
