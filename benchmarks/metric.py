"""CPU time per picture of the metric alone: segdist, Hugging Face evaluate and torchmetrics over the same pictures, in turns.

`evaluate.load("mean_iou")` fetches its script from the Hub; here a class with the arithmetic that the script documents (three
histograms per picture) stands in evaluate's own machinery. Every contender's IoUs are checked against one another first.
`OMP_NUM_THREADS=1 python benchmarks/metric.py`
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version

import datasets
import evaluate
import numpy as np
import torch
from torchmetrics import JaccardIndex

from segdist.evaluation.bootstrap import bootstrap_miou
from segdist.evaluation.boundary import boundary_counts
from segdist.evaluation.confusion import class_counts, confusion_matrix
from segdist.evaluation.hf_mean_iou import MeanIoU
from segdist.evaluation.scores import scores

Pictures = list[tuple[np.ndarray, np.ndarray]]  # (pred, mask), int64
IGNORE = 255


class Histograms(evaluate.Metric):
    """evaluate's machinery (pictures into an arrow file and back) around three histograms per picture."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Image() for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(
        self, predictions: list, references: list, num_labels: int, ignore_index: int
    ) -> dict[str, np.ndarray]:
        sums = np.zeros((3, num_labels))
        for pred, ref in zip(predictions, references):
            pred, ref = np.array(pred), np.array(ref)
            kept = ref != ignore_index
            pred, ref = pred[kept], ref[kept]
            for row, values in zip(sums, (pred[pred == ref], ref, pred)):
                row += np.histogram(values, bins=num_labels, range=(0, num_labels - 1))[0]
        hit, true, predicted = sums
        return {"per_category_iou": hit / (true + predicted - hit)}


