"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with a chosen encoder, through segmentation-models-pytorch."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.errors import UserError
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, AuxHead, Segmenter, Traits


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
        "aux": cfg.aux_head,
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
    order = _try_out(net)
    parts = sorted(_parts(net.encoder, "net.encoder"), key=lambda name: order[name])
    layers: list[tuple[str, ...]] = []
    for name in parts:  # what holds nothing but norms and biases learns with the layer before it
        learning = [p for p in net.get_submodule(name.removeprefix("net.")).parameters() if p.requires_grad]
        if not learning:
            continue
        alone = any(p.ndim > 1 for p in learning)
        layers = [*layers, (f"{name}.",)] if alone or not layers else [*layers[:-1], (*layers[-1], f"{name}.")]
    traits = Traits(
        tuple(arch["mean"]),
        tuple(arch["std"]),
        align_corners=True,  # of smp's heads; U-Net's logits are as large as its input, so it hardly ever matters
        stride=1,
        multiple=net.encoder.output_stride,
        least=net.encoder.output_stride,
        encoder_prefix="net.encoder.",
        layers=tuple(layers),
        blocks=(*parts, *_parts(net.decoder.blocks, "net.decoder.blocks")),
    )
    aux = AuxHead(net.encoder.out_channels[-2], arch["classes"]) if arch.get("aux") else None
    return Segmenter(net, _logits, traits, arch, notes, aux, _both).to(memory_format=torch.channels_last)


def _try_out(net: Any) -> dict[str, int]:
    """Name of each module below `net` -> when it first ran, in one small forward pass; those that never ran come last.

    Freezes parameters that take no part in the output: some encoders carry the head of their classifier along. DDP would
    wait for their gradients.
    """
    order: dict[str, int] = {}

    def note(name: str, *_: Any) -> None:
        order.setdefault(name, len(order))

    hooks = [
        module.register_forward_pre_hook(functools.partial(note, f"net.{name}")) for name, module in net.named_modules()
    ]
    size = net.encoder.output_stride
    net.eval()(torch.zeros(1, 3, size, size)).sum().backward()
    for hook in hooks:
        hook.remove()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    net.train()
    last = len(order)
    return {f"net.{name}": order.get(f"net.{name}", last) for name, _ in net.named_modules()}


def _parts(module: nn.Module, name: str) -> list[str]:
    """Names of the modules that hold a network's parameters, and are more than a list of others."""
    found: list[str] = []
    for key, child in module.named_children():
        listing = isinstance(child, (nn.Sequential, nn.ModuleList)) or len(list(module.named_children())) == 1
        if listing and list(child.children()):
            found += _parts(child, f"{name}.{key}")
        elif list(child.parameters()):
            found.append(f"{name}.{key}")
    return found


def _logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x.contiguous(memory_format=torch.channels_last))  # convolutions run 1.1 to 1.3 times as fast on CPUs


def _both(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = net.encoder(x.contiguous(memory_format=torch.channels_last))
    return net.segmentation_head(net.decoder(features)), features[-2]
