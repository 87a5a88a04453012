"""What makes a model: data, architecture, loss, optimizer and schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from segdist.config.fields import Beta, Section, Size, free, identity


class Data(Section):
    uri: str = free(help="Prepared data set: the folder that holds index.json (made by `segdist prepare`).")
    train_split: str = identity("train", "Split to train on.")
    val_split: str = free("val", "Split to evaluate on.")
    image_size: Annotated[int, Field(ge=1)] | Size | None = identity(
        None,
        "Size the model sees, px: a number for the shorter side (aspect kept), [height, width], or null: as it is.",
    )
    crop_size: Size = identity((512, 512), "Training crop [height, width], px.")
    scale_range: tuple[float, float] = identity((0.5, 2.0), "Random scale of the image before the crop: [least, most].")
    flip_prob: float = identity(0.5, "Probability of a left-right flip.", ge=0, le=1)
    brightness: float = identity(0.25, "Colour jitter: brightness factor within 1 +- this.", ge=0, le=1)
    contrast: float = identity(0.25, "Colour jitter: contrast factor within 1 +- this.", ge=0, le=1)
    saturation: float = identity(0.25, "Colour jitter: saturation factor within 1 +- this.", ge=0, le=1)
    hue: float = identity(0.05, "Colour jitter: hue rotation within +- this share of a full turn.", ge=0, le=0.5)
    lanes_per_slot: int | None = identity(
        None, "Reading lanes per batch slot; null: 1 when the shards were written shuffled, 8 otherwise.", ge=1, le=64
    )

    @model_validator(mode="after")
    def _check(self) -> Data:
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"data.scale_range {list(self.scale_range)} must be [least, most] with 0 < least <= most")
        return self


class Loss(Section):
    """A weighted sum of terms; a term of weight 0 is not computed."""

    cross_entropy: float = identity(
        1.0, "Weight of the cross-entropy, a mean over the valid pixels of the batch.", ge=0
    )
    focal: float = identity(0.0, "Weight of the focal loss (Lin et al. 2017), a mean over valid pixels.", ge=0)
    ohem: float = identity(
        0.0,
        "Weight of the cross-entropy of hard pixels alone (Shrivastava et al. 2016), chosen per micro-batch.",
        ge=0,
    )
    dice: float = identity(0.0, "Weight of 1 - Dice (Milletari et al. 2016), per micro-batch.", ge=0)
    jaccard: float = identity(0.0, "Weight of 1 - soft IoU (Rahman & Wang 2016), per micro-batch.", ge=0)
    tversky: float = identity(0.0, "Weight of 1 - Tversky index (Salehi et al. 2017), per micro-batch.", ge=0)
    lovasz: float = identity(0.0, "Weight of the Lovasz-softmax loss (Berman et al. 2018), per micro-batch.", ge=0)
    class_weights: Literal["enet"] | tuple[float, ...] | None = identity(
        None,
        "Weight of each class in cross-entropy, focal and ohem: a list, `enet` (from the pixel counts in the index), or null.",
    )
    label_smoothing: float = identity(0.0, "Share of the cross-entropy's target spread over all classes.", ge=0, lt=1)
    boundary_weight: float = identity(
        0.0,
        "Pixels at class boundaries weigh up to 1 + this in cross-entropy and focal (after Ronneberger 2015).",
        ge=0,
    )
    boundary_sigma_px: float = identity(2.0, "How far the weight of boundaries reaches, px.", gt=0, le=16)
    focal_gamma: float = identity(2.0, "Focal loss: how much less well-classified pixels weigh.", ge=0)
    tversky_alpha: float = identity(
        0.3, "Tversky: weight of false positives; 1 - this is that of false negatives.", ge=0, le=1
    )
    ohem_threshold: float = identity(0.7, "OHEM keeps pixels whose class has less than this probability.", gt=0, le=1)
    ohem_min_kept: float = identity(
        1 / 16, "OHEM keeps at least this share of a micro-batch's valid pixels.", gt=0, le=1
    )
    aux_weight: float = identity(0.4, "Weight of the loss of an auxiliary head, where the model has one.", ge=0)

    @model_validator(mode="after")
    def _check(self) -> Loss:
        if isinstance(self.class_weights, tuple) and (min(self.class_weights) < 0 or not any(self.class_weights)):
            raise ValueError(f"loss.class_weights {list(self.class_weights)} must not be negative, nor all 0")
        if not any((*self.pixel_terms.values(), *self.group_terms.values())):
            raise ValueError("loss: all terms have weight 0, so nothing would be learned; give loss.cross_entropy=1")
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return tuple(given)
        if given in (None, "enet"):
            return given
        raise ValueError(
            f"loss.class_weights {given!r}: give a list of numbers, one for each class, or enet, or null; `segdist stats DATA` "
            "prints such lists"
        )

    def idle(self) -> tuple[str, str] | None:
        """A field that is set and changes nothing, and the fields through which it would; None where there is none."""
        through = {
            "class_weights": ("cross_entropy", "focal", "ohem"),
            "label_smoothing": ("cross_entropy",),
            "boundary_weight": ("cross_entropy", "focal"),
            "boundary_sigma_px": ("boundary_weight",),
            "focal_gamma": ("focal",),
            "tversky_alpha": ("tversky",),
            "ohem_threshold": ("ohem",),
            "ohem_min_kept": ("ohem",),
        }
        for field, others in through.items():
            is_set = getattr(self, field) != type(self).model_fields[field].default
            if is_set and not any(getattr(self, other) for other in others):
                return field, " or ".join(f"loss.{other}" for other in others)
        return None

    @property
    def pixel_terms(self) -> dict[str, float]:
        """Weights of the terms that are sums over pixels, divided by one count of the whole batch."""
        return {"cross_entropy": self.cross_entropy, "focal": self.focal}

    @property
    def group_terms(self) -> dict[str, float]:
        """Weights of the terms that belong to a micro-batch, averaged over those of the batch that have valid pixels."""
        return {
            "ohem": self.ohem,
            "dice": self.dice,
            "jaccard": self.jaccard,
            "tversky": self.tversky,
            "lovasz": self.lovasz,
        }


class Optim(Section):
    name: Literal["adamw", "adam", "sgd"] = identity(
        "adamw", "adamw (Loshchilov & Hutter 2019), adam (decay in the gradient), or sgd with momentum."
    )
    lr: float = identity(6e-5, "Peak learning rate of the encoder's deepest layers.", gt=0)
    head_lr_factor: float = identity(1.0, "The head (everything behind the encoder) learns this much faster.", gt=0)
    layer_decay: float = identity(
        1.0, "Each encoder layer learns this times as fast as the one after it (Clark et al. 2020).", gt=0, le=1
    )
    weight_decay: float = identity(0.01, "Weight decay; never on norms, biases and position embeddings.", ge=0)
    betas: tuple[Beta, Beta] = identity((0.9, 0.999), "Adam's and AdamW's two decay rates.")
    momentum: float = identity(0.9, "Momentum of sgd.", ge=0, lt=1)
    nesterov: bool = identity(False, "Nesterov momentum of sgd.")
    schedule: Literal["poly", "cosine", "constant", "step"] = identity("poly", "The learning rate after warm-up.")
    warmup_steps: int = identity(0, "Steps of linear warm-up.", ge=0)
    poly_power: float = identity(1.0, "poly: lr * (1 - step / num_steps) ** poly_power.", ge=0)
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = identity(
        (0.6, 0.9), "step: shares of the run after which the rate falls."
    )
    step_factor: float = identity(0.1, "step: the rate is multiplied by this each time.", gt=0, lt=1)
    min_lr_factor: float = identity(0.0, "poly and cosine end at this share of lr.", ge=0, lt=1)
    clip_grad_norm: float | None = identity(None, "Clip the gradient's norm to this; null: do not clip.", gt=0)
    freeze_encoder_steps: int = identity(0, "The encoder keeps its weights and statistics for so many steps.", ge=0)
    ema_decay: float | None = identity(
        None, "Average the weights with this decay; the average is what is scored and exported. null: no.", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if self.nesterov and not (self.name == "sgd" and self.momentum):
            raise ValueError("optim.nesterov needs optim.name=sgd with a momentum")
        if list(self.step_at) != sorted(set(self.step_at)):
            raise ValueError(f"optim.step_at {list(self.step_at)} must rise: shares of the run, such as [0.6, 0.9]")
        return self

    @field_validator("step_at", mode="before")
    @classmethod
    def _shares(cls, given: Any) -> Any:
        if isinstance(given, list | tuple) and any(isinstance(n, int | float) and n >= 1 for n in given):
            raise ValueError(f"optim.step_at {list(given)}: these are shares of the run, such as [0.6, 0.9], not steps")
        return tuple(given) if isinstance(given, list) else given

    @field_validator("name", "schedule", mode="before")
    @classmethod
    def _lower(cls, given: Any) -> Any:
        return given.lower() if isinstance(given, str) else given


class Train(Section):
    num_steps: int = identity(help="Optimizer updates in the whole run.", ge=1)
    global_batch_size: int = identity(16, "Samples per update, over all ranks.", ge=1)
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = identity(
        4,
        "Samples per forward pass; batch statistics and dropout belong to this group. auto: what fits, tried once before "
        "the first step, and kept for the whole run.",
    )
    seed: int = identity(0, "Seed of weights, order, augmentation and dropout.", ge=0, lt=2**63)
    init_from: str | None = identity(None, "Run or checkpoint whose weights begin this run (recorded as its parent).")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = identity(
        "auto",
        "Training's forward and backward; weights and scores are fp32. auto, settled at the first step: bf16 where the GPU "
        "has it, fp16 on older ones, fp32 on CPUs.",
    )
    tf32: bool = identity(True, "Let GPUs round fp32 products to TF32, in training alone.")
    deterministic: bool = free(
        False, "The same bits each time on a GPU, with slower kernels where needed; exact implies it."
    )
    strategy: Literal["auto", "exact", "ddp", "deepspeed"] = free(
        "auto",
        "exact: on CPUs the same bits on any number of ranks; ddp: fast on GPUs; deepspeed: ZeRO, for memory; auto: exact "
        "on the CPU, else ddp.",
    )
    zero_stage: Literal[1, 2, 3] = free(
        2, "deepspeed divides among ranks: 1 optimizer states, 2 and gradients, 3 and weights."
    )
    zero_offload: bool = free(False, "deepspeed keeps optimizer states in the CPU's memory.")
    compile: bool = free(False, "torch.compile the model's training pass.")
    activation_checkpointing: bool = free(
        False,
        "Keep only block borders for the backward pass and compute the rest again: less memory, about 1/3 slower.",
    )

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.micro_batch_size != "auto" and self.global_batch_size % self.micro_batch_size:
            sizes = [n for n in range(1, self.global_batch_size + 1) if self.global_batch_size % n == 0]
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of "
                f"train.micro_batch_size {self.micro_batch_size}; give one of {', '.join(map(str, sizes))}, or another batch"
            )
        if self.strategy == "exact" and self.precision == "fp16":
            raise ValueError(
                "train.strategy=exact adds gradients on a fixed grid, which fp16's loss scale would overflow; "
                "give train.precision=bf16 or fp32, or train.strategy=ddp"
            )
        if self.strategy == "deepspeed" and self.precision == "fp16":
            raise ValueError("train.strategy=deepspeed trains in bf16 or fp32; for fp16 give train.strategy=ddp")
        if self.zero_offload and self.strategy != "deepspeed":
            raise ValueError("train.zero_offload needs train.strategy=deepspeed")
        if self.zero_stage != 2 and self.strategy != "deepspeed":
            raise ValueError(f"train.zero_stage={self.zero_stage} needs train.strategy=deepspeed; leave it out")
        return self

    @property
    def group_size(self) -> int:
        """Samples per micro-batch, where `auto` has been settled."""
        assert self.micro_batch_size != "auto", "opening.settle comes first"
        return self.micro_batch_size

    @property
    def num_groups(self) -> int:
        """Micro-batches per step, over all ranks."""
        return self.global_batch_size // self.group_size
