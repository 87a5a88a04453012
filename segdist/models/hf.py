"""Architectures of transformers' AutoModelForSemanticSegmentation, except SegFormer, which has its own module."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from segdist import config
from segdist.errors import UserError
from segdist.models import head, weights
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Constants, Segmenter, Tensors, Traits
from segdist.models.structure import execution_order, layer_prefixes, parameter_modules

HALF = (0.5, 0.5, 0.5)
UNCHANGED = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # mean and std of weights whose images are not normalised


@dataclass(frozen=True)
class Family:
    kind: str  # prefix of its class names in transformers
    source: str
    mean: Constants = IMAGENET_MEAN
    std: Constants = IMAGENET_STD
    bgr: bool = False  # its published weights expect BGR channel order
    least: int = 32  # smallest side, px
    patches: int = 0  # sides are multiples of this many patches; 0: any
    fixed: bool = False  # accepts images of its config's size only
    square: bool = False
    own_aux: bool = False  # the library's class has an auxiliary head
    classifier: str = "decode_head.classifier"  # the module with one row per class
    aux_classifier: str = "auxiliary_head.classifier"


_DEEPLAB = "segmentation_head.classifier.convolution"
FAMILIES = {
    "beit": Family("Beit", "BEiT (Bao et al. 2021, arXiv:2106.08254)", HALF, HALF, patches=1, own_aux=True),
    "data2vec_vision": Family(
        "Data2VecVision", "data2vec (Baevski et al. 2022, arXiv:2202.03555)", HALF, HALF, patches=1, fixed=True, own_aux=True
    ),
    "dpt": Family(
        "DPT", "DPT (Ranftl et al. 2021, arXiv:2103.13413)", HALF, HALF, patches=2, square=True, own_aux=True,
        classifier="head.head.4", aux_classifier="auxiliary_head.head.4",
    ),
    "mobilenet_v2": Family(
        "MobileNetV2", "MobileNetV2, DeepLabV3+ (Sandler et al. 2018, arXiv:1801.04381)", HALF, HALF, classifier=_DEEPLAB
    ),
    "mobilevit": Family(
        "MobileViT", "MobileViT, DeepLabV3 (Mehta et al. 2021, arXiv:2110.02178)", *UNCHANGED, bgr=True, classifier=_DEEPLAB
    ),
    "mobilevitv2": Family(
        "MobileViTV2", "MobileViTV2, DeepLabV3 (Mehta et al. 2022, arXiv:2206.02680)", *UNCHANGED, True, 64, classifier=_DEEPLAB
    ),
    "sapiens2": Family(
        "Sapiens2", "Sapiens2, for images of people (Khirodkar et al. 2026, arXiv:2604.21681)", patches=1,
        classifier="decode_head.predictor",
    ),
    "upernet": Family("UperNet", "UPerNet (Xiao et al. 2018, arXiv:1807.10221) on Swin, ConvNeXt and others", own_aux=True),
}  # fmt: skip


def describe_sides(family: Family) -> str:
    """Return the image sizes that a family accepts, in words."""
    if family.fixed:
        return "only squares of its config's image_size"
    if family.square:
        return "padded to squares of an even number of patches"
    return "padded to whole patches" if family.patches else f"sides of any size from {family.least} px"


def build(cfg: config.Transformers, class_names: Sequence[str], found: weights.Weights | None) -> Segmenter:
    family = FAMILIES[cfg.name]
    if cfg.aux_head and not family.own_aux:
        raise UserError(f"model.aux_head: {cfg.name} has no auxiliary head in transformers. Set model.aux_head=false")
    own: dict[str, Any] = {"use_auxiliary_head": cfg.aux_head} if family.own_aux else {}
    if found is not None:
        heads = (family.classifier, family.aux_classifier)
        net, loaded = load_pretrained(
            _class(family, "ForSemanticSegmentation"), found, own, heads, class_names, cfg.transfer_head
        )
        model = _wrap(net, cfg.name, [], *normalisation(found.folder, family.mean, family.std))
        return weights.record_weights(model, found, loaded)
    kind = _class(family, "Config")
    if unknown := sorted(set(cfg.options) - set(kind().to_dict())):
        raise UserError(
            f"model.options.{unknown[0]}: {cfg.name} has no such field. See {kind.__name__} in transformers for its fields"
        )
    try:
        fields = {**cfg.options, **own, **label_maps(class_names)}
        net = _class(family, "ForSemanticSegmentation")(_config_of(cfg.name, fields))
        return _wrap(net, cfg.name, [f"random initial weights ({cfg.name})"], family.mean, family.std)
    except Exception as error:  # the library raises exceptions of many types if options do not fit together
        raise UserError(
            f"model.options: transformers cannot build a {cfg.name} from these options ({error}). Change them"
        ) from None


def outline(name: str, options: dict[str, Any], num_classes: int) -> tuple[nn.Module, int]:
    """Return (the library's network without memory for weights, image px per logit), to count its parameters."""
    with torch.device("meta"):
        config = _config_of(name, {**options, "num_labels": num_classes})
        net = _class(FAMILIES[name], "ForSemanticSegmentation")(config).eval()
        side = config.image_size if FAMILIES[name].fixed else 256
        return net, side // net(torch.zeros(1, 3, side, side)).logits.shape[2]


def rebuild(arch: dict[str, Any]) -> Segmenter:
    name = arch["name"]
    net = _class(FAMILIES[name], "ForSemanticSegmentation")(_config_of(name, arch["config"]))
    return _wrap(net, name, [], tuple(arch["mean"]), tuple(arch["std"]))


def label_maps(class_names: Sequence[str]) -> dict[str, Any]:
    """Return id2label and label2id, as transformers' configs hold them."""
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}


