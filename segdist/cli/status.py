"""How a run or a sweep stands, for people and machines. It only reads, and so may look on while others write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from segdist import console, storage
from segdist.errors import UserError
from segdist.runs import checkpoints, record
from segdist.runs.record import to_json

_EVERY_SECONDS, _BEGIN_SECONDS = 3.0, 60.0
_SILENT_SECONDS = 300.0  # without a sign of life, in which something of a run or sweep was to be written twenty times
_STYLES = {"RUNNING": "cyan", "SUCCEEDED": "green", "FAILED": "red", "PREEMPTED": "yellow"}
_TOLD = {"state", "step", "num_steps", "miou", "best_step", "heartbeat", "attempt", "run_uri"}  # in words of our own
_UNTOLD = {"identity", "versions", "pinned", "launch", "initial", "data"}  # long, or of no use in a table


def look(uri: str) -> dict[str, Any]:
    """What `segdist status --json` prints: of a run, run.json and a few things that follow from it; of a sweep, its trials.

    Raises UserError where neither is there.
    """
    if (run := record.load(uri)) is not None:
        newest = checkpoints.newest_committed(uri)
        return {"kind": "run", **run, "run_uri": uri, "silent_seconds": _silence(run), "newest_checkpoint": newest}
    from segdist.sweep import ledger

    if ledger.load(uri) is None:
        raise UserError(
            f"{uri}: neither a run (no {record.NAME}) nor a sweep (no {ledger.NAME}) is there; give the run.uri of a "
            "`segdist train`, or the uri of a `segdist tune`, that has begun"
        )
    return _sweep(uri)


def _sweep(uri: str) -> dict[str, Any]:
    """The sweep, and its trials in their order, each followed by those that confirm it."""
    from segdist.sweep import ledger
    from segdist.sweep.axes import varying
    from segdist.sweep.picture import leader, spent

    facts, trials = ledger.read(uri)
    live = _live_steps(uri, [trial for trial in trials if trial.state == ledger.RUNNING])
    went_on = {one["trial"]: f"went on from {one['from']} after step {one['step']}" for one in facts["exploits"]}
    rate = facts["dollars_per_hour"]
    rows = [
        {
            "trial": trial.id,
            "values": trial.values,
            "state": trial.state,
            "step": max(trial.step, live.get(trial.id, 0)),
            "best": trial.best(facts["metric"]),
            "seconds": trial.seconds,
            "reason": trial.reason or went_on.get(trial.id),
            "run_uri": storage.join(uri, trial.run),
            "confirms": trial.confirms,
            "seed": trial.seed,
        }
        for trial in sorted(trials, key=lambda trial: (trial.confirms or trial.id, trial.id))
    ]
    return {
        "kind": "sweep",
        "sweep_uri": uri,
        **{key: facts[key] for key in ("state", "reason", "metric", "scheduler", "num_trials", "seconds")},
        "num_steps": facts["identity"]["config"]["train"]["num_steps"],
        "fields": varying(facts, trials),
        "counts": dict(Counter(trial.state for trial in trials if not trial.confirms)),
        "dollars": None if rate is None else spent(facts, trials),
        "silent_seconds": _silence(facts),
        "best": leader(facts, trials),
        "trials": rows,
    }


def best_config(uri: str) -> str:
    """The address of a sweep's best.yaml. Raises UserError, with the reason, where it has none."""
    from segdist.sweep import best, ledger

    facts, trials = ledger.read(uri)
    address = storage.join(uri, best.YAML)
    if storage.exists(address):
        if facts["state"] == record.RUNNING:
            console.say(f"warning: {uri} is not finished; these are the best values of its launch before")
        if facts["scheduler"] == "pbt":
            console.say(
                f"warning: the best of a population is a history, which its last values do not repeat; its weights are in "
                f"{storage.join(uri, facts['best']['checkpoint'] or facts['best']['run'])}"
            )
        return address
    if facts["state"] == record.RUNNING:
        why = "it is not finished; `segdist status` shows how it stands, and the same `segdist tune` goes on if it was killed"
    elif reason := facts["reason"] or next((trial.reason for trial in trials if trial.reason), None):
        why = f"no trial has a score: {reason}"
    else:
        why = "no trial has a score; the same `segdist tune` goes on"
    raise UserError(f"{uri} names no best values ({best.YAML}): {why}")


