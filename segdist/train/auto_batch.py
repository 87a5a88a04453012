"""`train.micro_batch_size: auto`: the largest micro-batch that fits into the devices' memory, tried before the first step."""

from __future__ import annotations

import gc

import torch

from segdist import config
from segdist.config import Config
from segdist.data.index import Index
from segdist.data.stream import MicroBatch
from segdist.distributed import World
from segdist.errors import DeviceMemoryError, UserError, is_out_of_memory
from segdist.runs import restore
from segdist.step import loss, optim
from segdist.step.update import Step, kernels

MEMORY_SHARE = 0.9  # of the device's, that a try may use: allocators fragment, and evaluation needs some
ZERO_BYTES = 12  # per parameter, that ZeRO may hold beyond DDP: flat copies, which on few ranks outweigh what it shares
CPU_SIZE = 4  # a CPU has memory enough, and gains nothing by larger groups


def group_size(cfg: Config, index: Index, world: World) -> int:
    """The largest divisor of the global batch of which every rank gets a group, and which fits on all. All must call it.

    Raises UserError when a single image does not fit.
    """
    total = cfg.train.global_batch_size
    least = 2 if cfg.model.name in config.NEEDS_PAIRS else 1
    sizes = [n for n in range(total // world.num_ranks, least - 1, -1) if total % n == 0]
    if not sizes:
        raise UserError(
            f"train.global_batch_size {total} cannot be cut into a micro-batch for each of {world.num_ranks} rank(s)"
            f"{f' of {least} images at least, which model.name={cfg.model.name} needs' if least > 1 else ''}; raise it"
        )
    if world.device.type == "cpu":
        return next((n for n in sizes if n <= CPU_SIZE), sizes[-1])
    for size in sizes:
        num_groups = -(-total // size // world.num_ranks)  # of the rank that has most
        misfits = torch.tensor([not fits(cfg, index, size, min(num_groups, 2), world.device)], dtype=torch.int64)
        if not world.late_sum(misfits):
            return size
    raise UserError(
        f"one image of {list(cfg.data.crop_size)} px does not fit into the memory of {world.device} in training; lower "
        "data.crop_size, take a smaller model, or set train.activation_checkpointing=true"
    )


def fits(cfg: Config, index: Index, size: int, num_groups: int, device: torch.device) -> bool:
    """Whether two updates by groups of `size` random images of the crop's size do not run out of memory."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, device)
    try:
        with kernels(cfg.train, device):
            _try(cfg, index, size, num_groups, World(0, 1, device))
        return True
    except DeviceMemoryError:
        return False
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def _try(cfg: Config, index: Index, size: int, num_groups: int, world: World) -> None:
    zero = cfg.train.strategy == "deepspeed"
    settled = {"micro_batch_size": size, "global_batch_size": size * num_groups}
    cfg = config.changed(cfg, "train", settled | ({"strategy": "ddp", "zero_offload": False} if zero else {}))
    model = restore.build(cfg.model.model_copy(update={"transfer_head": "none"}), index.labels.names)
    model = model.to(world.device).train()
    num_bytes = ZERO_BYTES * sum(p.numel() for p in model.parameters()) if zero else 0
    ballast = torch.empty(num_bytes, dtype=torch.uint8, device=world.device)
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = loss.Criterion(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    begun = cfg.optim.freeze_encoder_steps  # a step that walks the encoder backward needs most
    update = Step(model, optimizer, cfg.train, cfg.optim, criterion, world, begun, may_recompute=False)
    generator = torch.Generator().manual_seed(0)
    shape, groups = (size, *cfg.data.crop_size), []
    for number in range(num_groups):
        images = torch.randint(0, 256, (size, 3, *shape[1:]), dtype=torch.uint8, generator=generator)
        masks = torch.randint(0, index.labels.num_classes, shape, dtype=torch.uint8, generator=generator)
        groups.append(MicroBatch(number, images, masks, torch.eye(3, 4).repeat(size, 1, 1)))
    for step in range(begun, begun + 2):  # the optimizer's states are there from the second on
        update(step, groups, criterion.divisors(criterion.tally([group.masks for group in groups])))
    update.close()
    del ballast
