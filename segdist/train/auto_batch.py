"""`train.micro_batch_size: auto`: find the largest micro-batch that fits into device memory, before the first step."""

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
from segdist.step.update import Step, determinism

MEMORY_SHARE = 0.9  # of device memory for the trial: allocators fragment, and evaluation needs some
# per parameter that ZeRO may hold beyond DDP: its flat copies, which on few ranks exceed what it partitions
ZERO_BYTES = 12
CPU_SIZE = 4  # a CPU has enough memory and gains nothing from larger micro-batches


def micro_batch_size(cfg: Config, index: Index, world: World) -> int:
    """Return the largest divisor of the global batch that gives every rank a micro-batch and fits on every device.

    All ranks must call it. Raises UserError if a single image does not fit.
    """
    total = cfg.train.global_batch_size
    least = 2 if cfg.model.name in config.NEEDS_TWO_IMAGES else 1
    sizes = [n for n in range(total // world.num_ranks, least - 1, -1) if total % n == 0]
    if not sizes:
        raise UserError(
            f"train.global_batch_size {total} is too small for {world.num_ranks} rank(s): each needs a micro-batch"
            f"{f' of at least {least} images, because of model.name={cfg.model.name}' if least > 1 else ''}. Set it to "
            f"{world.num_ranks * least}, for example"
        )
    if world.device.type == "cpu":
        return next((n for n in sizes if n <= CPU_SIZE), sizes[-1])
    for size in sizes:
        most = -(-total // size // world.num_ranks)  # micro-batches per rank
        misfits = torch.tensor([not fits(cfg, index, size, min(most, 2), world.device)], dtype=torch.int64)
        if not world.sum_long_timeout(misfits):
            return size
    raise UserError(
        f"training on one image of {list(cfg.data.crop_size)} px does not fit into the memory of {world.device}. Lower "
        "data.crop_size, choose a smaller model, or set train.activation_checkpointing=true"
    )


def fits(cfg: Config, index: Index, size: int, num_micro_batches: int, device: torch.device) -> bool:
    """Return whether two updates on micro-batches of `size` random images fit into memory."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, device)
    try:
        with determinism(cfg.train, device):
            _try(cfg, index, size, num_micro_batches, World(0, 1, device))
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


def _try(cfg: Config, index: Index, size: int, num_micro_batches: int, world: World) -> None:
    zero = cfg.train.strategy == "deepspeed"
    fixed = {"micro_batch_size": size, "global_batch_size": size * num_micro_batches}
    cfg = config.update_section(cfg, "train", fixed | ({"strategy": "ddp", "zero_offload": False} if zero else {}))
    model = restore.build(cfg.model.model_copy(update={"transfer_head": "none"}), index.labels.names)
    model = model.to(world.device).train()
    num_bytes = ZERO_BYTES * sum(p.numel() for p in model.parameters()) if zero else 0
    ballast = torch.empty(num_bytes, dtype=torch.uint8, device=world.device)
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = loss.Criterion(cfg.loss, index.split(cfg.data.train_split).class_pixels)
    start = cfg.optim.freeze_encoder_steps  # a step that also trains the encoder needs the most memory
    train_step = Step(model, optimizer, cfg.train, cfg.optim, criterion, world, start, may_recompute=False)
    generator = torch.Generator().manual_seed(0)
    shape, micro_batches = (size, *cfg.data.crop_size), []
    for number in range(num_micro_batches):
        images = torch.randint(0, 256, (size, 3, *shape[1:]), dtype=torch.uint8, generator=generator)
        masks = torch.randint(0, index.labels.num_classes, shape, dtype=torch.uint8, generator=generator)
        micro_batches.append(MicroBatch(number, images, masks, torch.eye(3, 4).repeat(size, 1, 1)))
    for step in range(start, start + 2):  # the optimizer has its state from the second step on
        tally = criterion.tally([micro_batch.masks for micro_batch in micro_batches])
        train_step(step, micro_batches, criterion.divisors(tally))
    train_step.close()
    del ballast
