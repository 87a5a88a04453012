"""Images per second and peak memory of the update alone: one batch on the device, over and over.

segdist's step (counts first, fixed groups, fused resize and loss) against the loop of the Hugging Face guide over the very
same model: `model(pixel_values, labels)` with its own interpolation and CrossEntropyLoss, then AdamW. They take turns; medians.
`python benchmarks/step.py --size b0 --batch 16 --crop 512 --classes 150 --precision bf16`
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from segdist import config, loss, models, optim
from segdist.data.stream import MicroBatch
from segdist.ops.pixels import to_input
from segdist.record import versions
from segdist.strategy import Step
from segdist.world import World, choose_device


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ours(given: argparse.Namespace, device: torch.device, strategy: str) -> Callable[[], object]:
    tree = {
        "run": {"uri": "-"},
        "data": {"uri": "-"},
        "model": {"name": "segformer", "size": given.size},
        "train": {
            "num_steps": 1000,
            "global_batch_size": given.batch,
            "micro_batch_size": given.batch,
            "precision": given.precision,
            "strategy": strategy,
        },
    }
    cfg = config.from_tree(tree, "benchmark")
    model = models.build(cfg.model, [str(i) for i in range(given.classes)]).to(device).train()
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix)
    criterion = loss.Criterion(cfg.loss, [1] * given.classes)
    step = Step(model, optimizer, cfg.train, None, criterion, World(0, 1, device))
    images, masks = batch_of(given, device)
    held = masks.cpu()  # where the stream counts them
    group = MicroBatch(0, images, masks, torch.eye(3, 4, device=device).repeat(given.batch, 1, 1))
    return lambda: step(0, [group], criterion.divisors(criterion.tally([held])))


def plain(given: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    segformer = config.Segformer(size=given.size)
    model = models.build(segformer, [str(i) for i in range(given.classes)])
    net = model.net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-5)
    images, masks = batch_of(given, device)

    def step() -> None:
        pixels = to_input(images, model.traits.mean, model.traits.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16"):
            out = net(pixel_values=pixels, labels=masks.long())
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def batch_of(given: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (given.batch, given.crop, given.crop)
    images = torch.randint(0, 256, (given.batch, 3, given.crop, given.crop), dtype=torch.uint8, device=device)
    return images, torch.randint(0, given.classes, shape, dtype=torch.uint8, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="b0")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    device = choose_device(given.device)
    result: dict[str, object] = {"arguments": vars(given), "versions": versions()}
    if device.type == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    contenders = {
        "plain": plain(given, device),
        "segdist ddp": ours(given, device, "ddp"),
        "segdist exact": ours(given, device, "exact"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(given.repeats + 2):
        for name, step in contenders.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            spent = timed(step, device)
            if repeat >= 2:
                seconds[name].append(spent)
            if device.type == "cuda":
                result[f"{name} peak MB"] = round(torch.cuda.max_memory_allocated() / 1e6)
    for name, spent in seconds.items():
        result[f"{name} img/s"] = round(given.batch / statistics.median(spent), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
