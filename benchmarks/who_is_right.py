"""One model, one data set, many mIoUs: what popular ways of scoring make of the same outputs, as Markdown tables.

Ten street scenes (demo/streets.py) of three sizes, seeded, and a made-up model: logits at a quarter of the size, with noise.
Masks at rest are as ADE20K has them: 0 is void, 1..7 the classes; the loader's one reduction makes 0..6 and 255 of them.
`python benchmarks/who_is_right.py`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, interpolate, one_hot
from torch.utils.data import DistributedSampler
from torchmetrics import JaccardIndex

from segdist.evaluation.confusion import confusion_matrix
from segdist.evaluation.hf_mean_iou import MeanIoU
from segdist.evaluation.scores import scores

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
import streets

VOID = 255
SIZES = [(192, 128), (256, 192), (160, 160)]


@dataclass(frozen=True)
class Picture:
    """int64 (H, W) mask with 0..K-1 and 255, as the loader gives it, and the model's float (K, h, w) logits."""

    mask: np.ndarray
    logits: torch.Tensor

    def pred(self, height: int | None = None, width: int | None = None) -> np.ndarray:
        """int64 classes at this size, else at the mask's: logits are resized, then the argmax is taken."""
        size = (height or self.mask.shape[0], width or self.mask.shape[1])
        wide = interpolate(self.logits[None], size, mode="bilinear", align_corners=False)
        return wide.argmax(1)[0].numpy()

    def small_mask(self, height: int, width: int) -> np.ndarray:
        """The mask resized by nearest neighbour."""
        mask = torch.from_numpy(self.mask).double()[None, None]
        return interpolate(mask, (height, width), mode="nearest")[0, 0].long().numpy()


