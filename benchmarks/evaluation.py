"""What evaluation costs: the memory of a large picture in sliding windows, and the time of whole against sliding.

`python benchmarks/evaluation.py memory --side 10000 --classes 150`: one picture, evaluated apart from its making;
peak resident memory, of which `floor_mb` were there before the first pixel (Python, torch, the model).
`python benchmarks/evaluation.py cost --size 1024x2048 --classes 19`: CPU seconds a picture, by recipe; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from segdist import config, models
from segdist.data import index as indices
from segdist.distributed import World
from segdist.evaluation.evaluate import evaluate
from segdist.evaluation.inference import PLAIN, InferenceSettings, segment
from segdist.runs.record import versions

CPU = torch.device("cpu")


def peak_mb() -> int:
    """MiB of this process at its largest, up to now; getrusage would count the process that started it, too."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) // 1024


def tiny(num_classes: int) -> models.Segmenter:
    torch.manual_seed(0)
    return models.build(config.Segformer(size="tiny"), [str(k) for k in range(num_classes)]).eval()


def draw(folder: Path, side: int, num_classes: int) -> None:
    """A prepared data set whose validation split is one square picture of coarse blocks with noise."""
    from PIL import Image

    from segdist.data.label_options import LabelOptions
    from segdist.data.prepare import prepare

    rng = np.random.default_rng(0)
    for split, n in (("train", 64), ("val", side)):
        blocks = rng.integers(0, num_classes, (n // 64 + 1, n // 64 + 1), dtype=np.uint8)
        mask = blocks.repeat(64, 0).repeat(64, 1)[:n, :n]
        mask[: n // 100] = 255
        for kind, pixels in (("images", mask + rng.integers(0, 9, mask.shape, dtype=np.uint8)), ("masks", mask)):
            place = folder / "source" / split / kind
            place.mkdir(parents=True)
            Image.MAX_IMAGE_PIXELS = None
            picture = Image.fromarray(pixels)
            picture.convert("RGB").save(place / "p.jpg") if kind == "images" else picture.save(place / "p.png")
    names = ",".join(f"c{k}" for k in range(num_classes))
    prepare(str(folder / "source"), str(folder / "data"), declared=LabelOptions(names), max_megapixels=1000)


def memory(given: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        apart = [sys.executable, __file__, "draw", "--into", place, "--side", str(given.side)]
        subprocess.run([*apart, "--classes", str(given.classes)], check=True)
        data = f"{place}/data"
        model, how = tiny(given.classes), InferenceSettings((given.window, given.window), given.overlap)
        model(torch.zeros(1, 3, 64, 64))
        floor, began = peak_mb(), time.process_time()
        result = evaluate(
            model, data, indices.load(data), "val", None, config.Io(), given.batch, World(0, 1, CPU), settings=how
        )
    return {
        "floor_mb": floor,
        "peak_mb": peak_mb(),
        "cpu_seconds": round(time.process_time() - began, 1),
        "counted_pixels": int(result.table.sum()),
    }


def cost(given: argparse.Namespace) -> dict[str, object]:
    height, width = map(int, given.size.split("x"))
    model, window = tiny(given.classes), (given.window, given.window)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)
    mask = torch.randint(0, given.classes, (1, height, width), dtype=torch.uint8, generator=generator)
    recipes = {
        "whole": PLAIN,
        "sliding, overlap 0": InferenceSettings(window, 0.0),
        "sliding, overlap 0.33": InferenceSettings(window, 1 / 3),
        "sliding, overlap 0.5": InferenceSettings(window, 0.5),
        "whole, mirrored, too": InferenceSettings(flip=True),
        "whole, scales 0.5 1 1.5": InferenceSettings(scales=(0.5, 1.0, 1.5)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(given.repeats):
        for name, how in recipes.items():
            began = time.process_time()
            segment(model, image, (height, width), how, given.batch, mask)
            seconds[name].append(time.process_time() - began)
    return {name: round(statistics.median(spent), 2) for name, spent in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "cost", "draw"])
    parser.add_argument("--side", type=int, default=10_000, help="of the square picture, px")
    parser.add_argument("--size", default="1024x2048", help="of the picture whose cost is taken, px")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--into", default="")
    given = parser.parse_args()
    if given.what == "draw":
        draw(Path(given.into), given.side, given.classes)
        return
    result = {"memory": memory, "cost": cost}[given.what](given)
    print(json.dumps({"arguments": vars(given), "versions": versions(), "threads": torch.get_num_threads(), **result}))


if __name__ == "__main__":
    main()
