"""Self-test of the evaluation: a perfect predictor must score exactly 1.0, and an always-wrong one exactly 0.0."""

from __future__ import annotations

import math

import torch

from segdist.config import Io
from segdist.data.health import Finding, ok
from segdist.data.index import Index
from segdist.data.stream import EvalBatch
from segdist.distributed import World
from segdist.evaluation.evaluate import evaluate
from segdist.ops import IGNORE


def self_test(uri: str, index: Index, split: str, io: Io, num_samples: int = 2, most_bytes: int = 1 << 30) -> Finding:
    """Check that the evaluation scores a perfect predictor exactly 1.0 and an always-wrong predictor exactly 0.0.

    The predictors emit one-hot logits of the mask and of (mask + 1) % K, at the mask's own size, on a fixed choice of
    `num_samples` samples. If such logits would take more than `most_bytes`, the test is skipped with a note. Masks are read
    through the same stream as in every evaluation. Image resizing and sliding windows are not tested.
    """
    k, topic = index.labels.num_classes, "self-test"
    height, width = index.split(split).largest
    if 4 * k * height * width > most_bytes:
        text = f"skipped: one-hot logits of {k} classes at {height}x{width} px take {4 * k * height * width / 2**30:.1f} GiB"
        return Finding("note", topic, text, "`segdist doctor` tests samples of up to 4 GiB of logits")
    here = World(0, 1, torch.device("cpu"))

    def score(shift: int) -> float:
        def logits_of(batch: EvalBatch) -> torch.Tensor:
            classes = torch.where(batch.masks == IGNORE, 0, (batch.masks.long() + shift) % k)
            return torch.zeros(len(classes), k, *classes.shape[1:]).scatter_(1, classes[:, None], 1.0)

        result = evaluate(None, uri, index, split, None, io, 1, here, num_samples=num_samples, logits_of=logits_of)
        return result.scores.miou

    perfect, wrong = score(0), score(1)
    if math.isnan(perfect):
        return Finding("warning", topic, f"the tested samples of {split} are all void", "check --void")
    if perfect == 1.0 and wrong == 0.0:
        return ok(topic, "a perfect predictor scores exactly 1.0, an always-wrong one exactly 0.0")
    return Finding(
        "error",
        topic,
        f"a perfect predictor scores {perfect} instead of 1.0, an always-wrong one {wrong} instead of 0.0",
        "Do not trust any score from this installation. Please report this with the dataset's index.json",
    )
