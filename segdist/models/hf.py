"""Architectures of transformers' AutoModelForSemanticSegmentation, but for SegFormer, which has a module of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.errors import UserError
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Constants, Segmenter, Traits
from segdist.models.structure import layers_of, order_of, parts

HALF = (0.5, 0.5, 0.5)
NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Family:
    kind: str  # its classes in transformers begin so
    source: str
    mean: Constants = IMAGENET_MEAN
    std: Constants = IMAGENET_STD
    bgr: bool = False  # its published weights want blue first
    least: int = 32  # px of a side
    patches: int = 0  # sides are multiples of so many patches; 0: any
    fixed: bool = False  # it takes images of its config's size alone
    square: bool = False
    own_aux: bool = False  # the library's class has an auxiliary head


FAMILIES = {
    "beit": Family("Beit", "BEiT (Bao et al. 2021, arXiv:2106.08254)", HALF, HALF, patches=1, own_aux=True),
    "data2vec_vision": Family(
        "Data2VecVision", "data2vec (Baevski et al. 2022, arXiv:2202.03555)", HALF, HALF, patches=1, fixed=True, own_aux=True
    ),
    "dpt": Family("DPT", "DPT (Ranftl et al. 2021, arXiv:2103.13413)", HALF, HALF, patches=2, square=True, own_aux=True),
    "mobilenet_v2": Family("MobileNetV2", "MobileNetV2, DeepLabV3+ (Sandler et al. 2018, arXiv:1801.04381)", HALF, HALF),
    "mobilevit": Family("MobileViT", "MobileViT, DeepLabV3 (Mehta et al. 2021, arXiv:2110.02178)", *NONE, bgr=True),
    "mobilevitv2": Family("MobileViTV2", "MobileViTV2, DeepLabV3 (Mehta et al. 2022, arXiv:2206.02680)", *NONE, True, 64),
    "upernet": Family("UperNet", "UPerNet (Xiao et al. 2018, arXiv:1807.10221) on Swin, ConvNeXt and others", own_aux=True),
}  # fmt: skip


def sides(family: Family) -> str:
    """What images a family takes, in words."""
    if family.fixed:
        return "squares of its config's image_size alone"
    if family.square:
        return "padded to squares of an even number of patches"
    return "padded to whole patches" if family.patches else f"sides of any size from {family.least} px"


def build(cfg: config.Transformers, class_names: Sequence[str]) -> Segmenter:
    family = FAMILIES[cfg.name]
    if cfg.aux_head and not family.own_aux:
        raise UserError(f"model.aux_head: {cfg.name} has no auxiliary head in transformers; set model.aux_head=false")
    own: dict[str, Any] = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
    }
    if family.own_aux:
        own["use_auxiliary_head"] = cfg.aux_head
    if cfg.weights is None:
        kind = _class(family, "Config")
        if unknown := sorted(set(cfg.options) - set(kind().to_dict())):
            raise UserError(
                f"model.options.{unknown[0]}: {cfg.name} has no such field; see {kind.__name__} of transformers"
            )
        try:
            net = _class(family, "ForSemanticSegmentation")(_config_of(cfg.name, {**cfg.options, **own}))
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
            raise UserError(f"model.options do not make a {cfg.name}: {error}") from None
        return _wrap(net, cfg.name, [f"random initial weights ({cfg.name})"], family.mean, family.std)
    net, notes = pretrained(_class(family, "ForSemanticSegmentation"), cfg.weights, cfg.revision, own)
    return _wrap(net, cfg.name, notes, *normalisation(cfg.weights, family.mean, family.std))


def rebuild(arch: dict[str, Any]) -> Segmenter:
    name = arch["name"]
    net = _class(FAMILIES[name], "ForSemanticSegmentation")(_config_of(name, arch["config"]))
    return _wrap(net, name, [], tuple(arch["mean"]), tuple(arch["std"]))


def pretrained(kind: Any, weights: str, revision: str | None, own: dict[str, Any]) -> tuple[Any, list[str]]:
    """(a network with weights from the Hub or a folder, notes on what of it starts anew). Raises UserError."""
    try:
        loaded: Any = kind.from_pretrained(
            weights,
            revision=revision or "main",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            trust_remote_code=False,
            **own,
        )
    except (OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.weights {weights!r} could not be loaded: {first} "
            "Give a Hub id that this machine can reach, or a local folder with config.json and model.safetensors."
        ) from None
    net, report = loaded
    base = net.base_model_prefix or "backbone"
    if all(f"{base}.{name}" in report["missing_keys"] for name, _ in getattr(net, base).named_parameters()):
        raise UserError(
            f"model.weights {weights!r} hold no encoder of a {kind.__name__}; set model.name as their config has it"
        )
    fresh = sorted(
        {*report["missing_keys"], *(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])}
    )
    notes = [f"initial weights from {weights}"]
    if fresh:
        notes.append(f"newly initialised, since the weights have none of this shape: {', '.join(fresh)}")
    return net, notes


def normalisation(weights: str, mean: Constants, std: Constants) -> tuple[Constants, Constants]:
    """(mean, std) that come with weights in a local folder; otherwise those given, as the published weights have them."""
    path = Path(weights) / "preprocessor_config.json"
    if not path.is_file():
        return mean, std
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not tree.get("do_normalize", True):
        return NONE
    return tuple(tree.get("image_mean", mean)), tuple(tree.get("image_std", std))


def _class(family: Family, suffix: str) -> Any:
    import transformers

    return getattr(transformers, f"{family.kind}{suffix}")


def _config_of(name: str, fields: dict[str, Any]) -> Any:
    """The library's config object; of UPerNet its backbone's, too."""
    from transformers import CONFIG_MAPPING

    fields = {k: v for k, v in fields.items() if k != "model_type"}
    if name == "upernet" and isinstance(fields.get("backbone_config"), dict):
        inner = dict(fields["backbone_config"])
        fields["backbone_config"] = CONFIG_MAPPING[inner.pop("model_type")](**inner)
    return _class(FAMILIES[name], "Config").from_dict(fields)


def _wrap(net: Any, name: str, notes: list[str], mean: Constants, std: Constants) -> Segmenter:
    family = FAMILIES[name]
    size, patch = getattr(net.config, "image_size", 0), getattr(net.config, "patch_size", 1)
    side = size if family.fixed else max(family.patches * patch, 1)
    least = side * -(-family.least // side)
    order = order_of(net, (least, least))
    has_aux = getattr(net, "auxiliary_head", None) is not None
    if has_aux:  # it takes no part in what that pass put out
        net.auxiliary_head.requires_grad_(True)
    base = net.base_model_prefix or "backbone"
    encoder = sorted(parts(net.get_submodule(base), f"net.{base}"), key=lambda part: order[part])
    with torch.no_grad():
        logits = net.eval()(torch.zeros(1, 3, least, least)).logits
    net.train()
    arch = {
        "name": name, "config": net.config.to_dict(), "mean": list(mean), "std": list(std),
        "aux": has_aux,
    }  # fmt: skip
    traits = Traits(
        mean,
        std,
        align_corners=False,
        stride=least // logits.shape[2],
        multiple=side,
        least=least,
        most=size if family.fixed else None,
        square=family.square or family.fixed,
        encoder_prefix=f"net.{base}.",
        layers=layers_of(net, encoder),
        blocks=tuple(encoder),
    )
    flip = family.bgr

    def logits_of(net: Any, x: torch.Tensor) -> torch.Tensor:
        return net(pixel_values=x.flip(1) if flip else x).logits

    def both_of(net: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen: list[torch.Tensor] = []
        hook = net.auxiliary_head.register_forward_hook(lambda head, inputs, out: seen.append(out))
        logits = logits_of(net, x)
        hook.remove()
        return logits, seen[0]

    return Segmenter(net, logits_of, traits, arch, notes, nn.Identity() if has_aux else None, both_of)
