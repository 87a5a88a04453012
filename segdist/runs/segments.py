"""Metrics and log lines in immutable segments, because object stores cannot append."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from segdist import storage
from segdist.runs.record import to_json


def write_metrics(run_uri: str, attempt: int, part: int, rows: list[dict[str, Any]]) -> None:
    """Write one segment of metrics."""
    text = "".join(to_json(row) + "\n" for row in rows)
    storage.write(storage.join(run_uri, "metrics", f"{attempt:04d}-{part:05d}.jsonl"), text.encode())


def write_log(run_uri: str, name: str, lines: list[str]) -> None:
    """Write one segment of log lines."""
    storage.write(storage.join(run_uri, "logs", f"{name}.txt"), "".join(f"{line}\n" for line in lines).encode())


def read_metrics(run_uri: str) -> list[dict[str, Any]]:
    """Return all rows in order of step. If attempts overlap, the last one wins."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for name in storage.names(storage.join(run_uri, "metrics")):
        for row in _lines(storage.read(storage.join(run_uri, "metrics", name))):
            rows[row["step"], row["kind"]] = row
    return [rows[k] for k in sorted(rows)]


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.decode().splitlines():
        yield json.loads(line)
