"""The config of a run: its recipe, and where and how it executes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segdist.config.fields import Section, Size, defaults_of, free
from segdist.config.models import NEEDS_TWO_IMAGES, Model
from segdist.config.recipe import Data, Loss, Optim, Train


class Eval(Section):
    every_steps: int = free(500, "Number of steps between evaluations, each with a checkpoint. Also at the end.", ge=1)
    batch_size: int = free(4, "Images or windows per forward pass. Only images of equal size share a batch.", ge=1)
    mode: Literal["whole", "sliding"] = free(
        "whole", "whole: the whole image at once; sliding: overlapping windows, with bounded memory."
    )
    window_size: Size | None = free(None, "sliding: window [height, width], px. null: data.crop_size.")
    window_overlap: float = free(0.5, "sliding: overlap of neighbouring windows, as a fraction.", ge=0, le=0.95)
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = free(
        (1.0,), "Test-time augmentation: average class probabilities over these image scales.", min_length=1
    )
    flip: bool = free(False, "Test-time augmentation: also average over the flipped image.")
    num_samples: int | None = free(
        None,
        "Samples to score during training, always the same ones, spread over the split. null: all.",
        ge=1,
    )

    num_previews: int = free(
        4,
        "Samples to draw at every evaluation (image, mask and prediction side by side) into previews/; 0: none.",
        ge=0,
        le=64,
    )

    @model_validator(mode="after")
    def _check(self) -> Eval:
        if self.window_size is not None and self.mode == "whole":
            raise ValueError(f"eval.window_size {list(self.window_size)} needs eval.mode=sliding (--mode sliding)")
        return self


class Checkpoint(Section):
    every_steps: int = free(500, "Number of steps between checkpoints. Also at the end.", ge=1)
    keep_last: int = free(2, "Newest checkpoints to keep. The best checkpoint is always kept.", ge=1)


Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=63)]  # Ray node label


class Scale(Section):
    launcher: Literal["local", "ray"] = free(
        "local", "local: this process, or torchrun's ranks; ray: Ray Train, on RAY_ADDRESS or on this machine."
    )
    num_ranks: int = free(1, "Ranks that Ray starts. torchrun sets its own number.", ge=1)
    device: Literal["auto", "cpu", "cuda"] = free(
        "auto", "Device to compute on; auto: CUDA if available, else the CPU."
    )
    cpu_threads: int | None = free(
        None, "Threads per rank for CPU arithmetic. Fix it for bit-identical results. null: PyTorch's default.", ge=1
    )
    cpus_per_rank: float = free(1, "CPUs that Ray reserves per rank.", gt=0)
    gpus_per_rank: float | None = free(
        None,
        "GPUs that Ray reserves per rank. null: 1 if device is cuda, or if it is auto and a node has a GPU; else 0.",
        ge=0,
        le=1,
    )
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = free(
        "pack", "Placement of ranks on Ray nodes: pack together or spread; strict_*: fail if that is impossible."
    )
    node_labels: dict[str, Label] = free(
        {}, "Run ranks only on Ray nodes with all of these labels, such as market: spot. {}: any node."
    )
    first_rank_labels: dict[str, Label] | None = free(
        None, "Labels for the node of rank 0, such as market: on-demand. null: node_labels."
    )
    start_seconds: int = free(
        300, "How long to wait for nodes, at the start and after losing one, before the run fails, s.", ge=1
    )
    max_restarts: int = free(
        10, "How many times Ray restarts the ranks from the newest checkpoint after failures.", ge=0
    )

    @model_validator(mode="after")
    def _check(self) -> Scale:
        if self.launcher == "local" and self.num_ranks > 1:
            raise ValueError(
                f"scale.num_ranks {self.num_ranks} needs scale.launcher=ray. Without Ray, start several ranks with "
                "`torchrun --nproc-per-node N -m segdist train CONFIG`"
            )
        if self.launcher == "local" and (self.node_labels or self.first_rank_labels is not None):
            raise ValueError("scale.node_labels and scale.first_rank_labels select Ray nodes. Set scale.launcher=ray")
        if self.device == "cpu" and self.gpus_per_rank:
            raise ValueError("scale.gpus_per_rank reserves GPUs that scale.device=cpu does not use. Remove one of them")
        if self.device == "cuda" and self.gpus_per_rank == 0:
            raise ValueError("scale.device=cuda needs GPUs, but scale.gpus_per_rank is 0. Remove one of them")
        if self.num_ranks > 1 and self.gpus_per_rank not in (None, 0, 1):
            raise ValueError(
                f"scale.gpus_per_rank {self.gpus_per_rank}: ranks cannot share a GPU, because NCCL does not support it. Set "
                "scale.gpus_per_rank=1 or scale.num_ranks=1"
            )
        return self


class Io(Section):
    loader_threads: int = free(4, "Threads per rank that decode and augment samples.", ge=1)
    fetch_threads: int = free(8, "Threads per rank that fetch row groups.", ge=1)
    prefetch_steps: int = free(2, "Decoded batches to hold ahead of the training step.", ge=1)
    fetch_ahead_steps: int = free(16, "Steps whose compressed row groups are fetched ahead.", ge=1)
    cache_gb: float = free(
        0.0, "Disk cache for row groups of a remote dataset, shared by all runs on a machine, GB; 0: no cache.", ge=0
    )
    cache_dir: str = free("~/.cache/segdist", "Folder of the disk cache.")


class Log(Section):
    every_steps: int = free(10, "Number of steps between records of the metrics, which are also printed.", ge=1)


class Hub(Section):
    repo_id: str | None = free(
        None, "OWNER/NAME of a Hugging Face Hub repository for the best model; needs HF_TOKEN. null: no upload."
    )
    private: bool = free(True, "Create the repository as private; false: public.")
    show_samples: bool | None = free(
        None,
        "Show validation images with mask and prediction (eval.num_previews) on the model card. null: only if private.",
    )

    overwrite: bool = free(False, "Replace another run's files in the repository.")
    licence: str | None = free(None, "Licence of the model on its card. null: that of the initial weights.")


class Run(Section):
    uri: str = free(
        help="Folder of this run, a path or URI. The same URI continues the run; a finished run is left alone."
    )


class Config(Section):
    """The config of a run."""

    run: Run
    data: Data
    model: Model
    train: Train
    loss: Loss = Loss()
    optim: Optim = Optim()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    scale: Scale = Scale()
    io: Io = Io()
    log: Log = Log()
    hub: Hub = Hub()

    @model_validator(mode="after")
    def _check(self) -> Config:
        for name in ("warmup_steps", "freeze_encoder_steps"):
            if getattr(self.optim, name) >= self.train.num_steps:
                raise ValueError(
                    f"optim.{name} {getattr(self.optim, name)} must be below train.num_steps {self.train.num_steps}. Lower it, "
                    f"for example optim.{name}={self.train.num_steps // 10}"
                )
        self._check_model()
        if self.train.strategy == "deepspeed":
            self._check_deepspeed()
        return self

    def _check_model(self) -> None:
        if self.model.name in NEEDS_TWO_IMAGES and self.train.micro_batch_size == 1:
            raise ValueError(
                f"model.name={self.model.name} pools each image to one pixel and normalises it over the micro-batch, so it "
                "needs at least two images. Set train.micro_batch_size=2 or more"
            )
        without_head = self.model.weights in (None, "imagenet") and self.train.init_from is None
        if self.model.transfer_head == "by_name" and without_head:
            raise ValueError(
                "model.transfer_head=by_name needs weights with a head. Set model.weights or train.init_from, or remove "
                "model.transfer_head"
            )
        if unused := self.loss.unused_field():
            raise ValueError(f"loss.{unused[0]} has no effect without {unused[1]}. Remove it, or set {unused[1]}")
        if not self.model.aux_head and self.loss.aux_weight != Loss.model_fields["aux_weight"].default:
            raise ValueError("loss.aux_weight has no effect without model.aux_head=true. Remove it")
        if self.model.aux_head and not self.loss.aux_weight:
            raise ValueError("model.aux_head is not trained with loss.aux_weight=0. Change one of them")

    def _check_deepspeed(self) -> None:
        if self.optim.freeze_encoder_steps:
            raise ValueError(
                "train.strategy=deepspeed cannot unfreeze the encoder during a run. Set train.strategy=ddp, or "
                "optim.freeze_encoder_steps=0"
            )
        if self.optim.ema_decay and self.train.zero_stage == 3:
            raise ValueError(
                "optim.ema_decay needs whole weights on every rank, but train.zero_stage=3 partitions them. Set "
                "train.zero_stage=2, or train.strategy=ddp"
            )
        if self.train.compile:
            raise ValueError("train.compile is not tested with train.strategy=deepspeed. Remove one of them")


DEFAULTS = defaults_of(Config)
