"""Tables of the status of a run or a sweep."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from segdist import console
from segdist.runs import checkpoints
from segdist.sweep.ledger import describe_score, metric_name
from segdist.sweep.space import format_value, format_values

SILENT_SECONDS = 300.0  # without a heartbeat; about twenty should have been written in this time
_STYLES = {"RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red", "PREEMPTED": "yellow"}
_SHOWN_APART = {"state", "step", "num_steps", "miou", "best_step", "heartbeat", "attempt", "run_uri"}
_HIDDEN = {"identity", "versions", "pinned", "launch", "initial", "data", "kind", "silent_seconds", "newest_checkpoint"}


def render(tree: dict[str, Any], most: int | None = None) -> Any:
    """Return a table of what `read_status` returns. Of a sweep, show at most `most` trials: running ones, then the best."""
    if tree["kind"] == "run":
        return _run_table(tree)
    table, screen = _sweep_table(tree, most, tree["fields"]), console.console
    if Measurement.get(screen, screen.options.update(width=10_000), table).maximum > screen.width:
        table = _sweep_table(tree, most, [])
    return Group(table, *map(Text, _reasons(tree) + summary(tree)))


def _run_table(tree: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify = Text(tree["run_uri"], "bold"), "left"
    rows = {"state": tree["state"], "step": f"{tree['step']:,} of {tree['num_steps']:,}"}
    rows["heartbeat"] = _heartbeat(tree, "segdist train") or ""
    if tree.get("miou") is not None:
        rows["best mIoU"] = f"{tree['miou']:.4f}, after step {tree['best_step']:,}"
    if tree["newest_checkpoint"]:
        rows["newest checkpoint"] = f"after step {checkpoints.step_of(tree['newest_checkpoint']):,}"
    rows["attempt"] = str(tree["attempt"])
    for key, value in tree.items():
        if key not in _SHOWN_APART | _HIDDEN:
            rows[key.replace("_", " ")] = _plain(value)
    for name, text in rows.items():
        if text:
            table.add_row(Text(name, "bold"), Text(text, _STYLES.get(text, "")))
    return table


def _plain(value: Any) -> str:
    """Format a value of run.json for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(part)}" for key, part in value.items() if part is not None)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _sweep_table(tree: dict[str, Any], most: int | None, columns: list[str]) -> Table:
    """Return a row per trial, and a column per field in `columns`. Without columns, one column holds all values."""
    table = Table(title=Text(tree["sweep_uri"]), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    for field in columns:
        table.add_column(Text(field.replace(".", ".\n")), justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in (f"step\nof {tree['num_steps']:,}", metric_name(tree["metric"]), "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    if not columns:
        table.add_column("values", overflow="fold")
    rows = _most_relevant(tree, most)
    for row in rows:
        is_best = bool(tree["best"]) and row["trial"] == tree["best"]["trial"]
        values = {} if row["confirms"] else {key: format_value(row["values"].get(key, "")) for key in tree["fields"]}
        short = ", ".join(f"{key.split('.')[1]} {value}" for key, value in values.items() if value)
        table.add_row(
            f"  seed {row['seed']}" if row["confirms"] else row["trial"],
            *(Text(values.get(field, "")) for field in columns),
            Text(row["state"], _STYLES.get(row["state"], "")),
            f"{row['step']:,}",
            "" if row["best"] is None else f"{row['best']:.4f}",
            console.duration(row["seconds"]),
            *([] if columns else [Text(short)]),
            style="bold" if is_best else "dim" if row["confirms"] else None,
        )
    if hidden := len(tree["trials"]) - len(rows):
        table.caption, table.caption_justify = f"and {hidden} more", "left"
    return table


def _reasons(tree: dict[str, Any]) -> list[str]:
    """Return why trials failed or from which trial they continued, each reason once with its trials."""
    trials: dict[str, list[str]] = {}
    for row in tree["trials"]:
        if row["reason"] and row["state"] != "STOPPED":
            trials.setdefault(row["reason"], []).append(row["trial"])
    return [f"{', '.join(ids)}: {reason}" for reason, ids in trials.items()]


def _most_relevant(tree: dict[str, Any], most: int | None) -> list[dict[str, Any]]:
    """Return at most `most` rows in their order: the running trials, then the best ones."""
    rows: list[dict[str, Any]] = tree["trials"]
    if most is None or len(rows) <= most:
        return rows
    sign = 1 if tree["metric"] == "loss" else -1

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        return row["state"] != "RUNNING", row["best"] is None, sign * (row["best"] or 0)

    kept = {row["trial"] for row in sorted(rows, key=rank)[:most]}
    return [row for row in rows if row["trial"] in kept]


def summary(tree: dict[str, Any]) -> list[str]:
    """Return the lines below the table of a sweep."""
    counts = ", ".join(f"{num} {state.lower()}" for state, num in tree["counts"].items())
    cost = "" if tree["dollars"] is None else f", ${tree['dollars']:.2f}"
    lines = [
        f"{tree['state']}: {sum(tree['counts'].values())} of {tree['num_trials']} trials ({counts}), "
        f"{tree['num_steps']:,} steps each, {tree['seconds'] / 3600:.2f} h{cost}"
    ]
    if tree["reason"]:
        lines.append(tree["reason"])
    if best := tree["best"]:
        score = describe_score(best, tree["metric"])
        lines.append(f"best: trial {best['trial']}, {score}: {format_values(best['values'])}")
    if heartbeat := _heartbeat(tree, "segdist tune"):
        lines.append(f"heartbeat: {heartbeat}")
    return lines


def _heartbeat(tree: dict[str, Any], command: str) -> str | None:
    """Describe the last heartbeat of what runs, and what a missing one means."""
    silent = tree["silent_seconds"]
    if silent is None:
        return None
    if silent < SILENT_SECONDS:
        return f"{silent:.0f} s ago"
    long = f"{silent / 60:.0f} min" if silent < 7200 else f"{silent / 3600:.0f} h"
    return f"none for {long}. It was killed, or cannot reach its storage. Run the same `{command}` to continue"
