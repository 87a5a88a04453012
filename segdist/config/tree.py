"""Everything a run is: its recipe, and where and how it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from segdist.config.fields import Section, Size, defaults_of, free
from segdist.config.models import NEEDS_PAIRS, Model
from segdist.config.recipe import Data, Loss, Optim, Train


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

    num_previews: int = free(
        4,
        "Draw so many samples at every evaluation, image, truth and prediction side by side, into previews/.",
        ge=0,
        le=64,
    )

    @model_validator(mode="after")
    def _check(self) -> Eval:
        if self.window_size is not None and self.mode == "whole":
            raise ValueError(f"eval.window_size {list(self.window_size)} needs eval.mode=sliding (--mode sliding)")
        return self


class Checkpoint(Section):
    every_steps: int = free(500, "Commit a checkpoint every so many steps, and at the end.", ge=1)
    keep_last: int = free(2, "Keep this many newest checkpoints, and always the best one.", ge=1)


Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=63)]  # of Ray's nodes


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
    node_labels: dict[str, Label] = free(
        {}, "Ranks run on nodes of Ray that have all of these labels, such as market: spot; none: on any."
    )
    first_rank_labels: dict[str, Label] | None = free(
        None, "Rank 0 runs on a node with these labels in the stead of node_labels, such as market: on-demand."
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
        if self.launcher == "local" and (self.node_labels or self.first_rank_labels is not None):
            raise ValueError(
                "scale.node_labels and scale.first_rank_labels choose nodes of Ray; set scale.launcher=ray"
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
    cache_gb: float = free(
        0.0,
        "Disk for row groups of a remote data set, which all runs on this machine share; 0: they are not kept.",
        ge=0,
    )
    cache_dir: str = free("~/.cache/segdist", "Where that disk is.")


class Log(Section):
    every_steps: int = free(10, "Record and print the metrics every so many steps.", ge=1)


class Hub(Section):
    repo_id: str | None = free(
        None, "OWNER/NAME on the Hugging Face Hub that mirrors the best model so far; null: none. Its token: HF_TOKEN."
    )
    private: bool = free(True, "It is created so that only you see it; false: everybody may.")
    show_samples: bool | None = free(
        None,
        "Its card shows validation images with truth and prediction (eval.num_previews); null: where it is private.",
    )

    overwrite: bool = free(False, "Replace what that repository holds of another run.")
    licence: str | None = free(
        None, "Licence of the model, as its card shall say; null: that of the weights it began from."
    )


class Run(Section):
    uri: str = free(help="Folder of this run. The same address continues the run; a finished run is left alone.")


class Config(Section):
    """Everything a run is."""

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
                    f"optim.{name} {getattr(self.optim, name)} must be below train.num_steps {self.train.num_steps}; "
                    f"lower it too, for example optim.{name}={self.train.num_steps // 10}"
                )
        if self.model.name in NEEDS_PAIRS and self.train.micro_batch_size == 1:
            raise ValueError(
                f"model.name={self.model.name} pools an image into one pixel and normalises it over the micro-batch, which a "
                "single image cannot be; give train.micro_batch_size=2 or more"
            )
        bare = self.model.weights in (None, "imagenet") and self.train.init_from is None
        if self.model.transfer_head == "by_name" and bare:
            raise ValueError(
                "model.transfer_head=by_name needs weights that have a head: give them in model.weights or "
                "train.init_from, or leave it out"
            )
        if idle := self.loss.idle():
            raise ValueError(f"loss.{idle[0]} has no effect without {idle[1]}; leave it out, or set that")
        if not self.model.aux_head and self.loss.aux_weight != Loss.model_fields["aux_weight"].default:
            raise ValueError("loss.aux_weight has no effect without model.aux_head=true; leave it out")
        if self.model.aux_head and not self.loss.aux_weight:
            raise ValueError("model.aux_head would never learn with loss.aux_weight=0; give one of them another value")
        if self.train.strategy == "deepspeed":
            if self.optim.freeze_encoder_steps:
                raise ValueError(
                    "train.strategy=deepspeed cannot unfreeze an encoder in mid-run: give train.strategy=ddp, or "
                    "optim.freeze_encoder_steps=0"
                )
            if self.optim.ema_decay and self.train.zero_stage == 3:
                raise ValueError(
                    "optim.ema_decay needs whole weights on every rank, and train.zero_stage=3 divides them; give "
                    "train.zero_stage=2, or train.strategy=ddp"
                )
            if self.train.compile:
                raise ValueError("train.compile is not tried with train.strategy=deepspeed; give one of them")
        return self


DEFAULTS = defaults_of(Config)