def load_pretrained(
    kind: Any,
    found: weights.Weights,
    own: dict[str, Any],
    heads: Sequence[str],
    class_names: Sequence[str],
    transfer: str,
) -> tuple[Any, weights.Loaded]:
    """Return (a network for these classes, with all weights that fit; what happened to each tensor).

    `heads` are the modules with one row per class, the main head first; those that the network lacks are skipped. Raises
    UserError if the weights cannot be read or hold no encoder.
    """
    try:
        with _quiet_library():
            net, report = kind.from_pretrained(
                found.folder, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32,
                trust_remote_code=False, **own,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, UnpicklingError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise weights.unreadable(found, first.replace(str(found.folder), found.source)) from None
    base = net.base_model_prefix or "backbone"
    if all(f"{base}.{name}" in report["missing_keys"] for name, _ in getattr(net, base).named_parameters()):
        raise UserError(
            f"model.weights {found.source!r} hold no encoder of a {kind.__name__}. Set model.name to the model type in their "
            "config.json"
        )
    new = {
        key if isinstance(key, str) else key[0] for part in ("missing_keys", "mismatched_keys") for key in report[part]
    }
    heads = [name for name in heads if any(name == each for each, _ in net.named_modules())]
    num_theirs = None if f"{heads[0]}.weight" in new else net.get_submodule(heads[0]).out_channels
    match = head.match(
        _names(net.config, found), num_theirs, class_names, transfer == "by_name", f"model.weights {found.source!r}"
    )
    missing = set(report["missing_keys"])
    partly = [] if match.whole else _replace(net, heads, len(class_names), match.rows, new)
    for name, value in label_maps(class_names).items():
        setattr(net.config, name, value)
    return net, weights.Loaded(
        match.summary,
        loaded=sorted(set(net.state_dict()) - new - set(partly)),
        unused=sorted({*report["unexpected_keys"], *new} - missing - set(partly)),
        new=sorted(new - set(partly)),
        partly=partly,
    )


def _replace(net: Any, heads: Sequence[str], num_classes: int, rows: dict[int, int], new: set[str]) -> list[str]:
    """Replace the classifiers for another number of classes and add their tensors to `new`. Return those that keep rows."""
    stored: Tensors = {}
    for name in heads:
        old = net.get_submodule(name)
        fresh = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, padding=old.padding, bias=old.bias is not None)
        net._init_weights(fresh)
        net.set_submodule(name, fresh)
        keys = [f"{name}.{part}" for part, _ in fresh.named_parameters()]
        stored |= {key: old.state_dict()[key.rpartition(".")[2]] for key in keys if key not in new}
        new |= set(keys)
    return head.keep_rows(net, heads, stored, rows)


def _names(library: Any, found: weights.Weights) -> list[str] | None:
    """Return the class names of weights, from segdist.json or their config; None if the config holds only numbers."""
    names = found.names or [str(name) for _, name in sorted(library.id2label.items())]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Silence transformers' report of loaded tensors (ours says the same) and its progress bar over tensors."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def normalisation(folder: Path, mean: Constants, std: Constants) -> tuple[Constants, Constants]:
    """Return the (mean, std) stored beside the weights, or else those given."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return mean, std
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not tree.get("do_normalize", True):
        return UNCHANGED
    return tuple(tree.get("image_mean", mean)), tuple(tree.get("image_std", std))


def _class(family: Family, suffix: str) -> Any:
    import transformers

    return getattr(transformers, f"{family.kind}{suffix}")


def _config_of(name: str, fields: dict[str, Any]) -> Any:
    """Return the library's config object; for UPerNet with its backbone's config."""
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
    order = execution_order(net, (least, least))
    has_aux = getattr(net, "auxiliary_head", None) is not None
    if has_aux:  # it does not contribute to the logits, so execution_order froze it
        net.auxiliary_head.requires_grad_(True)
    base = net.base_model_prefix or "backbone"
    encoder = sorted(parameter_modules(net.get_submodule(base), f"net.{base}"), key=lambda part: order[part])
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
        layers=layer_prefixes(net, encoder),
        blocks=tuple(encoder),
        classifiers=tuple(f"net.{n}" for n in (family.classifier, *([family.aux_classifier] if has_aux else []))),
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
