"""Time and peak memory of each term of the loss, forward and backward, against resizing first.

The other way is what a user would write: F.interpolate to the mask's size, then torch's or smp's loss (for focal, OHEM and the
boundary a few plain lines, as no library has the same). Both take turns in one process for the time, medians; the peak, read
from /proc (Linux), is of one call in a process of its own. `python benchmarks/loss.py`
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from segmentation_models_pytorch import losses as smp

from segdist.config import Loss
from segdist.runs.record import versions
from segdist.step.loss import Criterion

K, STRIDE = 150, 4
FIELDS: dict[str, dict[str, float]] = {
    "cross_entropy": {"cross_entropy": 1},
    "label_smoothing": {"cross_entropy": 1, "label_smoothing": 0.1},
    "boundary": {"cross_entropy": 1, "boundary_weight": 2},
    "focal": {"cross_entropy": 0, "focal": 1},
    "ohem": {"cross_entropy": 0, "ohem": 1},
    "dice": {"cross_entropy": 0, "dice": 1},
    "jaccard": {"cross_entropy": 0, "jaccard": 1},
    "tversky": {"cross_entropy": 0, "tversky": 1},
    "lovasz": {"cross_entropy": 0, "lovasz": 1},
}


def batch(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (4, K, side / 4, side / 4) and uint8 masks (4, side, side): patches of 16 px, 5 % void."""
    torch.manual_seed(0)
    masks = torch.randint(0, K, (4, side // 16, side // 16), dtype=torch.uint8)
    masks = masks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    masks[torch.rand(masks.shape) < 0.05] = 255
    return torch.randn(4, K, side // STRIDE, side // STRIDE, requires_grad=True), masks


def ours(term: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    criterion = Criterion(Loss(**FIELDS[term]), [1] * K)  # type: ignore[arg-type]
    return lambda z, masks: criterion(z, masks, criterion.divisors(criterion.tally([masks])), False)


def plain(term: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    classes = list(range(K))  # all present, so that smp's mean is ours
    overlap = {
        "dice": lambda z, y: smp.DiceLoss("multiclass", classes, ignore_index=255)(z, y),
        "jaccard": jaccard,
        "tversky": lambda z, y: smp.TverskyLoss("multiclass", classes, ignore_index=255, alpha=0.3, beta=0.7)(z, y),
        "lovasz": lambda z, y: smp.LovaszLoss("multiclass", ignore_index=255)(z, y),
        "cross_entropy": lambda z, y: F.cross_entropy(z, y, ignore_index=255),
        "label_smoothing": lambda z, y: F.cross_entropy(z, y, ignore_index=255, label_smoothing=0.1),
        "boundary": boundary,
        "focal": focal,
        "ohem": ohem,
    }[term]
    return lambda z, masks: overlap(F.interpolate(z, masks.shape[1:], mode="bilinear"), masks.long())


def jaccard(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    valid = y != 255  # smp's takes no ignore_index
    return smp.JaccardLoss("multiclass", list(range(K)))(z.movedim(1, -1)[valid].T[None], y[valid][None])


def boundary(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    cost, valid = F.cross_entropy(z, y, ignore_index=255, reduction="none"), y != 255
    values, weight = torch.where(valid, y, 0).float()[:, None], torch.ones(y.shape)
    for d in range(6, 0, -1):  # sigma 2 px
        size, low = 2 * d + 1, torch.where(valid, y, 999).float()[:, None]
        near = (F.max_pool2d(values, size, 1, d) > values) | (-F.max_pool2d(-low, size, 1, d) < low)
        weight = torch.where(near[:, 0], 1 + 2 * torch.exp(torch.tensor(-(d**2) / 8)), weight)
    return (cost * weight).sum() / (weight * valid).sum()


def focal(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    cost = F.cross_entropy(z, y, ignore_index=255, reduction="none")
    return ((1 - torch.exp(-cost)) ** 2 * cost).sum() / (y != 255).sum()


def ohem(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    cost = F.cross_entropy(z, y, ignore_index=255, reduction="none")[y != 255]
    least = cost.topk(-(-len(cost) // 16))[0][-1]
    return cost[(cost >= least) | (cost > -torch.log(torch.tensor(0.7)))].mean()


WAYS = {"ours": ours, "plain": plain}


def run(way: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], side: int = 512) -> tuple[float, float, float]:
    """(seconds of wall time, of CPU time, the loss) of one forward and backward."""
    logits, masks = batch(side)
    wall, cpu = time.perf_counter(), time.process_time()
    value = way(logits, masks)
    value.backward()
    return time.perf_counter() - wall, time.process_time() - cpu, value.item()


def peak_bytes() -> int:
    """The most memory this process ever held, from /proc: getrusage would count the parent's."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def peak(term: str, way: str) -> int:
    """Bytes that one call needs beyond its inputs. The libraries are warm."""
    run(WAYS[way](term), 32)
    inputs = batch(512)
    before = peak_bytes()
    WAYS[way](term)(*inputs).backward()
    return peak_bytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--terms", nargs="*", default=list(FIELDS))
    parser.add_argument("--peak", nargs=2, metavar=("TERM", "WAY"), help="used by itself: one call in this process")
    given = parser.parse_args()
    if given.peak:
        print(peak(*given.peak))
        return
    print(json.dumps({"versions": versions(), "threads": torch.get_num_threads()}))
    for term in given.terms:
        row: dict[str, object] = {"term": term}
        for way in WAYS:
            done = subprocess.run([sys.executable, __file__, "--peak", term, way], capture_output=True, text=True)
            row[f"{way} peak MB"] = round(int(done.stdout) / 1e6) if done.returncode == 0 else "did not fit"
        turns: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for _ in range(given.repeats):
            for way, make in WAYS.items():
                turns[way].append(run(make(term)))
        for way, seen in turns.items():
            row[f"{way} s"] = round(statistics.median(s for s, _, _ in seen), 2)
            row[f"{way} CPU s"] = round(statistics.median(s for _, s, _ in seen), 2)
        row["relative difference"] = abs(turns["ours"][0][2] / turns["plain"][0][2] - 1)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
