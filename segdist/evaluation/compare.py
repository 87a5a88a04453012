"""Compares two evaluations: who is better, and is the difference more than the choice of samples?

Reads the JSON that `segdist evaluate --out` writes. Two numbers compare when both were made from the same rows of the same
data set, with the same classes, by the same protocol; everything else is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdist import storage
from segdist.errors import UserError
from segdist.evaluation.bootstrap import Interval, bootstrap_difference
from segdist.evaluation.scores import class_iou

NUM_RESAMPLES = 2000
FEW_SAMPLES = 30
Pixels = Annotated[int, Field(ge=0, lt=2**53)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _PerSample(_Part):
    sample_ids: list[str]
    counts: list[dict[Annotated[int, Field(ge=0)], tuple[Pixels, Pixels, Pixels]]]


class Report(_Part):
    """What of an evaluation's report a comparison needs; null is NaN."""

    miou: float | None
    iou: dict[str, float | None]
    num_samples: int = Field(ge=0)
    protocol: str
    split: str
    data: str
    data_digest: str
    checkpoint: str
    checkpoint_digest: str
    weights: str = "trained"
    pictures: _PerSample | None = None  # by sample
    mean_boundary_iou: float | None = None
    boundary_iou: dict[str, float | None] | None = None


def load(uri: str) -> Report:
    """The report at a path or URI. Raises UserError when there is no whole one."""
    try:
        report = Report.model_validate(json.loads(storage.read(uri)))
    except (ValidationError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise UserError(
                f"{error}. It takes reports: `segdist evaluate RUN --pictures --out FILE` makes one"
            ) from None
        missing = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, missing['loc']))}: {missing['msg']}" if missing else f"no JSON ({error})"
        raise UserError(
            f"{storage.redacted(uri)}: not a report of `segdist evaluate CHECKPOINT --out FILE`, or from an older segdist: {why}. "
            "Evaluate again"
        ) from None
    if report.miou is None:
        raise UserError(
            f"{storage.redacted(uri)}: its mIoU is empty, as no pixel of split {report.split!r} counted: nothing to compare"
        )
    _check_boundary(uri, report)
    return report


def _check_boundary(uri: str, report: Report) -> None:
    """Raises UserError when the Boundary IoU is not of the report's classes, or not what its mean was made of."""
    if report.boundary_iou is None:
        return
    values = [value for value in report.boundary_iou.values() if value is not None]
    mean = float(np.mean(values)) if values else 0.0
    right = math.isclose(mean, report.mean_boundary_iou or 0.0, abs_tol=1e-9)
    if list(report.boundary_iou) != list(report.iou) or not right:
        raise UserError(
            f"{storage.redacted(uri)}: its Boundary IoU does not fit its classes or its mean; the file is damaged or was edited. "
            "Evaluate again"
        )


def compare(uri_a: str, uri_b: str) -> dict[str, Any]:
    """What `segdist compare` prints: B against A per class and in mIoU, with a 95 % interval where both counted by sample.

    Boundary IoU, too, where both have it; verdict and interval are of the mIoU alone.
    `verdict` is "A", "B", "none" (no clear difference) or "unknown" (no counts by sample, so no interval).
    """
    a, b = load(uri_a), load(uri_b)
    uri_a, uri_b = storage.redacted(uri_a), storage.redacted(uri_b)
    _check(uri_a, a, uri_b, b)
    counts = _counts(uri_a, a), _counts(uri_b, b)
    interval = None
    if counts[0] is not None and counts[1] is not None:
        order = _matched(uri_a, a, uri_b, b)
        interval = bootstrap_difference(counts[0], counts[1][order], NUM_RESAMPLES)
    miou = _pair(a.miou, b.miou)
    verdict, sentence = _verdict(miou["difference"], interval, a.num_samples)
    if a.checkpoint_digest == b.checkpoint_digest:
        same = a.weights == b.weights
        sentence += (
            " (both are the same checkpoint)" if same else f" (one checkpoint: {a.weights} weights, then {b.weights})"
        )
    boundary: dict[str, Any] = {}
    if a.boundary_iou is not None and b.boundary_iou is not None:
        boundary["mean_boundary_iou"] = _pair(a.mean_boundary_iou, b.mean_boundary_iou)
        boundary["boundary_iou"] = {name: _pair(a.boundary_iou[name], b.boundary_iou[name]) for name in a.iou}
    return {
        "a": {"report": uri_a, "checkpoint": a.checkpoint},
        "b": {"report": uri_b, "checkpoint": b.checkpoint},
        "data": a.data,
        "split": a.split,
        "protocol": a.protocol,
        "num_samples": a.num_samples,
        "miou": miou,
        "iou": {name: _pair(a.iou[name], b.iou[name]) for name in a.iou},
        **boundary,
        "interval": asdict(interval) if interval else None,
        "verdict": verdict,
        "sentence": sentence,
    }


