"""A run's history as a table: what training and evaluation recorded at each step, over all attempts."""

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
    """Return all rows in order of step. Where attempts overlap, the last one wins. Raises UserError if there are none."""
    found = segments.read_metrics(run_uri)
    if not found:
        raise UserError(
            checkpoints.sweep_hint(run_uri)
            or f"{run_uri} has no metrics. Give the run.uri of a training run that has made its first steps"
        )
    return found


def history(rows: Iterable[dict[str, Any]], every: bool = False) -> list[dict[str, Any]]:
    """Return one row with COLUMNS per evaluation, or with `every`, one per training row. Unknown values are None.

    `loss` is the mean over the steps since the previous row. `accuracy` counts all pixels; `mean_accuracy` and `f1` (Dice) are
    means over classes; `miou` is the mean Jaccard index. Steps after the last evaluation form the last row.
    """
    table: list[dict[str, Any]] = []
    now: dict[str, Any] = {}
    losses: list[tuple[float, int]] = []  # (mean loss, number of steps) since the last row
    before = 0

    def close() -> None:
        total = sum(steps for _, steps in losses)
        loss = sum(loss * steps for loss, steps in losses) / total if total else None
        table.append({column: now.get(column) for column in COLUMNS} | {"loss": loss})
        losses.clear()
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
                losses.append((row["loss"], row["step"] - before))
            before = row["step"]
    if now:
        close()
    return table


def text(table: list[dict[str, Any]], suffix: str) -> str:
    """Return the table as .tsv, .csv or .json. Unknown values are empty cells, or null."""
    if suffix == ".json":
        return record.to_json(table, indent=1)
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if row[column] is None else row[column] for column in COLUMNS] for row in table)
    return out.getvalue()
