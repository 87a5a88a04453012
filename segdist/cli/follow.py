"""Follow a run or a sweep until it ends: a table that updates itself on a terminal, otherwise a line per change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.live import Live

from segdist import console, storage
from segdist.cli import status, status_tables
from segdist.runs import record
from segdist.sweep.ledger import metric_name
from segdist.sweep.space import format_values

_EVERY_SECONDS, _START_SECONDS = 3.0, 60.0


def follow(uri: str, every_seconds: float = _EVERY_SECONDS) -> dict[str, Any]:
    """Show the status until the run or sweep has ended, or until Ctrl-C. Return the last status."""
    tree = _first_status(uri)
    if not console.console.is_terminal:
        shown: set[str] = set()

        def show(tree: dict[str, Any]) -> None:
            lines = status_lines(tree)
            for line in lines:
                if line not in shown:
                    console.say(line)
            shown.update(lines)

        return _poll(uri, tree, show, every_seconds)
    with Live(console=console.console, auto_refresh=False) as live:

        def update(tree: dict[str, Any]) -> None:
            live.update(status_tables.render(tree, max(5, console.console.height - 12)), refresh=True)

        return _poll(uri, tree, update, every_seconds)


def _first_status(uri: str) -> dict[str, Any]:
    """Read the status. If neither run nor sweep is there yet, wait a minute for one that has just been started."""
    until = time.monotonic() + _START_SECONDS
    while not any(storage.exists(storage.join(uri, name)) for name in (record.NAME, record.SWEEP)):
        if time.monotonic() > until:
            break
        time.sleep(1)
    return status.read_status(uri)


def _poll(
    uri: str, tree: dict[str, Any], show: Callable[[dict[str, Any]], None], every_seconds: float
) -> dict[str, Any]:
    try:
        show(tree)
        while tree["state"] == record.RUNNING:
            time.sleep(every_seconds)
            tree = storage.with_retries(lambda: status.read_status(uri), console.say)
            show(tree)
    except KeyboardInterrupt:
        pass  # ends following only
    return tree


def status_lines(tree: dict[str, Any]) -> list[str]:
    """Return the status as lines, without values that change all the time."""
    if tree["kind"] == "run":
        score = "" if tree.get("miou") is None else f", best mIoU {tree['miou']:.4f} after step {tree['best_step']:,}"
        return [f"{tree['run_uri']}: {tree['state']}, step {tree['step']:,} of {tree['num_steps']:,}{score}"]
    lines = []
    for row in tree["trials"]:
        score = "" if row["best"] is None else f", best {metric_name(tree['metric'])} {row['best']:.4f}"
        why = f": {row['reason']}" if row["reason"] else ""
        lines.append(
            f"trial {row['trial']} {row['state']}, step {row['step']:,} of {tree['num_steps']:,}{score} "
            f"({format_values(row['values'])}){why}"
        )
    if tree["state"] != record.RUNNING:
        lines += status_tables.summary(tree)
    elif tree["silent_seconds"] >= status_tables.SILENT_SECONDS:
        lines.append(f"no heartbeat for {status_tables.SILENT_SECONDS / 60:.0f} min")
    return lines
