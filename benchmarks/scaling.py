"""What a run sends: bytes per update, commit and evaluation, and requests per image, between real machines' interfaces.

The machines are network namespaces on a bridge (tests/machines.py; root and iproute2), one rank on each, the store on another.
What is told of one update is the difference of two runs that differ in their number of updates alone, and so of commits and
evaluations. `python benchmarks/scaling.py [--ranks 1 2 4] [--models segformer-b0 unet-resnet34] [--pace [--crop 96]]`
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "tests")]
import machines
import s3_server
import streets
from machines import Machine

from segdist import config, models, storage
from segdist.data.label_options import LabelOptions
from segdist.data.prepare import prepare
from segdist.distributed import World
from segdist.errors import UserError
from segdist.runs import checkpoints, segments
from segdist.storage import s3
from segdist.train.loop import fit

_SLOTS = 4
_FEW, _MANY, _LONG = 4, 12, 24  # updates
_NUMBERS = itertools.count(1)  # of runs


def tree_of(
    run: str, model: str, num_steps: int, strategy: str, commits: int = 10_000, scores: int = 10_000, crop: int = 96
) -> dict[str, Any]:
    name, _, kind = model.partition("-")
    return {
        "run": {"uri": run},
        "data": {"uri": "s3://bench/data", "crop_size": [crop, crop]},
        "model": {"name": "segformer", "size": kind} if name == "segformer" else {"name": "unet", "encoder": kind},
        "train": {"num_steps": num_steps, "global_batch_size": _SLOTS, "micro_batch_size": 1, "strategy": strategy},
        "optim": {"warmup_steps": 0},
        "eval": {"every_steps": scores, "num_previews": 0},
        "checkpoint": {"every_steps": commits},
        "scale": {"device": "cpu", "cpu_threads": 1},
        "log": {"every_steps": 1},
    }


def train(net: list[Machine], num_ranks: int, tree: dict[str, Any], folder: Path) -> dict[str, float]:
    """What a training sent, as `run` says it."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return run(net, num_ranks, ["train", str(file)])


def run(net: list[Machine], num_ranks: int, command: list[str]) -> dict[str, float]:
    """Bytes that a command sent: `rank`, by the mean of its ranks' machines, and `store`, to the store."""
    store, ranks = net[0], net[1 : 1 + num_ranks]
    before = [machine.bytes() for machine in ranks], store.bytes()
    started = [
        machine.start(
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={num_ranks}", f"--node-rank={i}", "--nproc-per-node=1",
            f"--master-addr={ranks[0].address}", "--master-port=29500", "-m", "segdist", *command,
            PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="eth0",
        )
        for i, machine in enumerate(ranks)
    ]  # fmt: skip
    codes = [process.wait(timeout=900) for process in started]
    if any(codes):
        raise SystemExit("\n".join(machine.log.read_text()[-3000:] for machine in ranks))
    sent = [machine.bytes()[0] - old[0] for machine, old in zip(ranks, before[0])]
    return {"rank": statistics.mean(sent), "store": store.bytes()[1] - before[1][1]}


