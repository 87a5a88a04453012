"""Compare two evaluations: which model is better, and is the difference larger than sampling noise?

Reads the JSON reports of `segdist evaluate --out`. Two scores are comparable only if both were made on the same rows of the
same dataset, with the same classes and the same protocol. Anything else is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segdist import storage
from segdist.errors import MissingError, UserError
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
    """The fields of an evaluation report that a comparison needs. null means NaN."""

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
    """Read the report at a path or URI. Raises UserError if it is missing, incomplete or invalid."""
    try:
        report = Report.model_validate(json.loads(storage.read(uri)))
    except (ValidationError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            hint = ". Create a report with `segdist evaluate RUN --pictures --out FILE`"
            raise UserError(f"{error}{hint if isinstance(error, MissingError) else ''}") from None
        invalid = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, invalid['loc']))}: {invalid['msg']}" if invalid else f"invalid JSON ({error})"
        raise UserError(
            f"{storage.redacted(uri)}: not a report of `segdist evaluate`, or from an older segdist ({why}). Run "
            "`segdist evaluate CHECKPOINT --out FILE` again"
        ) from None
    if report.miou is None:
        raise UserError(
            f"{storage.redacted(uri)}: there is nothing to compare, because no pixel of split {report.split!r} was scored (its "
            "mIoU is empty)"
        )
    _check_boundary(uri, report)
    return report


def _check_boundary(uri: str, report: Report) -> None:
    """Raise UserError if the Boundary IoU does not match the report's classes or its own mean."""
    if report.boundary_iou is None:
        return
    values = [value for value in report.boundary_iou.values() if value is not None]
    mean = float(np.mean(values)) if values else 0.0
    mean_matches = math.isclose(mean, report.mean_boundary_iou or 0.0, abs_tol=1e-9)
    if list(report.boundary_iou) != list(report.iou) or not mean_matches:
        raise UserError(
            f"{storage.redacted(uri)}: its Boundary IoU does not match its classes or its mean. The file is damaged or was "
            "edited. Evaluate again"
        )


def compare(uri_a: str, uri_b: str) -> dict[str, Any]:
    """Compare the reports B and A: IoU per class, and mIoU. If both have per-sample counts, add a 95% confidence interval.

    Boundary IoU is compared if both reports have it. Verdict and interval concern the mIoU only. `verdict` is "A", "B", "none"
    (no clear difference) or "unknown" (no per-sample counts, so no interval). Raises UserError if the two are not comparable.
    """
    a, b = load(uri_a), load(uri_b)
    uri_a, uri_b = storage.redacted(uri_a), storage.redacted(uri_b)
    _check_comparable(uri_a, a, uri_b, b)
    counts = _counts(uri_a, a), _counts(uri_b, b)
    interval = None
    if counts[0] is not None and counts[1] is not None:
        order = _sample_order(uri_a, a, uri_b, b)
        interval = bootstrap_difference(counts[0], counts[1][order], NUM_RESAMPLES)
    miou = _pair(a.miou, b.miou)
    verdict, sentence = _verdict(miou["difference"], interval, a.num_samples)
    if a.checkpoint_digest == b.checkpoint_digest:
        same = a.weights == b.weights
        sentence += " Both are the same checkpoint" + (
            "." if same else f", A with {a.weights} and B with {b.weights} weights."
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


def _check_comparable(uri_a: str, a: Report, uri_b: str, b: Report) -> None:
    """Raise UserError, naming the first difference, if the scores are not comparable."""
    if list(a.iou) != list(b.iou):
        first = next((x for x in [*a.iou, *b.iou] if (x in a.iou) != (x in b.iou)), "their order")
        raise UserError(
            f"{uri_a} has {len(a.iou)} classes and {uri_b} has {len(b.iou)}. They differ in {first!r}. Means over different "
            "classes are not comparable. Evaluate both on the same dataset"
        )
    if a.split != b.split:
        raise UserError(
            f"{uri_a} scored split {a.split!r} and {uri_b} scored split {b.split!r}. Evaluate both on the same --split"
        )
    if a.data_digest != b.data_digest:
        raise UserError(
            f"{uri_a} scored {a.data} and {uri_b} scored {b.data}. Their rows or labels differ (data digests "
            f"{a.data_digest[:12]} and {b.data_digest[:12]}). Evaluate both on the same dataset, with --data"
        )
    if a.protocol != b.protocol:
        raise UserError(
            f"the protocols differ, so the scores are not comparable. {uri_a}: {a.protocol}. {uri_b}: {b.protocol}. "
            "Evaluate both with the same settings"
        )


def _counts(uri: str, report: Report) -> np.ndarray | None:
    """Return the per-sample counts, int64 (N, 3, K), or None. Raises UserError if they do not add up to the report's mIoU."""
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
        f"{uri}: its per-sample counts do not add up to its mIoU. The file is damaged or was edited. Evaluate again"
    )


def _sample_order(uri_a: str, a: Report, uri_b: str, b: Report) -> list[int]:
    """Return the index in B of each sample of A. Raises UserError if the samples differ."""
    assert a.pictures is not None and b.pictures is not None
    position = {sample_id: i for i, sample_id in enumerate(b.pictures.sample_ids)}
    if unmatched := set(a.pictures.sample_ids) ^ set(position):
        raise UserError(
            f"sample {min(unmatched)!r} is in only one of {uri_a} and {uri_b}. Evaluate both on the same samples"
        )
    return [position[sample_id] for sample_id in a.pictures.sample_ids]


def _pair(a: float | None, b: float | None) -> dict[str, float]:
    a, b = (math.nan if x is None else x for x in (a, b))
    return {"a": a, "b": b, "difference": b - a}


def _verdict(difference: float, interval: Interval | None, num_samples: int) -> tuple[str, str]:
    """Return the verdict, and a sentence that states it."""
    if interval is None:
        comparison = (
            f"{'B' if difference > 0 else 'A'}'s mIoU is higher by {abs(difference):.4f}."
            if difference
            else "The mIoUs are equal."
        )
        return "unknown", (
            f"{comparison} Without per-sample counts its significance is unknown. Evaluate both with --pictures."
        )
    low, high, level = interval.low, interval.high, f"{interval.level:.0%}"
    if low > 0:
        verdict, sentence = (
            "B",
            f"B is better by {difference:.4f} ({level} confidence interval {low:.4f} to {high:.4f}).",
        )
    elif high < 0:
        verdict, sentence = (
            "A",
            f"A is better by {-difference:.4f} ({level} confidence interval {-high:.4f} to {-low:.4f}).",
        )
    else:
        verdict = "none"
        sentence = (
            f"No clear difference: B - A is {difference:.4f} ({level} confidence interval {low:.4f} to {high:.4f})."
        )
    if num_samples < FEW_SAMPLES:
        sentence += f" With only {num_samples} samples, the interval tends to be too narrow."
    return verdict, sentence
