"""Seconds and peak memory of an update under every strategy, over real ranks: torchrun, and gloo or NCCL.

Every contender is a launch of its own, and they take turns, `--rounds` times; the medians of those are told. The peak is what a
rank held beyond the imported libraries, of the rank that held most: VmHWM on CPUs, torch's own count on a GPU.
`python benchmarks/strategies.py --model segformer-b0 --ranks 2`, and on one GPU `--ranks 1 --device cuda --crop 512 --batch 16`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from segdist import config, models
from segdist.data.stream import MicroBatch
from segdist.distributed import World, join, leave
from segdist.runs.record import versions
from segdist.step import optim
from segdist.step.loss import Criterion
from segdist.step.update import Step

CONTENDERS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp, recomputed": {"strategy": "ddp", "activation_checkpointing": True},
    "exact": {"strategy": "exact"},
    "zero 1": {"strategy": "deepspeed", "zero_stage": 1},
    "zero 2": {"strategy": "deepspeed", "zero_stage": 2},
    "zero 3": {"strategy": "deepspeed", "zero_stage": 3},
    "zero 2, offload": {"strategy": "deepspeed", "zero_stage": 2, "zero_offload": True},
}


def resident(key: str) -> int:
    """VmHWM or VmRSS of this process, bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def config_of(given: argparse.Namespace) -> config.Config:
    name, _, kind = given.model.partition("-")
    model = {"name": "segformer", "size": kind} if name == "segformer" else {"name": "unet", "encoder": kind}
    train = {
        "num_steps": 1000, "global_batch_size": given.batch, "micro_batch_size": given.micro, "precision": given.precision,
        **CONTENDERS[given.contender],
    }  # fmt: skip
    return config.from_tree({"run": {"uri": "-"}, "data": {"uri": "-"}, "model": model, "train": train}, "benchmark")


def groups_of(given: argparse.Namespace, world: World, num_groups: int) -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(0)
    share, made = world.share(num_groups), []
    for number in range(num_groups):
        shape = (given.micro, given.crop, given.crop)
        images = torch.randint(0, 256, (given.micro, 3, *shape[1:]), dtype=torch.uint8, generator=generator)
        masks = torch.randint(0, given.classes, shape, dtype=torch.uint8, generator=generator)
        made.append(MicroBatch(number, images, masks, torch.eye(3, 4).repeat(given.micro, 1, 1)))
    return [group for group in made if group.number in share]


def rank(given: argparse.Namespace) -> None:
    """What one rank does: a few updates of fixed groups; rank 0 prints what came out."""
    world = join(given.device)
    torch.set_num_threads(given.threads)
    on_gpu = world.device.type == "cuda"
    cfg = config_of(given)
    before = resident("VmRSS")
    torch.manual_seed(0)
    model = models.build(cfg.model, [str(i) for i in range(given.classes)]).to(world.device).train()
    optimizer = optim.build(cfg.optim, model, model.traits.encoder_prefix, model.traits.layers)
    criterion = Criterion(cfg.loss, [1] * given.classes)
    step = Step(model, optimizer, cfg.train, cfg.optim, criterion, world)
    groups = groups_of(given, world, cfg.train.num_micro_batches)
    spent, losses = [], []
    for number in range(given.steps + 2):
        began = time.perf_counter()
        tally = world.sum(criterion.tally([group.masks for group in groups]))
        losses.append(step(number, groups, criterion.divisors(tally))[0].item())  # which waits for the device
        spent.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM") - before
    peaks = world.gather(peak)
    if world.is_first:
        size = sum(p.numel() for p in model.parameters()) if cfg.train.zero_stage < 3 else 0
        print(json.dumps({"s": statistics.median(spent[2:]), "MB": max(peaks) / 1e6, "loss": losses[-1], "size": size}))
    step.close()
    leave(world)
    sys.stdout.flush()
    os._exit(0)  # as the command does among several ranks: see segdist.cli._exit


def launched(given: argparse.Namespace, contender: str) -> dict[str, float]:
    own = [str(Path(__file__)), *sys.argv[1:], "--contender", contender]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(given.ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *torchrun, *own], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="segformer-b0", help="segformer-SIZE or unet-ENCODER")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="per rank")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        rank(given)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(given.rounds):
        for name in CONTENDERS:
            found[name].append(launched(given, name))
            print(f"{turn + 1}/{given.rounds} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    medians = {n: {k: statistics.median(f[k] for f in all_of) for k in all_of[0]} for n, all_of in found.items()}
    print(json.dumps({"arguments": vars(given), "versions": versions(), "load": os.getloadavg(), "found": medians}))
    print("\n| strategy | s per step | against ddp | peak MB per rank | against ddp |\n| --- | --- | --- | --- | --- |")
    for name, row in medians.items():
        ratios = row["s"] / medians["ddp"]["s"], row["MB"] / medians["ddp"]["MB"]
        print(f"| {name} | {row['s']:.3f} | {ratios[0]:.2f} | {row['MB']:.0f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
