"""Checks the evaluation itself: a perfect predictor must score exactly 1.0, one that is always wrong exactly 0.0."""

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
    """Whether the path that evaluation uses gives a perfect predictor exactly 1.0, and one that is always wrong exactly 0.0.

    They emit one-hot logits of the mask at the mask's own size, and of (mask + 1) % K; on `num_samples` samples, always the
    same ones. Left out (a note) where such logits would take more than `most_bytes`. The mask comes through the stream as in
    every evaluation; what a model would see, and windows, are not part of it.
    """
    k, topic = index.labels.num_classes, "self-test"
    height, width = index.split(split).largest
    if 4 * k * height * width > most_bytes:
        text = f"left out: {k} one-hot logits of {height}x{width} px take {4 * k * height * width / 2**30:.1f} GiB"
        return Finding("note", topic, text, "`segdist doctor` tries samples of up to 4 GiB of them")
    here = World(0, 1, torch.device("cpu"))

    def score(shift: int) -> float:
        def logits_of(batch: EvalBatch) -> torch.Tensor:
            classes = torch.where(batch.masks == IGNORE, 0, (batch.masks.long() + shift) % k)
            return torch.zeros(len(classes), k, *classes.shape[1:]).scatter_(1, classes[:, None], 1.0)

        result = evaluate(None, uri, index, split, None, io, 1, here, num_samples=num_samples, logits_of=logits_of)
        return result.scores.miou

    perfect, wrong = score(0), score(1)
    if math.isnan(perfect):
        return Finding(
            "warning", topic, f"the samples of {split} that were tried are all void", "is --void what you meant?"
        )
    if perfect == 1.0 and wrong == 0.0:
        return ok(topic, "a perfect predictor scores exactly 1.0, and one that is always wrong exactly 0.0")
    return Finding(
        "error",
        topic,
        f"a perfect predictor scores {perfect} instead of 1.0, one that is always wrong {wrong} instead of 0.0",
        "no number made here can be trusted: please report this, with the data set's index.json",
    )
