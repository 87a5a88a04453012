"""Images per second and peak memory of the update alone: one batch on the device, over and over.

segdist's step (counts first, fixed groups, fused resize and loss) against a plain loop over the very same network: for
SegFormer that of the Hugging Face guide, `model(pixel_values, labels)` with its own interpolation and CrossEntropyLoss,
for U-Net `F.cross_entropy`; then AdamW. They take turns; medians. `--trainer` adds the Hugging Face Trainer, as the guide
sets it up and with every switch it offers (bf16, torch.compile, fused AdamW, SDPA), each by itself, since it owns its
loop. `--stages` adds what part of our step is forward, loss and backward; the rest are sums, clipping and the optimizer.

`python benchmarks/step.py --model segformer-b0 --batch 16 --crop 512 --classes 150 --precision bf16 --trainer --stages`
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from segdist import config, models
from segdist.data.stream import MicroBatch
from segdist.distributed import World, choose_device
from segdist.models.segmenter import Segmenter
from segdist.ops import IGNORE
from segdist.ops.pixels import to_input
from segdist.runs.record import versions
from segdist.step import optim
from segdist.step.loss import Criterion
from segdist.step.update import Step, determinism

_WARM = 3


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    _wait(device)
    began = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def config_of(given: argparse.Namespace, **train: Any) -> config.Config:
    name, _, kind = given.model.partition("-")
    tree = {
        "run": {"uri": "-"},
        "data": {"uri": "-"},
        "model": {"name": "segformer", "size": kind} if name == "segformer" else {"name": "unet", "encoder": kind},
        "train": {
            "num_steps": 1000, "global_batch_size": given.batch, "micro_batch_size": given.batch,
            "precision": given.precision, **train,
        },
    }  # fmt: skip
    return config.from_tree(tree, "benchmark")


def built(given: argparse.Namespace, device: torch.device) -> Segmenter:
    names = [str(i) for i in range(given.classes)]
    return models.build(config_of(given).model, names).to(device).train()


def ours(given: argparse.Namespace, device: torch.device, **train: Any) -> Callable[[], object]:
    cfg, model = config_of(given, **train), built(given, device)
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = Criterion(cfg.loss, [1] * given.classes)
    step = Step(model, optimizer, cfg.train, cfg.optim, criterion, World(0, 1, device))
    images, masks = batch_of(given, device)
    held = masks.cpu()  # where the stream counts them
    group = MicroBatch(0, images, masks, torch.eye(3, 4, device=device).repeat(given.batch, 1, 1))

    def call() -> None:
        with determinism(cfg.train, device):
            step(0, [group], criterion.divisors(criterion.tally([held])))

    return call


def stages(given: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Medians of the seconds that forward, loss and backward take, waited for one by one."""
    cfg, model = config_of(given), built(given, device)
    criterion = Criterion(cfg.loss, [1] * given.classes)
    images, masks = batch_of(given, device)
    divisors = criterion.divisors(criterion.tally([masks.cpu()]))
    kept: dict[str, torch.Tensor] = {}

    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16"):
            kept["logits"] = model(to_input(images, model.traits.mean, model.traits.std))

    def loss() -> None:
        kept["loss"] = criterion(kept["logits"], masks, divisors, model.traits.align_corners)

    found: dict[str, list[float]] = {}
    for repeat in range(given.repeats + _WARM):
        for name, stage in (("forward", forward), ("loss", loss), ("backward", lambda: kept["loss"].backward())):
            spent = timed(stage, device)
            if repeat >= _WARM:
                found.setdefault(name, []).append(spent)
        model.zero_grad()
    return {name: statistics.median(spent) for name, spent in found.items()}


def plain(given: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    model = built(given, device)
    net, traits = model.net, model.traits
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-5)
    images, masks = batch_of(given, device)

    def step() -> None:
        pixels = to_input(images, traits.mean, traits.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16"):
            if given.model.startswith("segformer"):
                loss = net(pixel_values=pixels, labels=masks.long()).loss
            else:
                loss = F.cross_entropy(net(pixels), masks.long(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trainer(given: argparse.Namespace, device: torch.device, every_switch: bool) -> list[float]:
    """Seconds of each step of the Hugging Face Trainer, but for the first ones."""
    from transformers import SegformerForSemanticSegmentation, Trainer, TrainerCallback, TrainingArguments

    about = built(given, torch.device("cpu"))
    about.net.config._attn_implementation = "sdpa" if every_switch else "eager"
    net = SegformerForSemanticSegmentation(about.net.config)
    images, masks = batch_of(given, device)
    batch = {"pixel_values": to_input(images, about.traits.mean, about.traits.std), "labels": masks.long()}
    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _wait(device)
            moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=given.batch, max_steps=given.repeats + _WARM, learning_rate=6e-5,
            bf16=every_switch and given.precision == "bf16", torch_compile=every_switch,
            optim="adamw_torch_fused" if every_switch else "adamw_torch", use_cpu=device.type == "cpu",
            remove_unused_columns=False, dataloader_pin_memory=False, report_to="none", save_strategy="no", disable_tqdm=True,
            logging_strategy="no",
        )  # fmt: skip
        rows: Any = [0] * (given.batch * (given.repeats + _WARM))
        Trainer(net, arguments, lambda _: dict(batch), rows, callbacks=[Clock()]).train()
    return [b - a for a, b in zip(moments, moments[1:])][_WARM - 1 :]


def batch_of(given: argparse.Namespace, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (given.batch, given.crop, given.crop)
    images = torch.randint(0, 256, (given.batch, 3, given.crop, given.crop), dtype=torch.uint8, device=device)
    return images, torch.randint(0, given.classes, shape, dtype=torch.uint8, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="segformer-b0", help="segformer-SIZE or unet-ENCODER")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--trainer", action="store_true", help="the Hugging Face Trainer, too (needs accelerate)")
    parser.add_argument("--stages", action="store_true", help="forward, loss and backward one by one, too")
    given = parser.parse_args()
    if given.trainer and not given.model.startswith("segformer"):
        parser.error("--trainer is for SegFormer")
    device = choose_device(given.device)
    on_gpu = device.type == "cuda"
    result: dict[str, object] = {"arguments": vars(given), "versions": versions()}
    if on_gpu:
        result["gpu"] = torch.cuda.get_device_name()
    contenders = {
        "plain": plain(given, device),
        "segdist ddp": ours(given, device, strategy="ddp"),
        "segdist exact": ours(given, device, strategy="exact"),
    }
    if on_gpu:
        contenders["segdist ddp, deterministic"] = ours(given, device, strategy="ddp", deterministic=True)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(given.repeats + _WARM):
        for name, step in contenders.items():
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            spent = timed(step, device)
            if repeat >= _WARM:
                seconds[name].append(spent)
            if on_gpu:
                result[f"{name} peak MB"] = round(torch.cuda.max_memory_allocated() / 1e6)
    if given.stages:
        result["stages ms"] = {name: round(1e3 * spent, 2) for name, spent in stages(given, device).items()}
    if given.trainer:
        contenders.clear()  # their memory
        for name, every_switch in (("Trainer, as guided", False), ("Trainer, every switch", True)):
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds[name] = trainer(given, device, every_switch)
            if on_gpu:
                result[f"{name} peak MB"] = round(torch.cuda.max_memory_allocated() / 1e6)
    for name, spent in seconds.items():
        result[f"{name} img/s"] = round(given.batch / statistics.median(spent), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