def draw(uri: str, plot: str) -> None:
    """Writes a sweep's picture."""
    from segdist.evaluation import figures
    from segdist.sweep import ledger
    from segdist.sweep.picture import picture

    storage.write(plot, figures.png(picture(*ledger.read(uri), uri)))


def _live_steps(uri: str, running: list[Any]) -> dict[str, int]:
    """Trial -> its step now, which its run tells more often than the sweep does."""
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda trial: record.load(storage.join(uri, trial.run)), running)
    return {trial.id: trial.offset + run["step"] for trial, run in zip(running, runs) if run}


def _silence(tree: dict[str, Any]) -> float | None:
    """Seconds since the last sign of life of what says that it is running."""
    return max(0.0, time.time() - tree["heartbeat"]) if tree["state"] == record.RUNNING else None


def shown(tree: dict[str, Any], most: int | None = None) -> Any:
    """A table for people; of a sweep, `most` trials at most: those that run, and then the best."""
    if tree["kind"] == "run":
        return _run_table(tree)
    table, screen = _sweep_table(tree, most, tree["fields"]), console.console
    if Measurement.get(screen, screen.options.update(width=10_000), table).maximum > screen.width:
        table = _sweep_table(tree, most, [])
    return Group(table, *map(Text, _reasons(tree) + _summary(tree)))


