"""Architectures by name, and the source of their initial weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from segdist.config.fields import Section, identity

TransferHead = Literal["none", "by_name"]
_REVISION = "Commit, tag or branch of the Hub ID in `weights`. null: the default branch. The loaded commit is recorded."
_TRANSFER_HEAD = (
    "The head of `weights` (or of train.init_from) is kept if the classes are identical. Otherwise none: new head; by_name: "
    "keep the classifier weights of classes with the same name."
)
_AUX_HEAD = "Train an auxiliary head on a middle stage of the encoder (loss.aux_weight)."


class Segformer(Section):
    name: Literal["segformer"] = identity("segformer", "SegFormer (Xie et al. 2021), from transformers.")
    size: Literal["tiny", "b0", "b1", "b2", "b3", "b4", "b5"] | None = identity(
        None, "Size, with random initial weights; set this or `weights`. `tiny` is for demos and tests."
    )
    weights: str | None = identity(
        None,
        "Initial weights: a Hub ID such as nvidia/mit-b0, a folder (path or s3://) in Hugging Face layout, or a run, "
        "checkpoint or export of segdist. null: random, see `size`.",
    )
    revision: str | None = identity(None, _REVISION)
    transfer_head: TransferHead = identity("none", _TRANSFER_HEAD)
    dropout: float = identity(0.1, "Dropout probability before the classifier.", ge=0, lt=1)
    drop_path: float = identity(0.1, "Stochastic depth: drop probability of the encoder's last block.", ge=0, lt=1)
    aux_head: bool = identity(False, "Train an auxiliary head on the encoder's second-to-last stage (loss.aux_weight).")

    @model_validator(mode="after")
    def _check(self) -> Segformer:
        if (self.size is None) == (self.weights is None):
            raise ValueError("set either model.size (random initial weights) or model.weights, and not both")
        if self.revision is not None and self.weights is None:
            raise ValueError("model.revision needs model.weights")
        return self


class Smp(Section):
    name: Literal[
        "unet", "unetplusplus", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "linknet", "pan", "manet", "smp_upernet",
        "smp_segformer", "smp_dpt",
    ] = identity("unet", "Architecture, from segmentation-models-pytorch; `segdist models` describes them.")  # fmt: skip
    encoder: str = identity("resnet34", "Encoder of segmentation-models-pytorch, or tu-NAME for an encoder of timm.")
    weights: str | None = identity(
        None,
        "Initial weights: `imagenet` (encoder only), a Hub ID or a folder (path or s3://) in smp's layout, or a run, "
        "checkpoint or export of segdist. null: random.",
    )
    revision: str | None = identity(None, _REVISION)
    transfer_head: TransferHead = identity("none", _TRANSFER_HEAD)
    aux_head: bool = identity(False, _AUX_HEAD)
    options: dict[str, Any] = identity(
        {},
        "Arguments of the architecture's class, such as decoder_channels. A complete network in `weights` brings its own.",
    )

    @model_validator(mode="after")
    def _check(self) -> Smp:
        if self.revision is not None and self.weights in (None, "imagenet"):
            raise ValueError("model.revision needs a Hub ID in model.weights")
        return self


class Transformers(Section):
    name: Literal[
        "beit", "data2vec_vision", "dpt", "mobilenet_v2", "mobilevit", "mobilevitv2", "sapiens2", "upernet",
    ] = identity(help="Architecture, from transformers; `segdist models` describes them.")  # fmt: skip
    weights: str | None = identity(
        None,
        "Initial weights: a Hub ID, a folder (path or s3://) in Hugging Face layout, or a run, checkpoint or export of "
        "segdist. null: random.",
    )
    revision: str | None = identity(None, _REVISION)
    transfer_head: TransferHead = identity("none", _TRANSFER_HEAD)
    aux_head: bool = identity(False, _AUX_HEAD)
    options: dict[str, Any] = identity(
        {}, "Fields of the architecture's transformers config, for random initial weights."
    )

    @model_validator(mode="after")
    def _check(self) -> Transformers:
        if self.revision is not None and self.weights is None:
            raise ValueError("model.revision needs model.weights")
        if self.options and self.weights is not None:
            raise ValueError(
                "model.options needs random initial weights: model.weights brings its own. Remove one of them"
            )
        return self


Model = Annotated[Segformer | Smp | Transformers, Field(discriminator="name")]
# some layer normalises one value per channel and image, which has no variance over a single image
NEEDS_TWO_IMAGES = {
    "deeplabv3", "deeplabv3plus", "pan", "smp_upernet", "beit", "data2vec_vision", "mobilenet_v2", "mobilevit",
    "mobilevitv2", "upernet",
}  # fmt: skip
MODELS = [name for kind in (Segformer, Smp, Transformers) for name in get_args(kind.model_fields["name"].annotation)]

_MASK_SETS = (
    "it predicts a set of masks, with a loss that matches them, instead of a class per pixel",
    ("upernet", "segformer"),
)
# model types of transformers that segdist does not train -> (reason, alternatives)
UNSUPPORTED = {
    **dict.fromkeys(("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3"), _MASK_SETS),
    "videomt": (
        "it predicts sets of masks for videos, instead of a class per pixel for images",
        ("upernet", "segformer"),
    ),
    "tipsv2_dpt": (
        "its logits are 1.75 px apart (16 per pair of 14 px patches), and windows and crops need a whole number of pixels",
        ("dpt", "beit"),
    ),
    **dict.fromkeys(("detr", "rf_detr"), ("it detects objects and segments only those", ("upernet", "segformer"))),
}


def unsupported_reason(name: str) -> str | None:
    """Return why segdist does not support an architecture, and alternatives; None if the name is not in the list."""
    known = name.lower().replace("-", "_")
    if known not in UNSUPPORTED:
        return None
    reason, near = UNSUPPORTED[known]
    return f"{name} is not supported, because {reason}. Use {' or '.join(near)} instead"