def _check(uri_a: str, a: Report, uri_b: str, b: Report) -> None:
    """Raises UserError, naming the first difference, when the two numbers do not compare."""
    if list(a.iou) != list(b.iou):
        first = next((x for x in [*a.iou, *b.iou] if (x in a.iou) != (x in b.iou)), "their order")
        raise UserError(
            f"{uri_a} has {len(a.iou)} classes and {uri_b} has {len(b.iou)}; they differ in {first!r}. A mean over other "
            "classes is another number; evaluate both on one data set"
        )
    if a.split != b.split:
        raise UserError(
            f"{uri_a} scored split {a.split!r} and {uri_b} split {b.split!r}; evaluate both on one, with --split"
        )
    if a.data_digest != b.data_digest:
        raise UserError(
            f"{uri_a} scored {a.data} and {uri_b} {b.data}, whose rows or labels differ (data digests {a.data_digest[:12]} and "
            f"{b.data_digest[:12]}); evaluate both on one data set, with --data"
        )
    if a.protocol != b.protocol:
        raise UserError(
            f"the protocols differ, so the numbers do not compare. {uri_a}: {a.protocol}. {uri_b}: {b.protocol}. "
            "Evaluate both in the same way"
        )


def _counts(uri: str, report: Report) -> np.ndarray | None:
    """int64 (N, 3, K) counts by sample. Raises UserError when they are not what its mIoU was made of."""
    if report.pictures is None:
        return None
    ids, rows = report.pictures.sample_ids, report.pictures.counts
    counts = np.zeros((len(rows), 3, len(report.iou)), np.int64)
    if len(set(ids)) == len(ids) == len(rows) and max((k for row in rows for k in row), default=0) < len(report.iou):
        for one, row in zip(counts, rows):
            for k, pixels in row.items():
                one[:, k] = pixels
        iou = class_iou(counts.sum(0))
        if not np.isnan(iou).all() and math.isclose(float(np.nanmean(iou)), report.miou or 0.0, abs_tol=1e-9):
            return counts
    raise UserError(
        f"{uri}: its counts by sample do not add up to its mIoU; the file is damaged or was edited, so evaluate again"
    )


def _matched(uri_a: str, a: Report, uri_b: str, b: Report) -> list[int]:
    """Where each sample of A is in B. Raises UserError when they are not the same samples."""
    assert a.pictures is not None and b.pictures is not None
    place = {sample_id: i for i, sample_id in enumerate(b.pictures.sample_ids)}
    if alone := set(a.pictures.sample_ids) ^ set(place):
        raise UserError(
            f"sample {min(alone)!r} is in only one of {uri_a} and {uri_b}; evaluate both on the same samples"
        )
    return [place[sample_id] for sample_id in a.pictures.sample_ids]


def _pair(a: float | None, b: float | None) -> dict[str, float]:
    a, b = (math.nan if x is None else x for x in (a, b))
    return {"a": a, "b": b, "difference": b - a}


def _verdict(difference: float, interval: Interval | None, num_samples: int) -> tuple[str, str]:
    """The verdict, and a plain sentence that says it."""
    if interval is None:
        who = (
            f"{'B' if difference > 0 else 'A'}'s mIoU is higher by {abs(difference):.4f}"
            if difference
            else "The mIoUs are equal"
        )
        return "unknown", (
            f"{who}; whether that is more than the choice of samples, the reports cannot say: evaluate both with --pictures"
        )
    low, high, level = interval.low, interval.high, f"{interval.level:.0%}".replace("%", " %")
    if low > 0:
        verdict, said = "B", f"B is better by {difference:.4f} [{low:.4f}, {high:.4f}], {level}"
    elif high < 0:
        verdict, said = "A", f"A is better by {-difference:.4f} [{-high:.4f}, {-low:.4f}], {level}"
    else:
        verdict, said = "none", f"No clear difference: B - A is {difference:.4f} [{low:.4f}, {high:.4f}], {level}"
    if num_samples < FEW_SAMPLES:
        said += f"; with only {num_samples} samples, such an interval tends to be too narrow"
    return verdict, said