def _run_table(tree: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify = Text(tree["run_uri"], "bold"), "left"
    facts = {"state": tree["state"], "step": f"{tree['step']:,} of {tree['num_steps']:,}"}
    facts["sign of life"] = _life(tree, "segdist train") or ""
    if tree.get("miou") is not None:
        facts["best mIoU"] = f"{tree['miou']:.4f}, after step {tree['best_step']:,}"
    if tree["newest_checkpoint"]:
        facts["newest checkpoint"] = f"after step {checkpoints.step_of(tree['newest_checkpoint']):,}"
    facts["attempt"] = str(tree["attempt"])
    for key, value in tree.items():
        if key not in _TOLD | _UNTOLD | {"kind", "silent_seconds", "newest_checkpoint"}:
            facts[key.replace("_", " ")] = _plain(value)
    for what, text in facts.items():
        if text:
            table.add_row(Text(what, "bold"), Text(text, _STYLES.get(text, "")))
    return table


def _plain(value: Any) -> str:
    """A value of run.json for people; of a group of them, its parts."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(part)}" for key, part in value.items() if part is not None)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _sweep_table(tree: dict[str, Any], most: int | None, columns: list[str]) -> Table:
    """A row per trial, and a column per field; where `columns` is empty, one for all fields."""
    table = Table(title=Text(tree["sweep_uri"]), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    for field in columns:
        table.add_column(Text(field.replace(".", ".\n")), justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in (f"step\nof {tree['num_steps']:,}", _metric(tree), "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    if not columns:
        table.add_column("values", overflow="fold")
    rows = _chosen(tree, most)
    for row in rows:
        is_best = bool(tree["best"]) and row["trial"] == tree["best"]["trial"]
        values = {} if row["confirms"] else {key: _value(row["values"].get(key, "")) for key in tree["fields"]}
        table.add_row(
            f"  seed {row['seed']}" if row["confirms"] else row["trial"],
            *(Text(values.get(field, "")) for field in columns),
            Text(row["state"], _STYLES.get(row["state"], "")), f"{row['step']:,}", _score(row["best"]),
            console.duration(row["seconds"]),
            *([] if columns else [Text(", ".join(f"{key.split('.')[1]} {value}" for key, value in values.items() if value))]),
            style="bold" if is_best else "dim" if row["confirms"] else None,
        )  # fmt: skip
    if hidden := len(tree["trials"]) - len(rows):
        table.caption, table.caption_justify = f"and {hidden} more", "left"
    return table


def _reasons(tree: dict[str, Any]) -> list[str]:
    """Why trials failed, or whose weights they took over, each reason once."""
    trials: dict[str, list[str]] = {}
    for row in tree["trials"]:
        if row["reason"] and row["state"] != "STOPPED":
            trials.setdefault(row["reason"], []).append(row["trial"])
    return [f"{', '.join(ids)}: {reason}" for reason, ids in trials.items()]


def _chosen(tree: dict[str, Any], most: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tree["trials"]
    if most is None or len(rows) <= most:
        return rows
    sign = 1 if tree["metric"] == "loss" else -1

    def interest(row: dict[str, Any]) -> tuple[bool, bool, float]:
        return row["state"] != "RUNNING", row["best"] is None, sign * (row["best"] or 0)

    kept = {row["trial"] for row in sorted(rows, key=interest)[:most]}
    return [row for row in rows if row["trial"] in kept]


def _summary(tree: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    from segdist.sweep.ledger import told

    counts = ", ".join(f"{num} {state.lower()}" for state, num in tree["counts"].items())
    cost = "" if tree["dollars"] is None else f", ${tree['dollars']:.2f}"
    lines = [
        f"{tree['state']}: {sum(tree['counts'].values())} of {tree['num_trials']} trials ({counts}), each of "
        f"{tree['num_steps']:,} steps; {tree['seconds'] / 3600:.2f} h{cost}"
    ]
    if tree["reason"]:
        lines.append(tree["reason"])
    if tree["best"]:
        values = ", ".join(f"{key} {_value(value)}" for key, value in tree["best"]["values"].items())
        lines.append(f"best: trial {tree['best']['trial']}, {told(tree['best'], tree['metric'])}: {values}")
    if life := _life(tree, "segdist tune"):
        lines.append(f"sign of life: {life}")
    return lines


def _life(tree: dict[str, Any], command: str) -> str | None:
    """How long ago the last sign of life was, of what runs, and what a long silence means."""
    silent = tree["silent_seconds"]
    if silent is None:
        return None
    if silent < _SILENT_SECONDS:
        return f"{silent:.0f} s ago"
    long = f"{silent / 60:.0f} min" if silent < 7200 else f"{silent / 3600:.0f} h"
    return f"none for {long}: it was killed, or cannot reach its storage; the same `{command}` goes on from there"


def _metric(tree: dict[str, Any]) -> str:
    return "mIoU" if tree["metric"] == "miou" else str(tree["metric"])


def _value(value: Any) -> str:
    """As a config would have it, in few characters."""
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else to_json(value).replace(" ", "")
    )


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


def follow(uri: str, every_seconds: float = _EVERY_SECONDS) -> dict[str, Any]:
    """Shows how it stands until it has ended, or until Ctrl-C; the last look.

    On a terminal one picture that changes, else a line for each thing that has.
    """
    tree = _begun(uri)
    if not console.console.is_terminal:
        told: set[str] = set()

        def show(tree: dict[str, Any]) -> None:
            lines = news(tree)
            for line in lines:
                if line not in told:
                    console.say(line)
            told.update(lines)

        return _watch(uri, tree, show, every_seconds)
    with Live(console=console.console, auto_refresh=False) as live:
        return _watch(
            uri,
            tree,
            lambda tree: live.update(shown(tree, max(5, console.console.height - 12)), refresh=True),
            every_seconds,
        )


def _begun(uri: str) -> dict[str, Any]:
    """The first look; whoever has just begun a sweep or run may wait a while for its record."""
    until = time.monotonic() + _BEGIN_SECONDS
    while not (storage.exists(storage.join(uri, record.NAME)) or storage.exists(storage.join(uri, "sweep.json"))):
        if time.monotonic() > until:
            break
        time.sleep(1)
    return look(uri)


def _watch(
    uri: str, tree: dict[str, Any], show: Callable[[dict[str, Any]], None], every_seconds: float
) -> dict[str, Any]:
    try:
        show(tree)
        while tree["state"] == record.RUNNING:
            time.sleep(every_seconds)
            tree = storage.with_retries(lambda: look(uri), console.say)
            show(tree)
    except KeyboardInterrupt:
        pass  # who looks on may stop looking
    return tree


def news(tree: dict[str, Any]) -> list[str]:
    """What there is to tell, a line each, without what changes all the time."""
    if tree["kind"] == "run":
        score = "" if tree.get("miou") is None else f", best mIoU {tree['miou']:.4f} after step {tree['best_step']:,}"
        return [f"{tree['run_uri']}: {tree['state']}, step {tree['step']:,} of {tree['num_steps']:,}{score}"]
    lines = []
    for row in tree["trials"]:
        score = "" if row["best"] is None else f", best {_metric(tree)} {row['best']:.4f}"
        values = " ".join(f"{key}={_value(value)}" for key, value in row["values"].items())
        why = f": {row['reason']}" if row["reason"] else ""
        lines.append(
            f"trial {row['trial']} {row['state']}, step {row['step']:,} of {tree['num_steps']:,}{score} ({values}){why}"
        )
    if tree["state"] != record.RUNNING:
        lines += _summary(tree)
    elif tree["silent_seconds"] >= _SILENT_SECONDS:
        lines.append("no sign of life for 5 min")
    return lines
