"""`train.micro_batch_size: auto`: the largest group that fits into the device's memory, tried before the first step."""

from __future__ import annotations

import gc

import torch

from segdist import config, loss, models, optim
from segdist.config import Config
from segdist.data.index import Index
from segdist.data.stream import MicroBatch
from segdist.errors import DeviceMemoryError, UserError
from segdist.strategy import Step
from segdist.world import World

MEMORY_SHARE = 0.9  # of the device's, that a try may use: allocators fragment, and evaluation needs some
CPU_SIZE = 4  # a CPU has memory enough, and gains nothing by larger groups


def group_size(cfg: Config, index: Index, world: World) -> int:
    """The largest divisor of the global batch of which every rank gets a group, and which fits.

    Raises UserError when a single image does not fit.
    """
    total = cfg.train.global_batch_size
    sizes = [n for n in range(total // world.num_ranks, 0, -1) if total % n == 0]
    if world.device.type == "cpu":
        return next(n for n in sizes if n <= CPU_SIZE)
    for size in sizes:
        if fits(cfg, index, size, world.device):
            return size
    raise UserError(
        f"one image of {list(cfg.data.crop_size)} px does not fit into the memory of {world.device} in training; lower "
        "data.crop_size, take a smaller model, or set train.activation_checkpointing=true"
    )


def fits(cfg: Config, index: Index, size: int, device: torch.device) -> bool:
    """Whether two updates by groups of `size` random images of the crop's size do not run out of memory."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, device)
    try:
        _try(cfg, index, size, World(0, 1, device))
        return True
    except DeviceMemoryError:
        return False
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _try(cfg: Config, index: Index, size: int, world: World) -> None:
    alone = "ddp" if cfg.train.strategy == "deepspeed" else cfg.train.strategy  # ZeRO needs less: never more than this
    settled = {"micro_batch_size": size, "global_batch_size": size, "strategy": alone, "zero_offload": False}
    cfg = config.changed(cfg, "train", settled)
    model = models.build(cfg.model, index.labels.names).to(world.device).train()
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = loss.Criterion(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    begun = cfg.optim.freeze_encoder_steps  # a step that walks the encoder backward needs most
    update = Step(model, optimizer, cfg.train, cfg.optim, criterion, world, begun, may_recompute=False)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, *cfg.data.crop_size), dtype=torch.uint8, generator=generator)
    masks = torch.randint(
        0, index.labels.num_classes, (size, *cfg.data.crop_size), dtype=torch.uint8, generator=generator
    )
    group = MicroBatch(0, images, masks, torch.eye(3, 4).repeat(size, 1, 1))
    for step in range(begun, begun + 2):  # the optimizer's states are there from the second on
        update(step, [group], criterion.divisors(criterion.tally([masks])))
