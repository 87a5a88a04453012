"""U-Net and related architectures with a choice of encoders, through segmentation-models-pytorch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.errors import UserError
from segdist.models import head, licences, weights
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, AuxHead, Segmenter, Traits
from segdist.models.structure import execution_order, layer_prefixes, parameter_modules


@dataclass(frozen=True)
class Family:
    kind: str  # its class in segmentation-models-pytorch
    source: str
    least: int = 1  # smallest side, px
    strides: int = 1  # sides are multiples of this many encoder strides
    always: dict[str, Any] = field(default_factory=dict)  # arguments always passed to its class
    classifier: str = "segmentation_head.0"  # the module with one row per class


_NOT_OPTIONS = {
    "encoder_name", "encoder_weights", "classes", "in_channels", "aux_params", "activation", "kwargs",
}  # fmt: skip
FAMILIES = {
    "unet": Family("Unet", "U-Net (Ronneberger et al. 2015, arXiv:1505.04597)"),
    "unetplusplus": Family("UnetPlusPlus", "U-Net++ (Zhou et al. 2018, arXiv:1807.10165)"),
    "fpn": Family("FPN", "FPN (Kirillov et al. 2019, arXiv:1901.02446)"),
    "pspnet": Family("PSPNet", "PSPNet (Zhao et al. 2017, arXiv:1612.01105)"),
    "deeplabv3": Family("DeepLabV3", "DeepLabV3 (Chen et al. 2017, arXiv:1706.05587)"),
    "deeplabv3plus": Family("DeepLabV3Plus", "DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611)"),
    "linknet": Family("Linknet", "LinkNet (Chaurasia & Culurciello 2017, arXiv:1707.03718)"),
    "pan": Family("PAN", "PAN (Li et al. 2018, arXiv:1805.10180)", 128),  # it halves a sixteenth of the side three times
    "manet": Family("MAnet", "MA-Net (Fan et al. 2020, IEEE Access 8)"),
    "smp_upernet": Family("UPerNet", "UPerNet (Xiao et al. 2018, arXiv:1807.10221)"),
    "smp_segformer": Family("Segformer", "SegFormer's head (Xie et al. 2021, arXiv:2105.15203) on any encoder"),
    "smp_dpt": Family(
        "DPT", "DPT (Ranftl et al. 2021, arXiv:2103.13413) on timm's vision transformers",
        strides=2, always={"dynamic_img_size": True}, classifier="segmentation_head.head.4",
    ),
}  # fmt: skip


def only_encoder(cfg: config.Smp) -> bool:
    """Return whether model.weights names pretrained weights of an encoder, such as imagenet, rather than of a whole network."""
    import segmentation_models_pytorch as smp

    known = smp.encoders.encoders.get(cfg.encoder, {}).get("pretrained_settings", {})
    return cfg.weights == "imagenet" or cfg.weights in known


def build(cfg: config.Smp, class_names: Sequence[str], found: weights.Weights | None) -> Segmenter:
    import segmentation_models_pytorch as smp

    if cfg.encoder not in smp.encoders.get_encoder_names() and not cfg.encoder.startswith("tu-"):
        import difflib

        near = difflib.get_close_matches(cfg.encoder, smp.encoders.get_encoder_names(), 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "Try resnet34"
        raise UserError(f"model.encoder {cfg.encoder!r} is unknown. {hint}")
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
    if found is not None:
        return _from_folder(arch, found, class_names, cfg.transfer_head)
    if cfg.transfer_head == "by_name":
        raise UserError(
            f"model.transfer_head=by_name: weights of an encoder ({cfg.weights}) have no head. Leave model.transfer_head out"
        )
    if cfg.revision is not None:
        raise UserError(
            f"model.revision {cfg.revision!r} pins a Hub ID, but model.weights {cfg.weights!r} is not a Hub ID. Leave "
            "model.revision out"
        )
    try:
        params = smp.encoders.get_preprocessing_params(cfg.encoder, cfg.weights)
        model = _wrap(arch | {k: list(params[k]) for k in ("mean", "std")}, cfg.weights, [])
    except Exception as error:  # the download raises exceptions of many types
        raise UserError(
            f"model.weights {cfg.weights}: the weights of encoder {cfg.encoder} could not be loaded from the Hugging Face Hub "
            f"({error!r}). If the Hub cannot be reached, give a local folder or set model.weights=null"
        ) from None
    model.origin = _origin(cfg)
    called = "ImageNet" if cfg.weights == "imagenet" else cfg.weights
    model.notes = [f"encoder {cfg.encoder} from {called}; newly initialised: the decoder and the head"]
    if (licence := model.origin["licence"]) and licence["note"]:
        model.notes.append(f"licence of {model.origin['source']}: {licences.describe(licence)}")
    model.tensors = {"loaded": [], "partly": [], "unused": [], "new": []}
    for name in model.net.state_dict():
        model.tensors["loaded" if name.startswith("encoder.") else "new"].append(name)
    return model


def _origin(cfg: config.Smp) -> dict[str, Any]:
    """Return where the weights of an encoder come from."""
    import segmentation_models_pytorch as smp
    import timm

    known = smp.encoders.encoders.get(cfg.encoder, {}).get("pretrained_settings", {}).get(cfg.weights)
    if known:
        return weights.origin_of_hub(known["repo_id"], known["revision"])
    about = timm.get_pretrained_cfg(cfg.encoder.removeprefix("tu-"))
    if about is None or not about.hf_hub_id:
        return weights.origin_of(cfg.encoder, None, None)
    return weights.origin_of_hub(about.hf_hub_id, None, licences.named(about.license))


def outline(name: str, encoder: str, num_classes: int) -> nn.Module:
    """Return the library's network without memory for weights, to count its parameters."""
    import segmentation_models_pytorch as smp

    family = FAMILIES[name]
    with torch.device("meta"):
        return getattr(smp, family.kind)(encoder, encoder_weights=None, classes=num_classes, **family.always)


