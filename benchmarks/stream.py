"""Samples a second from a prepared data set, by threads, beside a DataLoader over the files it was made from.

Ours is `train_stream`, as every run has it: fetch, decode, scale, crop, flip; colour is left to the device. The other is
what torchvision's reference for segmentation does: a Dataset that opens JPEG and PNG with PIL, v2 transforms of the same
strength (colour jitter only where asked, since it costs most), worker processes. They take turns; medians. CPU time is
that of all threads and workers. With `--busy`, the main thread feeds the device with small kernels all the while.

`python benchmarks/stream.py [--photos FOLDER] [--threads 1 2 4] [--crop 512] [--jitter] [--busy]`
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "demo")]
import streets

from segdist import config
from segdist.data import index as indices
from segdist.data.label_options import LabelOptions
from segdist.data.prepare import prepare
from segdist.distributed import World, choose_device
from segdist.runs.record import versions
from segdist.train.build import train_stream

_BATCH, _STEPS, _WARM_STEPS, _REPEATS = 16, 24, 4, 3


class Files(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs of a folder, over and over, as torchvision's reference reads them."""

    def __init__(self, folder: Path, crop: int, jitter: bool, num: int) -> None:
        self._pairs = list(zip(sorted((folder / "images").iterdir()), sorted((folder / "masks").iterdir())))
        self._num = num
        steps: list[Any] = [
            v2.ScaleJitter((crop, crop), (0.5, 2.0)),
            v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 124, tv_tensors.Mask: 255}),
            v2.RandomHorizontalFlip(),
        ]
        self._views = v2.Compose([*steps, *([v2.ColorJitter(0.25, 0.25, 0.25, 0.1)] if jitter else [])])

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = (Image.open(path) for path in self._pairs[i % len(self._pairs)])
        return self._views(
            tv_tensors.Image(v2.functional.pil_to_tensor(image.convert("RGB"))),
            tv_tensors.Mask(v2.functional.pil_to_tensor(mask)[0]),
        )


def ours(uri: str, crop: int, device: torch.device, threads: int) -> Iterator[object]:
    tree = {
        "run": {"uri": "-"},
        "data": {"uri": uri, "crop_size": [crop, crop], "scale_range": [0.5, 2.0]},
        "model": {"name": "segformer", "size": "b0"},
        "train": {"num_steps": 1, "global_batch_size": _BATCH, "micro_batch_size": _BATCH},
        "io": {"loader_threads": threads},
    }
    stream = train_stream(config.from_tree(tree, "benchmark"), indices.load(uri), range(1), World(0, 1, device))
    yield from stream.steps(0, _WARM_STEPS + _STEPS)


def files(folder: Path, crop: int, jitter: bool, device: torch.device, workers: int) -> Iterator[object]:
    data = Files(folder, crop, jitter, (_WARM_STEPS + _STEPS) * _BATCH)
    yield from DataLoader(data, _BATCH, num_workers=workers, pin_memory=device.type == "cuda")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measured(batches: Iterator[object], keep_busy: Callable[[], None]) -> tuple[float, float]:
    """(samples a second once it is warm, CPU ms a sample from beginning to end)."""
    spent = cpu_seconds()
    for _ in itertools.islice(batches, _WARM_STEPS):
        pass
    began, num = time.perf_counter(), 0
    for _ in batches:
        keep_busy()
        num += _BATCH
    seconds = time.perf_counter() - began
    del batches  # and with it the workers
    return num / seconds, 1e3 * (cpu_seconds() - spent) / (num + _WARM_STEPS * _BATCH)


def kernels(device: torch.device) -> Callable[[], None]:
    """Launches 500 small ones and does not wait for them."""
    x = torch.ones(1024, device=device)

    def launch() -> None:
        for _ in range(500):
            x.mul_(1.0)

    return launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder with images/, masks/ and names.txt; else streets are drawn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--jitter", action="store_true", help="the DataLoader jitters colours, too")
    parser.add_argument("--busy", action="store_true", help="the main thread launches kernels meanwhile")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as name:
        photos = given.photos or drawn(Path(name, "photos"))
        data = str(Path(name, "data"))
        prepare(str(photos), data, "folder", LabelOptions(names=str(photos / "names.txt")))
        launch = kernels(device) if given.busy else lambda: None
        results: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for _, threads in itertools.product(range(_REPEATS), given.threads):
            both = ours(data, given.crop, device, threads), files(photos, given.crop, given.jitter, device, threads)
            for who, batches in zip(("segdist", "DataLoader"), both):
                results.setdefault((threads, who), []).append(measured(batches, launch))
    print(
        "| threads or workers | segdist, samples/s | CPU ms a sample | DataLoader, samples/s | CPU ms a sample | ratio |"
    )
    for threads in given.threads:
        (pace, cost), (pace2, cost2) = (
            [statistics.median(column) for column in zip(*results[threads, who])] for who in ("segdist", "DataLoader")
        )
        ratio = statistics.median(
            a / b for (a, _), (b, _) in zip(*(results[threads, w] for w in ("segdist", "DataLoader")))
        )
        print(f"| {threads} | {pace:.1f} | {cost:.2f} | {pace2:.1f} | {cost2:.2f} | {ratio:.2f}x |")
    print(json.dumps({"cores": os.cpu_count(), "device": str(device), "versions": versions()}))


def drawn(folder: Path) -> Path:
    """240 streets of 1024x768 px."""
    streets.draw_folder(folder, 240, 1024, 768, seed=1)
    return folder


if __name__ == "__main__":
    main()