def maps(num: int, side: int, num_classes: int, rng: np.random.Generator) -> Pictures:
    """Maps as models make them: areas around random points, void seams, a prediction that is a few px off and patchy."""
    y, x = np.mgrid[:side, :side]
    made = []
    for _ in range(num):
        points, classes = rng.uniform(0, side, (25, 2)), rng.integers(0, num_classes, 25)
        mask = classes[np.argmin([(y - a) ** 2 + (x - b) ** 2 for a, b in points], axis=0)]
        patches = np.kron(rng.random((side // 8, side // 8)) < 0.03, np.ones((8, 8), int)) * rng.integers(
            1, num_classes
        )
        pred = (np.roll(mask, 4, (0, 1)) + patches) % num_classes
        seam = (np.diff(mask, axis=0, prepend=mask[:1]) != 0) | (np.diff(mask, axis=1, prepend=mask[:, :1]) != 0)
        made.append((pred, np.where(seam, IGNORE, mask)))
    return made


def noise(num: int, side: int, num_classes: int, rng: np.random.Generator) -> Pictures:
    """The worst case: every pixel of another class."""
    pairs = rng.integers(0, num_classes, (num, 2, side, side))
    return [(pred, np.where(rng.random(mask.shape) < 0.05, IGNORE, mask)) for pred, mask in pairs]


def contenders(pictures: Pictures, num_classes: int, cache: str) -> dict[str, Callable[[], np.ndarray]]:
    """Each scores all pictures, in batches of four, from arrays or tensors that it likes: IoU per class."""
    forms = {np.dtype(t): [(p.astype(t), m.astype(t)) for p, m in pictures] for t in (np.uint8, np.int64)}
    batches = {
        dtype: [tuple(np.stack(x) for x in zip(*pairs[i : i + 4])) for i in range(0, len(pairs), 4)]
        for dtype, pairs in forms.items()
    }
    options = {"num_labels": num_classes, "ignore_index": IGNORE}

    def table() -> np.ndarray:
        total = torch.zeros(256, 256, dtype=torch.int64)
        for pred, mask in batches[np.dtype(np.uint8)]:
            total += confusion_matrix(torch.from_numpy(pred), torch.from_numpy(mask))
        return np.array(scores(total, num_classes).iou)

    def of_evaluate(make: Callable[[], evaluate.Metric], dtype: type) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            metric = make()
            for pred, mask in batches[np.dtype(dtype)]:
                metric.add_batch(predictions=pred, references=mask)
            return metric.compute(**options)["per_category_iou"]

        return run

    def of_torchmetrics(checks: bool, dtype: type) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            metric = JaccardIndex(
                "multiclass", num_classes=num_classes, ignore_index=IGNORE, average="none", validate_args=checks
            )
            for pred, mask in batches[np.dtype(dtype)]:
                metric.update(torch.from_numpy(pred), torch.from_numpy(mask))
            return metric.compute().numpy()

        return run

    return {
        "segdist pair_table, uint8": table,
        "segdist MeanIoU, uint8": of_evaluate(MeanIoU, np.uint8),
        "segdist MeanIoU, int64": of_evaluate(MeanIoU, np.int64),
        "evaluate, uint8": of_evaluate(lambda: Histograms(cache_dir=cache), np.uint8),
        "evaluate, int64": of_evaluate(lambda: Histograms(cache_dir=cache), np.int64),
        "torchmetrics, int64": of_torchmetrics(True, np.int64),
        "torchmetrics, int64, validate_args=False": of_torchmetrics(False, np.int64),
        "torchmetrics, uint8": of_torchmetrics(True, np.uint8),
        "torchmetrics, uint8, validate_args=False": of_torchmetrics(False, np.uint8),
    }


def measure(runs: dict[str, Callable[[], np.ndarray]], num: int, repeats: int) -> dict[str, float]:
    """Milliseconds of CPU time (user and system) per picture: medians of rounds in which all take turns."""
    iou = {
        name: np.nan_to_num(run()) for name, run in runs.items()
    }  # warms up, too; absent classes are 0 in torchmetrics
    first = next(iter(iou.values()))
    assert all(np.allclose(values, first, atol=1e-6) for values in iou.values())
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            run()
            spent[name].append(1e3 * (time.process_time() - began) / num)
    return {name: statistics.median(values) for name, values in spent.items()}


def others(pictures: Pictures, num_classes: int) -> dict[str, float]:
    """CPU milliseconds of what comes on top: counts and boundary counts of a picture, the bootstrap of 2,000 pictures."""
    preds = [(torch.from_numpy(p).to(torch.uint8), torch.from_numpy(m).to(torch.uint8)) for p, m in pictures]
    tables = [confusion_matrix(*pair) for pair in preds]
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 1000, (2000, 3, num_classes))
    counts[:, 1:] += counts[:, :1]
    jobs: dict[str, tuple[int, Callable[[], object]]] = {
        "class_counts, a picture": (len(tables), lambda: [class_counts(t, num_classes) for t in tables]),
        "boundary_counts, a picture": (len(preds), lambda: [boundary_counts(p, m, num_classes) for p, m in preds]),
        "bootstrap_miou, 2,000 pictures, 1,000 resamples": (1, lambda: bootstrap_miou(counts)),
    }
    result = {}
    for name, (num, job) in jobs.items():
        times = []
        for _ in range(5):
            began = time.process_time()
            job()
            times.append(1e3 * (time.process_time() - began) / num)
        result[name] = statistics.median(times)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    names = ("segdist", "evaluate", "torchmetrics", "datasets", "torch", "numpy", "pillow")
    result: dict[str, object] = {"arguments": vars(given), "cpu": platform.processor() or platform.machine()}
    result["versions"] = {"python": platform.python_version()} | {name: version(name) for name in names}
    for kind in (maps, noise):
        pictures = kind(given.pictures, given.side, given.classes, np.random.default_rng(0))
        with tempfile.TemporaryDirectory() as cache:
            runs = contenders(pictures, given.classes, cache)
            result[f"{kind.__name__}, CPU ms per picture"] = measure(runs, given.pictures, given.repeats)
        if kind is maps:
            result["other, CPU ms"] = others(pictures, given.classes)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
