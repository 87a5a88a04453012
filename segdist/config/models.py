"""Architectures by name, and where their initial weights come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from segdist.config.fields import Section, identity

TransferHead = Literal["none", "by_name"]
_REVISION = "Commit, tag or branch of the Hub id; the commit that was loaded is recorded."
_TRANSFER_HEAD = (
    "The head of `weights` (or train.init_from) is kept for the very same classes and replaced for others; by_name: rows of "
    "classes with the same name stay."
)


class Segformer(Section):
    name: Literal["segformer"] = identity("segformer", "SegFormer (Xie et al. 2021) through transformers.")
    size: Literal["tiny", "b0", "b1", "b2", "b3", "b4", "b5"] | None = identity(
        None, "Random initial weights of this size; give this or `weights`. `tiny` is for demos and tests."
    )
    weights: str | None = identity(
        None,
        "Initial weights: a Hub id such as nvidia/mit-b0, a folder (a path or s3://) in the Hugging Face layout, or a run, "
        "checkpoint or export of segdist.",
    )
    revision: str | None = identity(None, _REVISION)
    transfer_head: TransferHead = identity("none", _TRANSFER_HEAD)
    dropout: float = identity(0.1, "Dropout before the classifier.", ge=0, lt=1)
    drop_path: float = identity(0.1, "Stochastic depth of the encoder's last block.", ge=0, lt=1)
    aux_head: bool = identity(
        False, "An auxiliary head on the encoder's last stage but one, in training (loss.aux_weight)."
    )

    @model_validator(mode="after")
    def _check(self) -> Segformer:
        if (self.size is None) == (self.weights is None):
            raise ValueError("give either model.size (random initial weights) or model.weights, not both or neither")
        if self.revision is not None and self.weights is None:
            raise ValueError("model.revision needs model.weights")
        return self


class Smp(Section):
    name: Literal[
        "unet", "unetplusplus", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "linknet", "pan", "manet", "smp_upernet",
        "smp_segformer", "smp_dpt",
    ] = identity("unet", "Architecture, through segmentation-models-pytorch; `segdist models` explains them.")  # fmt: skip
    encoder: str = identity(
        "resnet34", "Encoder name, as segmentation-models-pytorch lists them; tu-NAME is one of timm's."
    )
    weights: str | None = identity(
        None,
        "Initial weights: `imagenet` (encoder only), a Hub id or a folder (a path or s3://) in smp's layout, a run, checkpoint "
        "or export of segdist; null: random.",
    )
    revision: str | None = identity(None, _REVISION)
    transfer_head: TransferHead = identity("none", _TRANSFER_HEAD)
    aux_head: bool = identity(
        False, "An auxiliary head on a middle stage of the encoder, in training (loss.aux_weight)."
    )
    options: dict[str, Any] = identity(
        {},
        "More arguments of the architecture's class, such as decoder_channels; weights of a network bring their own.",
    )

    @model_validator(mode="after")
    def _check(self) -> Smp:
        if self.revision is not None and self.weights in (None, "imagenet"):
            raise ValueError("model.revision needs a Hub id in model.weights")
        return self


class Transformers(Section):
    name: Literal[
        "beit", "data2vec_vision", "dpt", "mobilenet_v2", "mobilevit", "mobilevitv2", "sapiens2", "upernet",
    ] = identity(help="Architecture, through transformers; `segdist models` explains them.")  # fmt: skip
    weights: str | None = identity(
        None,
        "Initial weights: a Hub id, a folder (a path or s3://) in the Hugging Face layout, a run, checkpoint or export of "
        "segdist; null: random.",
    )
    revision: str | None = identity(None, _REVISION)
    transfer_head: TransferHead = identity("none", _TRANSFER_HEAD)
    aux_head: bool = identity(
        False, "An auxiliary head on a middle stage of the encoder, in training (loss.aux_weight)."
    )
    options: dict[str, Any] = identity({}, "With random weights: fields of the architecture's own config.")

    @model_validator(mode="after")
    def _check(self) -> Transformers:
        if self.revision is not None and self.weights is None:
            raise ValueError("model.revision needs model.weights")
        if self.options and self.weights is not None:
            raise ValueError(
                "model.options belong to random weights; those of model.weights have a config of their own"
            )
        return self


Model = Annotated[Segformer | Smp | Transformers, Field(discriminator="name")]
# of which some layer normalises a single number per channel and image: over one image that has no variance
NEEDS_PAIRS = {
    "deeplabv3", "deeplabv3plus", "pan", "smp_upernet", "beit", "data2vec_vision", "mobilenet_v2", "mobilevit",
    "mobilevitv2", "upernet",
}  # fmt: skip
MODELS = [name for kind in (Segformer, Smp, Transformers) for name in get_args(kind.model_fields["name"].annotation)]

_BY_MASKS = (
    "it predicts a set of masks, with a loss that matches them, and not a class per pixel",
    ("upernet", "segformer"),
)
# what people ask for and segdist does not train: transformers' model type -> why, and what is near it
REFUSED = {
    **dict.fromkeys(("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3"), _BY_MASKS),
    "videomt": (
        "it segments videos by a set of masks, and not single images by a class per pixel",
        ("upernet", "segformer"),
    ),
    "tipsv2_dpt": (
        "its logits lie 1.75 px apart (16 to a pair of its patches of 14 px), and windows and crops need whole pixels",
        ("dpt", "beit"),
    ),
    **dict.fromkeys(("detr", "rf_detr"), ("it detects objects, and masks only those", ("upernet", "segformer"))),
}


def refusal(name: str) -> str | None:
    """Why segdist does not train an architecture that people ask for; None for any other name."""
    known = name.lower().replace("-", "_")
    if known not in REFUSED:
        return None
    reason, near = REFUSED[known]
    return f"{name} is not supported, because {reason}; near it: {', '.join(near)}"