def rebuild(arch: dict[str, Any]) -> Segmenter:
    return _wrap(arch, None, [])


def _from_folder(arch: dict[str, Any], found: weights.Weights, class_names: Sequence[str], transfer: str) -> Segmenter:
    """Load weights in smp's own layout (config.json and weights), for any number of classes."""
    library = weights.config_of(found)
    encoder = library.get("encoder_name")
    if encoder is None:
        raise weights.unreadable(found, "it is not in smp's layout, because its config.json names no encoder_name")
    if encoder != arch["encoder"]:
        raise UserError(f"model.weights {found.source!r} hold the encoder {encoder!r}. Set model.encoder={encoder}")
    kind = library.get("_model_class", FAMILIES[arch["name"]].kind)
    if kind != FAMILIES[arch["name"]].kind:
        name = next((name for name, family in FAMILIES.items() if family.kind == kind), None)
        remedy = f"Set model.name={name}" if name else "This architecture is not supported"
        raise UserError(f"model.weights {found.source!r} hold a {kind}. {remedy}")
    arch = arch | {"options": _options_of(library, arch["name"], arch["options"], found.source)}
    stored = weights.tensors(found)
    if about := found.about:  # our own export, whose normalisation belongs to the weights
        arch = arch | {"mean": about["mean"], "std": about["std"]}
    model = _wrap(arch, None, [])
    named = {f"net.{k}": v for k, v in stored.items()}
    loaded = head.load(named, model, found.names, class_names, transfer, found.source)
    return weights.record_weights(model, found, loaded)


def library_config(arch: dict[str, Any]) -> dict[str, Any]:
    """Return config.json in smp's own layout, with the fields that `build` reads."""
    return {
        "_model_class": FAMILIES[arch["name"]].kind, "encoder_name": arch["encoder"], **arch.get("options", {}),
    }  # fmt: skip


def _options_of(library: dict[str, Any], name: str, ours: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the non-default options of stored weights, from their config.json. Raises UserError if given options differ.

    Tensors that do not fit the weights would otherwise be newly initialised.
    """
    defaults = json.loads(json.dumps(_defaults(name)))  # tuples become lists, as they are in config.json
    theirs = {key: library.get(key, default) for key, default in defaults.items()}
    for key, value in json.loads(json.dumps(ours)).items():
        if key in theirs and value != theirs[key]:
            raise UserError(
                f"model.options.{key} is {value!r}, but model.weights {source!r} have {theirs[key]!r}. Leave it "
                "out: the weights determine it"
            )
    return {key: value for key, value in theirs.items() if value != defaults[key]} | ours


def _defaults(name: str) -> dict[str, Any]:
    """Return the options of an architecture with their defaults."""
    import segmentation_models_pytorch as smp

    parameters = inspect.signature(getattr(smp, FAMILIES[name].kind)).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in _NOT_OPTIONS}


def _wrap(arch: dict[str, Any], encoder_weights: str | None, notes: list[str]) -> Segmenter:
    import segmentation_models_pytorch as smp

    options = arch.get("options", {})
    try:
        kind = getattr(smp, FAMILIES[arch["name"]].kind)
        if unknown := sorted(set(options) - (known := set(_defaults(arch["name"])))):
            raise UserError(
                f"model.options.{unknown[0]}: {arch['name']} has no such option. Its options are {', '.join(sorted(known))}"
            )
        always = FAMILIES[arch["name"]].always
        net = kind(arch["encoder"], encoder_weights=encoder_weights, classes=arch["classes"], **options, **always)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"model.encoder {arch['encoder']!r} cannot be used in a {arch['name']} ({error}). Choose another encoder, or "
            "change model.options"
        ) from None
    family = FAMILIES[arch["name"]]
    stride = net.encoder.output_stride * family.strides
    least = max(family.least, stride)
    order = execution_order(net, (least, least))
    body = "net.encoder.model" if arch["name"] == "smp_dpt" else "net.encoder"
    body_module = net.get_submodule(body.removeprefix("net."))
    encoder = sorted(parameter_modules(body_module, body), key=lambda name: order[name])
    layers = layer_prefixes(net, encoder)
    # such as position embeddings
    loose = tuple(f"{body}.{name}" for name, _ in body_module.named_parameters(recurse=False))
    traits = Traits(
        tuple(arch["mean"]),
        tuple(arch["std"]),
        align_corners=True,  # the rule of smp's heads; it rarely matters, since U-Net's logits have the size of its input
        stride=1,
        multiple=stride,
        least=least,
        encoder_prefix="net.encoder.",
        layers=((*layers[0], *loose), *layers[1:]),
        blocks=(*encoder, *parameter_modules(net.decoder, "net.decoder")),
        classifiers=(f"net.{family.classifier}",),
    )
    aux = AuxHead(net.encoder.out_channels[-2], arch["classes"]) if arch.get("aux") else None
    return Segmenter(net, _logits, traits, arch, notes, aux, _both).to(memory_format=torch.channels_last)


def _logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x.contiguous(memory_format=torch.channels_last))  # convolutions run 1.1 to 1.3 times as fast on CPUs


def _both(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = net.encoder(x.contiguous(memory_format=torch.channels_last))
    if isinstance(features, tuple):  # DPT's also hold the non-patch tokens
        return net.segmentation_head(net.decoder(*features)), features[0][-2]
    return net.segmentation_head(net.decoder(features)), features[-2]
