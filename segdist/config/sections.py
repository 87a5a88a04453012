"""The run as a tree of strict, frozen classes: one YAML, then `section.field=value` on the command line.

Every field is *identity* (it decides the weights: changing it makes another run) or *free* (where and how it runs).
Only a changed identity refuses to continue a run. The data set's identity is its index digest, not its address.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo


def identity(default: Any = ..., help: str = "", **rules: Any) -> Any:
    """A field that decides the weights."""
    return Field(default, description=help, json_schema_extra={"identity": True}, **rules)


def free(default: Any = ..., help: str = "", **rules: Any) -> Any:
    """A field that may change between two attempts at one run."""
    return Field(default, description=help, json_schema_extra={"identity": False}, **rules)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


Beta = Annotated[float, Field(ge=0, lt=1)]


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

    @model_validator(mode="after")
    def _check(self) -> Segformer:
        if (self.size is None) == (self.weights is None):
            raise ValueError("give either model.size (random initial weights) or model.weights, not both or neither")
        if self.revision is not None and self.weights is None:
            raise ValueError("model.revision needs model.weights")
        return self


class Unet(Section):
    name: Literal["unet"] = identity("unet", "U-Net (Ronneberger et al. 2015) through segmentation-models-pytorch.")
    encoder: str = identity("resnet34", "Encoder name, as segmentation-models-pytorch lists them.")
    weights: str | None = identity(
        None, "Initial weights: `imagenet` (encoder only), a folder (a path or s3://) in smp's layout, or null: random."
    )


class Loss(Section):
    class_weights: Literal["enet"] | tuple[float, ...] | None = identity(
        None, "Weight of each class in the cross-entropy: a list, `enet` (from the pixel counts in the index), or null."
    )

    @model_validator(mode="after")
    def _check(self) -> Loss:
        if isinstance(self.class_weights, tuple) and not all(w >= 0 for w in self.class_weights):
            raise ValueError(f"loss.class_weights {list(self.class_weights)} must not be negative")
        return self


class Optim(Section):
    lr: float = identity(6e-5, "Peak learning rate of AdamW.", gt=0)
    head_lr_factor: float = identity(1.0, "The head (everything behind the encoder) learns this much faster.", gt=0)
    weight_decay: float = identity(0.01, "Weight decay; never on norms and biases.", ge=0)
    betas: tuple[Beta, Beta] = identity((0.9, 0.999), "AdamW's two decay rates.")
    warmup_steps: int = identity(0, "Steps of linear warm-up.", ge=0)
    poly_power: float = identity(1.0, "After warm-up: lr * (1 - step / num_steps) ** poly_power.", ge=0)
    clip_grad_norm: float | None = identity(None, "Clip the gradient's norm to this; null: do not clip.", gt=0)


class Train(Section):
    num_steps: int = identity(help="Optimizer updates in the whole run.", ge=1)
    global_batch_size: int = identity(16, "Samples per update, over all ranks.", ge=1)
    micro_batch_size: int = identity(
        4, "Samples per forward pass; batch statistics and dropout belong to this group.", ge=1
    )
    seed: int = identity(0, "Seed of weights, order, augmentation and dropout.", ge=0, lt=2**63)
    init_from: str | None = identity(None, "Run or checkpoint whose weights begin this run (recorded as its parent).")
    strategy: Literal["auto", "exact", "ddp"] = free(
        "auto",
        "exact: on CPUs the same bits on any number of ranks; ddp: fast on GPUs; auto: exact on the CPU, else ddp.",
    )
    precision: Literal["fp32", "bf16"] = identity(
        "fp32", "Training's forward and backward; weights and scores are fp32."
    )

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of "
                f"train.micro_batch_size {self.micro_batch_size}; give both, for example "
                f"train.global_batch_size={self.global_batch_size} train.micro_batch_size={self.global_batch_size}"
            )
        return self

    @property
    def num_groups(self) -> int:
        """Micro-batches per step, over all ranks."""
        return self.global_batch_size // self.micro_batch_size


class Eval(Section):
    every_steps: int = free(500, "Evaluate (and commit a checkpoint) every so many steps, and at the end.", ge=1)
    batch_size: int = free(4, "Images, or windows, per forward pass; images must be of one size to share it.", ge=1)
    mode: Literal["whole", "sliding"] = free(
        "whole", "whole: the model sees an image at once; sliding: in overlapping windows, in bounded memory."
    )
    window_size: Size | None = free(None, "Sliding window [height, width], px; null: data.crop_size.")
    window_overlap: float = free(0.5, "Share of a window that the next one covers again.", ge=0, le=0.95)
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = free(
        (1.0,), "See every image at these scales, and average the class probabilities.", min_length=1
    )
    flip: bool = free(False, "See every image mirrored, too, and average.")
    num_samples: int | None = free(
        None, "In training, score so many samples, the same each time, spread over the split; null: all.", ge=1
    )

    @model_validator(mode="after")
    def _check(self) -> Eval:
        if self.window_size is not None and self.mode == "whole":
            raise ValueError(f"eval.window_size {list(self.window_size)} needs eval.mode=sliding (--mode sliding)")
        return self


class Checkpoint(Section):
    every_steps: int = free(500, "Commit a checkpoint every so many steps, and at the end.", ge=1)
    keep_last: int = free(2, "Keep this many newest checkpoints, and always the best one.", ge=1)


class Scale(Section):
    launcher: Literal["local", "ray"] = free(
        "local", "local: this process, or the ranks of torchrun; ray: Ray Train, on RAY_ADDRESS or on this machine."
    )
    num_ranks: int = free(1, "Ranks that Ray starts (torchrun brings its own number).", ge=1)
    device: Literal["auto", "cpu", "cuda"] = free("auto", "Where to compute; auto: CUDA when there is one.")
    cpu_threads: int | None = free(
        None, "Threads of CPU arithmetic per rank; fix it when bits are compared. null: torch decides.", ge=1
    )
    cpus_per_rank: float = free(1, "CPUs that Ray reserves for a rank.", gt=0)
    gpus_per_rank: float | None = free(
        None,
        "GPUs that Ray reserves for a rank; null: 1 where the device is cuda, or auto and a node has one now.",
        ge=0,
        le=1,
    )
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = free(
        "pack", "Ray's placement of ranks on nodes: together, apart, or (strict) not at all otherwise."
    )
    start_seconds: int = free(
        300, "How long Ray may look for nodes, at the start and after one was lost, before the run gives up.", ge=1
    )
    max_restarts: int = free(
        10, "How often Ray starts the ranks again after one died, from the newest checkpoint.", ge=0
    )

    @model_validator(mode="after")
    def _check(self) -> Scale:
        if self.launcher == "local" and self.num_ranks > 1:
            raise ValueError(
                f"scale.num_ranks {self.num_ranks} needs scale.launcher=ray; without Ray, start several ranks by "
                "`torchrun --nproc-per-node N -m segdist train CONFIG`"
            )
        if self.device == "cpu" and self.gpus_per_rank:
            raise ValueError("scale.gpus_per_rank wants GPUs that scale.device=cpu would not use; remove one of them")
        if self.device == "cuda" and self.gpus_per_rank == 0:
            raise ValueError("scale.device=cuda needs GPUs, and scale.gpus_per_rank is 0; remove one of them")
        if self.num_ranks > 1 and self.gpus_per_rank not in (None, 0, 1):
            raise ValueError(
                f"scale.gpus_per_rank {self.gpus_per_rank}: several ranks cannot share a GPU (NCCL refuses); give 1, or "
                "scale.num_ranks=1"
            )
        return self


class Io(Section):
    loader_threads: int = free(4, "Threads per rank that decode and augment.", ge=1)
    fetch_threads: int = free(8, "Threads per rank that fetch row groups.", ge=1)
    prefetch_steps: int = free(2, "Whole batches kept decoded ahead of the step.", ge=1)
    fetch_ahead_steps: int = free(16, "Steps whose row groups are fetched ahead, compressed.", ge=1)


class Log(Section):
    every_steps: int = free(10, "Record and print the metrics every so many steps.", ge=1)


class Run(Section):
    uri: str = free(help="Folder of this run. The same address continues the run; a finished run is left alone.")


class Config(Section):
    """Everything a run is."""

    run: Run
    data: Data
    model: Annotated[Segformer | Unet, Field(discriminator="name")]
    train: Train
    loss: Loss = Loss()
    optim: Optim = Optim()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    scale: Scale = Scale()
    io: Io = Io()
    log: Log = Log()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.optim.warmup_steps >= self.train.num_steps:
            raise ValueError(
                f"optim.warmup_steps {self.optim.warmup_steps} must be below train.num_steps {self.train.num_steps}; "
                f"lower it too, for example optim.warmup_steps={self.train.num_steps // 10}"
            )
        return self


def to_tree(cfg: BaseModel) -> dict[str, Any]:
    """The config as plain JSON-able data."""
    return cfg.model_dump(mode="json")


def fields(cfg: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """(dotted key, value, field) of every leaf, in order."""
    for name, field in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        if isinstance(value, Section):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field


def is_identity(field: FieldInfo) -> bool:
    """Whether a change of this field makes another run."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra["identity"])


def identity_of(cfg: Config) -> dict[str, Any]:
    """Dotted key -> plain value of all identity fields."""
    return {key: json.loads(json.dumps(value)) for key, value, field in fields(cfg) if is_identity(field)}
