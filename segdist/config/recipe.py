"""What makes a model: data, loss, optimizer, schedule and training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from segdist.config.fields import Beta, Section, Size, free, identity


class Data(Section):
    uri: str = free(help="Prepared dataset: path or URI of the folder with index.json, written by `segdist prepare`.")
    train_split: str = identity("train", "Split to train on.")
    val_split: str = free("val", "Split to evaluate on.")
    image_size: Annotated[int, Field(ge=1)] | Size | None = identity(
        None,
        "Resize images to this size, px: the shorter side (keeps the aspect ratio) or [height, width]. null: do not resize.",
    )
    crop_size: Size = identity((512, 512), "Training crop [height, width], px.")
    scale_range: tuple[float, float] = identity((0.5, 2.0), "Random scale before the crop: factor in [min, max].")
    flip_prob: float = identity(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    brightness: float = identity(0.25, "Colour jitter: brightness factor in 1 +- this.", ge=0, le=1)
    contrast: float = identity(0.25, "Colour jitter: contrast factor in 1 +- this.", ge=0, le=1)
    saturation: float = identity(0.25, "Colour jitter: saturation factor in 1 +- this.", ge=0, le=1)
    hue: float = identity(0.05, "Colour jitter: hue rotation in +- this fraction of a full turn.", ge=0, le=0.5)

    @model_validator(mode="after")
    def _check(self) -> Data:
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"data.scale_range {list(self.scale_range)} must be [min, max] with 0 < min <= max")
        return self


class Loss(Section):
    """A weighted sum of terms. A term of weight 0 is not computed."""

    cross_entropy: float = identity(1.0, "Weight of the cross-entropy, a mean over the batch's valid pixels.", ge=0)
    focal: float = identity(
        0.0, "Weight of the focal loss (Lin et al. 2017), a mean over the batch's valid pixels.", ge=0
    )
    ohem: float = identity(
        0.0, "Weight of the cross-entropy of hard pixels only (Shrivastava et al. 2016), per micro-batch.", ge=0
    )
    dice: float = identity(0.0, "Weight of 1 - Dice (Milletari et al. 2016), per micro-batch.", ge=0)
    jaccard: float = identity(0.0, "Weight of 1 - soft IoU (Rahman & Wang 2016), per micro-batch.", ge=0)
    tversky: float = identity(0.0, "Weight of 1 - Tversky index (Salehi et al. 2017), per micro-batch.", ge=0)
    lovasz: float = identity(0.0, "Weight of the Lovasz-softmax loss (Berman et al. 2018), per micro-batch.", ge=0)
    class_weights: Literal["enet"] | tuple[float, ...] | None = identity(
        None,
        "Weight of each class in cross_entropy, focal and ohem: a list, or `enet` (from the dataset's pixel counts). null: "
        "equal weights.",
    )
    label_smoothing: float = identity(
        0.0, "Fraction of the cross-entropy's target that is spread evenly over all classes.", ge=0, lt=1
    )
    boundary_weight: float = identity(
        0.0,
        "Weight pixels at class boundaries by up to 1 + this in cross_entropy and focal (after Ronneberger et al. 2015).",
        ge=0,
    )
    boundary_sigma_px: float = identity(
        2.0, "Width of the Gaussian that weights pixels near class boundaries (its sigma), px.", gt=0, le=16
    )
    focal_gamma: float = identity(2.0, "Focal loss: exponent that reduces the weight of well-classified pixels.", ge=0)
    tversky_alpha: float = identity(
        0.3, "Tversky: weight of false positives; false negatives have 1 - this.", ge=0, le=1
    )
    ohem_threshold: float = identity(
        0.7, "OHEM: keep pixels whose true class has a lower probability than this.", gt=0, le=1
    )
    ohem_min_kept: float = identity(
        1 / 16, "OHEM: keep at least this fraction of a micro-batch's valid pixels.", gt=0, le=1
    )
    aux_weight: float = identity(0.4, "Weight of the auxiliary head's loss, if model.aux_head is true.", ge=0)

    @model_validator(mode="after")
    def _check(self) -> Loss:
        if isinstance(self.class_weights, tuple) and (min(self.class_weights) < 0 or not any(self.class_weights)):
            raise ValueError(f"loss.class_weights {list(self.class_weights)} must not be negative, nor all 0")
        if not any((*self.pixel_terms.values(), *self.micro_batch_terms.values())):
            raise ValueError("loss: all terms have weight 0. Set at least one, for example loss.cross_entropy=1")
        return self

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weights(cls, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return tuple(given)
        if given in (None, "enet"):
            return given
        raise ValueError(
            f"loss.class_weights {given!r}: give a list of numbers, one for each class, or enet, or null. `segdist stats DATA` "
            "prints such lists"
        )

    def unused_field(self) -> tuple[str, str] | None:
        """Return (a field that is set without effect, the fields it needs); None if there is none."""
        needs = {
            "class_weights": ("cross_entropy", "focal", "ohem"),
            "label_smoothing": ("cross_entropy",),
            "boundary_weight": ("cross_entropy", "focal"),
            "boundary_sigma_px": ("boundary_weight",),
            "focal_gamma": ("focal",),
            "tversky_alpha": ("tversky",),
            "ohem_threshold": ("ohem",),
            "ohem_min_kept": ("ohem",),
        }
        for field, others in needs.items():
            is_set = getattr(self, field) != type(self).model_fields[field].default
            if is_set and not any(getattr(self, other) for other in others):
                return field, " or ".join(f"loss.{other}" for other in others)
        return None

    @property
    def pixel_terms(self) -> dict[str, float]:
        """Weights of the terms that are sums over pixels, divided by one count of the whole batch."""
        return {"cross_entropy": self.cross_entropy, "focal": self.focal}

    @property
    def micro_batch_terms(self) -> dict[str, float]:
        """Weights of the terms that are computed per micro-batch and averaged over those with valid pixels."""
        return {
            "ohem": self.ohem,
            "dice": self.dice,
            "jaccard": self.jaccard,
            "tversky": self.tversky,
            "lovasz": self.lovasz,
        }


class Optim(Section):
    name: Literal["adamw", "adam", "sgd"] = identity(
        "adamw", "adamw (Loshchilov & Hutter 2019), adam (L2 regularisation in the gradient), or sgd with momentum."
    )
    lr: float = identity(6e-5, "Peak learning rate of the encoder's last layer.", gt=0)
    head_lr_factor: float = identity(
        1.0, "Learning rate of the head (everything after the encoder), as a factor of lr.", gt=0
    )
    layer_decay: float = identity(
        1.0,
        "Learning rate of an encoder layer, as a factor of the next layer's (Clark et al. 2020); 1: equal rates.",
        gt=0,
        le=1,
    )
    weight_decay: float = identity(0.01, "Weight decay, except for norms, biases and position embeddings.", ge=0)
    betas: tuple[Beta, Beta] = identity((0.9, 0.999), "adam, adamw: decay rates of the two moments.")
    momentum: float = identity(0.9, "sgd: momentum.", ge=0, lt=1)
    nesterov: bool = identity(False, "sgd: use Nesterov momentum.")
    schedule: Literal["poly", "cosine", "constant", "step"] = identity("poly", "Learning rate schedule after warm-up.")
    warmup_steps: int = identity(0, "Steps of linear warm-up; 0: none.", ge=0)
    poly_power: float = identity(1.0, "poly: lr * (1 - step / num_steps) ** poly_power.", ge=0)
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = identity(
        (0.6, 0.9), "step: fractions of the run after which the learning rate drops."
    )
    step_factor: float = identity(0.1, "step: factor of each drop.", gt=0, lt=1)
    min_lr_factor: float = identity(0.0, "poly, cosine: final learning rate, as a factor of lr.", ge=0, lt=1)
    clip_grad_norm: float | None = identity(None, "Maximum norm of the gradient. null: no clipping.", gt=0)
    freeze_encoder_steps: int = identity(
        0, "Steps during which the encoder's weights and running statistics are frozen; 0: none.", ge=0
    )
    ema_decay: float | None = identity(
        None, "Decay of EMA weights, which are then evaluated and exported. null: no EMA.", gt=0, lt=1
    )

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if self.nesterov and not (self.name == "sgd" and self.momentum):
            raise ValueError("optim.nesterov needs optim.name=sgd with a momentum above 0")
        if list(self.step_at) != sorted(set(self.step_at)):
            raise ValueError(
                f"optim.step_at {list(self.step_at)} must increase. Give fractions of the run, such as [0.6, 0.9]"
            )
        return self

    @field_validator("step_at", mode="before")
    @classmethod
    def _fractions(cls, given: Any) -> Any:
        if isinstance(given, list | tuple) and any(isinstance(n, int | float) and n >= 1 for n in given):
            raise ValueError(f"optim.step_at {list(given)}: give fractions of the run, such as [0.6, 0.9], not steps")
        return tuple(given) if isinstance(given, list) else given

    @field_validator("name", "schedule", mode="before")
    @classmethod
    def _lower(cls, given: Any) -> Any:
        return given.lower() if isinstance(given, str) else given


class Train(Section):
    num_steps: int = identity(help="Optimizer steps of the whole run.", ge=1)
    global_batch_size: int = identity(16, "Samples per step, over all ranks.", ge=1)
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = identity(
        4,
        "Samples per forward pass, the unit of batch statistics and dropout. auto: the largest that fits, measured once "
        "before the first step and kept for the whole run (on CPUs: the largest divisor of the batch up to 4).",
    )
    seed: int = identity(0, "Seed of initial weights, sample order, augmentation and dropout.", ge=0, lt=2**63)
    init_from: str | None = identity(
        None, "Run or checkpoint whose weights start this run, recorded as its parent. null: start from model.weights."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = identity(
        "auto",
        "Precision of forward and backward; weights and evaluation are fp32. auto: bf16 on GPUs that support it, fp16 on "
        "older GPUs, fp32 on CPUs; kept for the whole run.",
    )
    tf32: bool = identity(True, "Allow TF32 matrix products on GPUs during training.")
    deterministic: bool = free(
        False, "Use deterministic kernels on GPUs, which may be slower. Always on with strategy exact."
    )
    strategy: Literal["auto", "exact", "ddp", "deepspeed"] = free(
        "auto",
        "exact: bit-identical on any number of CPU ranks; ddp: PyTorch DDP, fast on GPUs; deepspeed: ZeRO, saves memory; "
        "auto: exact on CPUs, ddp on GPUs.",
    )
    zero_stage: Literal[1, 2, 3] = free(
        2, "deepspeed: what to partition over ranks. 1: optimizer states; 2: and gradients; 3: and weights."
    )
    zero_offload: bool = free(False, "deepspeed: keep optimizer states in CPU memory.")
    compile: bool = free(False, "Compile the training forward pass with torch.compile.")
    activation_checkpointing: bool = free(False, "Recompute activations in the backward pass: less memory, but slower.")

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.micro_batch_size != "auto" and self.global_batch_size % self.micro_batch_size:
            sizes = [n for n in range(1, self.global_batch_size + 1) if self.global_batch_size % n == 0]
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of train.micro_batch_size "
                f"{self.micro_batch_size}. Set micro_batch_size to one of {', '.join(map(str, sizes))}, or change "
                "global_batch_size"
            )
        if self.strategy == "exact" and self.precision == "fp16":
            raise ValueError(
                "train.strategy=exact adds gradients on a fixed grid, which overflows with fp16's loss scale. Set "
                "train.precision=bf16 or fp32, or train.strategy=ddp"
            )
        if self.strategy == "deepspeed" and self.precision == "fp16":
            raise ValueError(
                "train.strategy=deepspeed supports bf16 and fp32 only. Set train.precision=bf16, or train.strategy=ddp for fp16"
            )
        if self.zero_offload and self.strategy != "deepspeed":
            raise ValueError("train.zero_offload needs train.strategy=deepspeed")
        if self.zero_stage != 2 and self.strategy != "deepspeed":
            raise ValueError(f"train.zero_stage={self.zero_stage} needs train.strategy=deepspeed. Remove it otherwise")
        return self

    @property
    def samples_per_micro_batch(self) -> int:
        """micro_batch_size, once `auto` has been resolved."""
        assert self.micro_batch_size != "auto", "train.setup.resolve_auto comes first"
        return self.micro_batch_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per step, over all ranks."""
        return self.global_batch_size // self.samples_per_micro_batch