def show_paces(net: list[Machine], model: str, strategy: str, ranks: list[int], crop: int, folder: Path) -> None:
    """Images per second of so many ranks, and of as many runs of one rank at once, which shows what the cores give away."""
    together: dict[int, list[float]] = {num: [] for num in ranks}
    apart: dict[int, list[float]] = {num: [] for num in ranks}

    def pace(num: int, machines: list[Machine], name: str) -> float:
        uri = f"s3://bench/pace-{model}-{strategy}-{name}"
        home = folder / model / strategy / name
        home.mkdir(parents=True)
        train([net[0], *machines], num, tree_of(uri, model, _LONG, strategy, crop=crop), home)
        rows = [row["images_per_second"] for row in segments.read_metrics(uri) if row["kind"] == "train"]
        return statistics.median(rows[len(rows) // 2 :])

    for i, num in itertools.product(range(3), ranks):
        together[num].append(pace(num, net[1:], f"{num}-{i}"))
        with ThreadPoolExecutor(num) as pool:
            alone = [pool.submit(pace, 1, [net[1 + k]], f"{num}-{i}-alone-{k}") for k in range(num)]
            apart[num].append(sum(one.result() for one in alone))
    for num in ranks:
        shares = [a / b for a, b in zip(together[num], apart[num])]
        told = " | ".join(f"{statistics.median(found[num]):.2f}" for found in (together, apart))
        print(f"| {model} | {crop} px | {strategy} | {num} | {told} | {statistics.median(shares):.0%} |", flush=True)


def requests_of(model: str, num_steps: int) -> Counter[str]:
    """The operations on the store of a run in this process."""
    counts: Counter[str] = Counter()
    client = s3._client()

    def count(model: Any, **_: Any) -> None:
        counts[model.name] += 1

    client.meta.events.register("before-call.s3", count, unique_id="scaling")
    uri = f"s3://bench/requests-{model}-{num_steps}"
    fit(config.from_tree(tree_of(uri, model, num_steps, "exact"), "benchmark"), World(0, 1, torch.device("cpu")))
    client.meta.events.unregister("before-call.s3", unique_id="scaling")
    return counts


def answers_per_second(num: int = 5_000) -> float:
    """How often a mailbox answers one process that asks as ranks do, without waiting in between."""
    import ray

    from segdist.launch.mailbox import Inbox

    ray.init("local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    inbox = Inbox()
    ray.get([inbox.mailbox.wish.remote() for _ in range(100)])
    began = time.perf_counter()
    ray.get([inbox.mailbox.wish.remote() for _ in range(num)])
    seconds = time.perf_counter() - began
    ray.shutdown()
    return num / seconds


@contextmanager
def site(num: int, folder: Path) -> Iterator[list[Machine]]:
    """A store with the data, and machines for ranks."""
    with machines.network(1 + num) as net:
        net[0].start(sys.executable, str(ROOT / "demo/s3_server.py"), net[0].address)
        net[0].wait_for("http://", 60)
        settings = s3_server.settings(net[0].log.read_text().strip())
        os.environ.update(settings)
        for machine in net:
            machine.environment.update(settings)
        boto3.client("s3").create_bucket(Bucket="bench")
        streets.draw_folder(folder / "streets", 160, 480, 360, seed=1)
        prepare(
            str(folder / "streets"), "s3://bench/data", "folder", LabelOptions(names=str(folder / "streets/names.txt"))
        )
        yield net


def trained(
    net: list[Machine], folder: Path, num_ranks: int, model: str, num_steps: int, strategy: str, **often: int
) -> tuple[str, dict[str, float]]:
    """(the run, what it sent) of a training in a place of its own."""
    uri = f"s3://bench/{next(_NUMBERS)}"
    return uri, train(net, num_ranks, tree_of(uri, model, num_steps, strategy, **often), folder)


def show_updates(net: list[Machine], model: str, strategy: str, num: int, folder: Path) -> None:
    """What an update sends, beside what a ring would."""
    cfg = config.from_tree(tree_of("-", model, 1, "ddp"), "benchmark")
    size = sum(p.numel() for p in models.build(cfg.model, ["class"] * 8).parameters())
    few, many = (trained(net, folder, num, model, steps, strategy)[1]["rank"] for steps in (_FEW, _MANY))
    each, width = (many - few) / (_MANY - _FEW), 4 if strategy == "ddp" else 8
    ring = 2 * (num - 1) / num * width
    told = f"{each / 1e6:.2f} MB | {each / size:.2f} B | {ring:.2f} B |"
    print(f"| {model} | {size:,} | {strategy} | {num} | {told}", flush=True)


def show_commits_and_evaluations(net: list[Machine], model: str, ranks: list[int], folder: Path) -> None:
    (_, few), (uri, many) = (trained(net, folder, 1, model, _MANY, "exact", commits=every) for every in (_MANY, 3))
    newest = checkpoints.newest(uri, print) or ""
    size = sum(storage.sizes(newest).values())
    print(f"commit, {model}: {(many['store'] - few['store']) / 3 / 1e6:.2f} MB sent; {size / 1e6:.2f} MB of files")
    scored = [num * run(net, num, ["evaluate", newest, "--json"])["rank"] for num in ranks]
    told = ", ".join(f"{sent / 1e3:.1f} kB by {num}" for num, sent in zip(ranks, scored))
    print(f"evaluation, {model}: all ranks sent {told}", flush=True)


def show_requests(model: str) -> None:
    counts, more = (requests_of(model, steps) for steps in (40, 120))
    images = 80 * _SLOTS
    print(f"stream: {(more['GetObject'] - counts['GetObject']) / images:.3f} GETs an image, over {images} images")
    print(f"of a run of 120 updates: {dict(more)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--models", nargs="+", default=["segformer-b0", "unet-resnet34"])
    parser.add_argument("--strategies", nargs="+", default=["ddp", "exact"])
    parser.add_argument("--pace", action="store_true", help="images per second alone, which wants a quiet machine")
    parser.add_argument(
        "--crop", type=int, default=96, help="px, for --pace: greater ones compute more between two sums"
    )
    given = parser.parse_args()
    if not machines.can_be_made():
        raise UserError("this benchmark needs root and iproute2, to make network namespaces")
    with tempfile.TemporaryDirectory() as name, site(max(given.ranks), Path(name)) as net:
        folder, kinds = Path(name), list(itertools.product(given.models, given.strategies))
        if given.pace:
            print("| model | crop | strategy | ranks | images/s | of as many runs apart | share |")
            for model, strategy in kinds:
                show_paces(net, model, strategy, given.ranks, given.crop, folder)
            return
        print("| model | parameters | strategy | ranks | sent per rank and update | per parameter | expected |")
        for (model, strategy), num in itertools.product(kinds, given.ranks):
            show_updates(net, model, strategy, num, folder)
        for model in given.models:
            show_commits_and_evaluations(net, model, given.ranks, folder)
        show_requests(given.models[0])
    print(f"a mailbox answers {answers_per_second():.0f} ranks' questions a second")


if __name__ == "__main__":
    main()
