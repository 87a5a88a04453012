"""Architectures by name, and where their initial weights come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from segdist.config.fields import Section, identity


class Segformer(Section):
    name: Literal["segformer"] = identity("segformer", "SegFormer (Xie et al. 2021) through transformers.")
    size: Literal["tiny", "b0", "b1", "b2", "b3", "b4", "b5"] | None = identity(
        None, "Random initial weights of this size; give this or `weights`. `tiny` is for demos and tests."
    )
    weights: str | None = identity(
        None,
        "Initial weights: a Hub id such as nvidia/mit-b0, or a folder (a path or s3://) in the Hugging Face layout.",
    )
    revision: str | None = identity(None, "Commit or tag of the Hub id.")
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
        "smp_segformer",
    ] = identity("unet", "Architecture, through segmentation-models-pytorch; `segdist models` explains them.")  # fmt: skip
    encoder: str = identity(
        "resnet34", "Encoder name, as segmentation-models-pytorch lists them; tu-NAME is one of timm's."
    )
    weights: str | None = identity(
        None, "Initial weights: `imagenet` (encoder only), a folder (a path or s3://) in smp's layout, or null: random."
    )
    aux_head: bool = identity(
        False, "An auxiliary head on a middle stage of the encoder, in training (loss.aux_weight)."
    )
    options: dict[str, Any] = identity({}, "More arguments of the architecture's class, such as decoder_channels.")


class Transformers(Section):
    name: Literal["beit", "data2vec_vision", "dpt", "mobilenet_v2", "mobilevit", "mobilevitv2", "upernet"] = identity(
        help="Architecture, through transformers; `segdist models` explains them."
    )
    weights: str | None = identity(
        None, "Initial weights: a Hub id, or a folder (a path or s3://) in the Hugging Face layout; null: random."
    )
    revision: str | None = identity(None, "Commit or tag of the Hub id.")
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