def scenes(num: int, num_classes: int) -> list[Picture]:
    """Drawn scenes, and a model that sees its classes dimly: the masks pooled by 4, smooth noise, people mostly overlooked."""
    rng, pictures = np.random.default_rng(0), []
    for i in range(num):
        width, height = SIZES[i % len(SIZES)]
        _, drawn = streets.draw(width, height, np.random.default_rng([0, i]))
        mask = np.array(drawn, np.int64)
        seen = (
            one_hot(torch.from_numpy(np.where(mask == VOID, streets.ROAD, mask)), num_classes).permute(2, 0, 1).double()
        )
        logits = avg_pool2d(seen, 4)
        noise = torch.from_numpy(rng.normal(0, 0.55, (num_classes, height // 8 + 1, width // 8 + 1)))
        logits += interpolate(noise[None], tuple(logits.shape[1:]), mode="bilinear")[0]
        logits[streets.PERSON] -= 0.4
        pictures.append(Picture(mask, logits))
    return pictures


def perfect(pictures: list[Picture], num_classes: int) -> list[Picture]:
    """A model that is right on every pixel that is known, and says class 0 where nobody knows."""
    known = [torch.from_numpy(np.where(p.mask == VOID, 0, p.mask)) for p in pictures]
    return [Picture(p.mask, one_hot(k, num_classes).permute(2, 0, 1).double()) for p, k in zip(pictures, known)]


def tiny() -> list[Picture]:
    """The 3x3 pixels of segdist.evaluation.scores's docstring, as three pictures of a row each."""
    masks, preds = [[0, 0, 1], [0, 1, 1], [2, VOID, VOID]], [[0, 0, 1], [1, 1, 2], [2, 0, 1]]
    return [
        Picture(np.array([m]), one_hot(torch.tensor([p]), 3).permute(2, 0, 1).double()) for m, p in zip(masks, preds)
    ]


def segdist(pictures: Sequence[Picture], num_classes: int) -> float:
    table = torch.zeros(256, 256, dtype=torch.int64)
    for p in pictures:
        table += confusion_matrix(
            torch.from_numpy(p.pred().astype(np.uint8)), torch.from_numpy(p.mask.astype(np.uint8))
        )
    return scores(table, num_classes).miou


def evaluate(pictures: Sequence[Picture], num_labels: int, ignore_index: int, reduce_labels: bool = False) -> float:
    """evaluate's mean_iou, by segdist's drop-in for it (tests/test_mean_iou.py holds it to the original's numbers)."""
    metric = MeanIoU()
    for p in pictures:
        metric.add(prediction=p.pred(), reference=p.mask)
    return metric.compute(num_labels=num_labels, ignore_index=ignore_index, reduce_labels=reduce_labels)["mean_iou"]


def torchmetrics(pictures: Sequence[Picture], num_classes: int, average: str) -> float:
    metric = JaccardIndex("multiclass", num_classes=num_classes, ignore_index=VOID, average=average)
    for p in pictures:
        metric.update(torch.from_numpy(p.pred()), torch.from_numpy(p.mask))
    return float(metric.compute())


def mean_of_batches(pictures: Sequence[Picture], num_classes: int, batch: int) -> float:
    groups = [pictures[i : i + batch] for i in range(0, len(pictures), batch)]
    return float(np.mean([segdist(group, num_classes) for group in groups]))


def resized(pictures: Sequence[Picture], num_classes: int, side: int) -> float:
    metric = MeanIoU()
    for p in pictures:
        metric.add(prediction=p.pred(side, side), reference=p.small_mask(side, side))
    return metric.compute(num_labels=num_classes, ignore_index=VOID)["mean_iou"]


def void_as(pictures: Sequence[Picture], num_labels: int, value: int) -> float:
    metric = MeanIoU()
    for p in pictures:
        metric.add(prediction=p.pred(), reference=np.where(p.mask == VOID, value, p.mask))
    return metric.compute(num_labels=num_labels, ignore_index=VOID)["mean_iou"]


def shared(pictures: Sequence[Picture], num_ranks: int) -> list[list[Picture]]:
    """What each rank sees under torch's DistributedSampler: it repeats pictures until all have as many."""
    samplers = [DistributedSampler(range(len(pictures)), num_ranks, rank, shuffle=False) for rank in range(num_ranks)]
    return [[pictures[i] for i in sampler] for sampler in samplers]


def ways(num_classes: int, num_ranks: int, batch: int, side: int | None) -> dict[str, Callable[[list[Picture]], float]]:
    """Every way of scoring by its description."""
    k = num_classes
    found: dict[str, Callable[[list[Picture]], float]] = {
        "segdist": lambda ps: segdist(ps, k),
        "`evaluate` mean_iou, ignore_index=255": lambda ps: evaluate(ps, k, 255),
        'torchmetrics JaccardIndex, ignore_index=255, average="macro"': lambda ps: torchmetrics(ps, k, "macro"),
        'torchmetrics JaccardIndex, ignore_index=255, average="micro"': lambda ps: torchmetrics(ps, k, "micro"),
        "`run_semantic_segmentation.py` with do_reduce_labels: reduced again, ignore_index=0": lambda ps: evaluate(
            ps, k, 0, True
        ),
        "`run_semantic_segmentation.py` without: ignore_index=0": lambda ps: evaluate(ps, k, 0),
        f"mean of the mIoUs of batches of {batch}": lambda ps: mean_of_batches(ps, k, batch),
        "mean of the mIoUs of single pictures": lambda ps: mean_of_batches(ps, k, 1),
        "void counted as one more class": lambda ps: void_as(ps, k + 1, k),
        "void counted as class 0": lambda ps: void_as(ps, k, 0),
        f"DistributedSampler on {num_ranks} ranks, counts added": lambda ps: segdist(
            [p for part in shared(ps, num_ranks) for p in part], k
        ),
        f"DistributedSampler on {num_ranks} ranks, their mIoUs averaged": lambda ps: float(
            np.mean([segdist(part, k) for part in shared(ps, num_ranks)])
        ),
    }
    if side is not None:
        found[f"masks and logits resized to {side}x{side} px"] = lambda ps: resized(ps, k, side)
        found[f"masks and logits resized to {side // 4}x{side // 4} px"] = lambda ps: resized(ps, k, side // 4)
    return found


def table(pictures: list[Picture], num_classes: int, num_ranks: int, batch: int, side: int | None) -> list[str]:
    """Markdown: every way, what it says of the model, and what of a perfect one."""
    rows = ["| scored by | mIoU of the model | of a perfect model |", "| --- | --- | --- |"]
    right = perfect(pictures, num_classes)
    for name, way in ways(num_classes, num_ranks, batch, side).items():
        rows.append(f"| {name} | {way(pictures):.4f} | {way(right):.4f} |")
    return rows


def main() -> None:
    num_classes = len(streets.NAMES)
    print("\n".join(["## Ten scenes", "", *table(scenes(10, num_classes), num_classes, 3, 4, 128), ""]))
    print("\n".join(["## 3x3 pixels", "", *table(tiny(), 3, 2, 2, None)]))


if __name__ == "__main__":
    main()
