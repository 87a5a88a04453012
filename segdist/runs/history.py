"""The history of a run as a table: what training and evaluations recorded, step by step, over all its attempts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from segdist.errors import UserError
from segdist.runs import checkpoints, record, segments

_SCORES = {
    "val_loss": "loss",
    "accuracy": "overall_accuracy",
    "mean_accuracy": "mean_accuracy",
    "f1": "mean_dice",
    "miou": "miou",
}  # column -> field of an evaluation's record
COLUMNS = ("step", "epoch", "lr", "loss", *_SCORES, "images_per_second")
SUFFIXES = (".tsv", ".csv", ".json")


def records(run_uri: str) -> list[dict[str, Any]]:
    """All records in order of step, of which the last attempt's count. Raises UserError where there are none."""
    found = segments.read_metrics(run_uri)
    if not found:
        raise UserError(
            checkpoints.what_a_sweep_is(run_uri)
            or f"{run_uri}: no metrics are there; give the run.uri of a training that has made its first steps"
        )
    return found


def history(rows: Iterable[dict[str, Any]], every: bool = False) -> list[dict[str, Any]]:
    """A row of COLUMNS per evaluation, from `records`; with `every`, per record of training. None where nothing is known.

    `loss` is the mean over the steps since the row before; `accuracy` is that of all pixels, `mean_accuracy` and `f1` (Dice)
    are means over classes, and `miou` is the mean Jaccard index. What was trained after the last evaluation is the last row.
    """
    table: list[dict[str, Any]] = []
    now: dict[str, Any] = {}
    weighed: list[tuple[float, int]] = []  # losses and their steps since the last row
    before = 0

    def close() -> None:
        total = sum(steps for _, steps in weighed)
        loss = sum(loss * steps for loss, steps in weighed) / total if total else None
        table.append({column: now.get(column) for column in COLUMNS} | {"loss": loss})
        weighed.clear()
        now.clear()

    for row in sorted(rows, key=lambda row: (row["step"], row["kind"] == "eval")):
        if every and now and now["step"] != row["step"]:
            close()
        now["step"] = row["step"]
        if row["kind"] == "eval":
            now.update({column: row.get(field) for column, field in _SCORES.items()})
            close()
        else:
            now.update({key: row.get(key) for key in ("epoch", "lr", "images_per_second")})
            if row["loss"] is not None:
                weighed.append((row["loss"], row["step"] - before))
            before = row["step"]
    if now:
        close()
    return table


def text(table: list[dict[str, Any]], suffix: str) -> str:
    """The table as .tsv, .csv or .json; an empty cell, or null, where nothing is known."""
    if suffix == ".json":
        return record.to_json(table, indent=1)
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if row[column] is None else row[column] for column in COLUMNS] for row in table)
    return out.getvalue()
