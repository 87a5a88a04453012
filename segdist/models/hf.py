"""Architectures of transformers' AutoModelForSemanticSegmentation, but for SegFormer, which has a module of its own."""

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
    classifier: str = "decode_head.classifier"  # the module with a row per class
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
        "MobileViT", "MobileViT, DeepLabV3 (Mehta et al. 2021, arXiv:2110.02178)", *NONE, bgr=True, classifier=_DEEPLAB
    ),
    "mobilevitv2": Family(
        "MobileViTV2", "MobileViTV2, DeepLabV3 (Mehta et al. 2022, arXiv:2206.02680)", *NONE, True, 64, classifier=_DEEPLAB
    ),
    "sapiens2": Family(
        "Sapiens2", "Sapiens2, of people (Khirodkar et al. 2026, arXiv:2604.21681)", patches=1,
        classifier="decode_head.predictor",
    ),
    "upernet": Family("UperNet", "UPerNet (Xiao et al. 2018, arXiv:1807.10221) on Swin, ConvNeXt and others", own_aux=True),
}  # fmt: skip


def sides(family: Family) -> str:
    """What images a family takes, in words."""
    if family.fixed:
        return "squares of its config's image_size alone"
    if family.square:
        return "padded to squares of an even number of patches"
    return "padded to whole patches" if family.patches else f"sides of any size from {family.least} px"


def build(cfg: config.Transformers, class_names: Sequence[str], found: weights.Weights | None) -> Segmenter:
    family = FAMILIES[cfg.name]
    if cfg.aux_head and not family.own_aux:
        raise UserError(f"model.aux_head: {cfg.name} has no auxiliary head in transformers; set model.aux_head=false")
    own: dict[str, Any] = {"use_auxiliary_head": cfg.aux_head} if family.own_aux else {}
    if found is not None:
        heads = (family.classifier, family.aux_classifier)
        net, done = pretrained(
            _class(family, "ForSemanticSegmentation"), found, own, heads, class_names, cfg.transfer_head
        )
        model = _wrap(net, cfg.name, [], *normalisation(found.folder, family.mean, family.std))
        return weights.start(model, found, done)
    kind = _class(family, "Config")
    if unknown := sorted(set(cfg.options) - set(kind().to_dict())):
        raise UserError(
            f"model.options.{unknown[0]}: {cfg.name} has no such field; see {kind.__name__} of transformers"
        )
    try:
        fields = {**cfg.options, **own, **labels_of(class_names)}
        net = _class(family, "ForSemanticSegmentation")(_config_of(cfg.name, fields))
        return _wrap(net, cfg.name, [f"random initial weights ({cfg.name})"], family.mean, family.std)
    except Exception as error:  # what a library makes of options that do not fit has no one type
        raise UserError(f"model.options do not make a {cfg.name}: {error}") from None


def outline(name: str, options: dict[str, Any], num_classes: int) -> tuple[nn.Module, int]:
    """(the library's network without memory for its weights, image px per logit): to be counted."""
    with torch.device("meta"):
        config = _config_of(name, {**options, "num_labels": num_classes})
        net = _class(FAMILIES[name], "ForSemanticSegmentation")(config).eval()
        side = config.image_size if FAMILIES[name].fixed else 256
        return net, side // net(torch.zeros(1, 3, side, side)).logits.shape[2]


def rebuild(arch: dict[str, Any]) -> Segmenter:
    name = arch["name"]
    net = _class(FAMILIES[name], "ForSemanticSegmentation")(_config_of(name, arch["config"]))
    return _wrap(net, name, [], tuple(arch["mean"]), tuple(arch["std"]))


def labels_of(class_names: Sequence[str]) -> dict[str, Any]:
    """The classes, as transformers' configs have them."""
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}


def pretrained(
    kind: Any,
    found: weights.Weights,
    own: dict[str, Any],
    heads: Sequence[str],
    class_names: Sequence[str],
    transfer: str,
) -> tuple[Any, weights.Loaded]:
    """(a network for these classes with the weights as far as they fit, what became of each tensor).

    `heads`: modules with a row per class, the head's first; those that a network lacks are passed over. Raises UserError.
    """
    try:
        with _quiet():
            net, report = kind.from_pretrained(
                found.folder, ignore_mismatched_sizes=True, output_loading_info=True, dtype=torch.float32,
                trust_remote_code=False, **own,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, UnpicklingError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise weights.unreadable(found, first.replace(str(found.folder), found.said)) from None
    base = net.base_model_prefix or "backbone"
    if all(f"{base}.{name}" in report["missing_keys"] for name, _ in getattr(net, base).named_parameters()):
        raise UserError(
            f"model.weights {found.said!r} hold no encoder of a {kind.__name__}; set model.name as their config has it"
        )
    new = {
        key if isinstance(key, str) else key[0] for part in ("missing_keys", "mismatched_keys") for key in report[part]
    }
    heads = [name for name in heads if any(name == each for each, _ in net.named_modules())]
    num_theirs = None if f"{heads[0]}.weight" in new else net.get_submodule(heads[0]).out_channels
    match = head.match(
        _names(net.config, found), num_theirs, class_names, transfer == "by_name", f"model.weights {found.said!r}"
    )
    missing = set(report["missing_keys"])
    partly = [] if match.whole else _replace(net, heads, len(class_names), match.rows, new)
    for name, value in labels_of(class_names).items():
        setattr(net.config, name, value)
    return net, weights.Loaded(
        match.sentence,
        loaded=sorted(set(net.state_dict()) - new - set(partly)),
        unused=sorted({*report["unexpected_keys"], *new} - missing - set(partly)),
        new=sorted(new - set(partly)),
        partly=partly,
    )


def _replace(net: Any, heads: Sequence[str], num_classes: int, rows: dict[int, int], new: set[str]) -> list[str]:
    """Gives a network classifiers of another number of classes, and notes their tensors in `new`; those that keep rows."""
    stored: dict[str, torch.Tensor] = {}
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
    """The classes of weights, by segdist.json or their config; None where that holds nothing but numbers."""
    names = found.names or [str(name) for _, name in sorted(library.id2label.items())]
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own table of what was loaded, which ours says, and its progress bar of every tensor."""
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
    """(mean, std) that come with weights; otherwise those given, as the published weights have them."""
    path = folder / "preprocessor_config.json"
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
