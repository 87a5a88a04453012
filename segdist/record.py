"""What a run leaves behind about itself: run.json (its state), the claim of each attempt, segments of metrics,
and which checkpoints were committed.

The record in storage is the truth: whoever resubmits a run reads it there. An attempt is claimed by creating its file,
which one of two racing starters wins; the newer attempt owns the run, and an older one that finds itself outdated stops.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from typing import Any

from segdist import __version__, storage
from segdist.errors import MissingError, StorageError

NAME, SWEEP = "run.json", "sweep.json"
RUNNING, PREEMPTED, FAILED, SUCCEEDED = "RUNNING", "PREEMPTED", "FAILED", "SUCCEEDED"
_ATTEMPT = re.compile(r"(\d{4,})\.json")
COMMITTED = "COMMITTED"
CHECKPOINT = re.compile(r"step-(\d{8})-(\d{4})")  # the name of its folder: the step, and the attempt


def load(run_uri: str) -> dict[str, Any] | None:
    """The run's record, or None when there is no run yet."""
    address = storage.join(run_uri, NAME)
    try:
        data = storage.read(address)
    except MissingError:
        return None
    try:
        tree = json.loads(data)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise StorageError(f"{address}: not a run's record (damaged JSON); give another run.uri or delete it")
    return tree


def save(run_uri: str, tree: dict[str, Any]) -> None:
    storage.write(storage.join(run_uri, NAME), to_json(tree, indent=1).encode())


def claim_attempt(run_uri: str) -> int:
    """The number of this attempt, 1 for the first; nobody else gets the same."""
    folder = storage.join(run_uri, "attempts")
    number = newest_attempt(run_uri)
    about = {"host": platform.node(), "pid": os.getpid(), "started": time.time(), "versions": versions()}
    while True:
        number += 1
        if storage.create(storage.join(folder, f"{number:04d}.json"), to_json(about).encode()):
            return number


def give_up(run_uri: str, launch: str, step: int, state: str, why: str) -> None:
    """Records how a run ended whose ranks are gone, and so could not do it; not one that others have taken over.

    `launch`: who had started the ranks; `step`: the last one that was heard of.
    """
    newest, tree = newest_attempt(run_uri), load(run_uri)
    if tree and (tree["state"], tree.get("launch"), tree["attempt"]) == (RUNNING, launch, newest):
        save(run_uri, {**tree, "state": state, "error": why, "step": max(step, tree["step"])})


def newest_attempt(run_uri: str) -> int:
    """The number of the attempt that owns the run; 0 when there is none."""
    names = storage.names(storage.join(run_uri, "attempts"))
    return max((int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name))), default=0)


def committed(run_uri: str) -> list[str]:
    """URIs of the committed checkpoints, newest first: by attempt, then by step.

    An attempt that fell back behind a damaged checkpoint writes lower steps than its predecessor, and they are the newer.
    """
    return list(_committed(run_uri))


def newest_committed(run_uri: str) -> str | None:
    """The first of them, whole or not; None where there is none."""
    return next(_committed(run_uri), None)


def _committed(run_uri: str) -> Iterator[str]:
    folder = storage.join(run_uri, "checkpoints")
    found = [match for name in storage.names(folder) if (match := CHECKPOINT.fullmatch(name))]
    uris = [storage.join(folder, m[0]) for m in sorted(found, key=lambda m: (m[2], m[1]), reverse=True)]
    return (uri for uri in uris if storage.exists(storage.join(uri, COMMITTED)))


def step_of(uri: str | None) -> int | None:
    """The step in a checkpoint's name."""
    match = CHECKPOINT.fullmatch(uri.rsplit("/", 1)[-1]) if uri else None
    return int(match[1]) if match else None


def run_id(run_uri: str) -> str:
    """What tells a run from others wherever it lies, and may be told to everybody: a digest of its first attempt's claim."""
    try:
        first = storage.read(storage.join(run_uri, "attempts", "0001.json"))
    except MissingError:  # a checkpoint without its run
        first = run_uri.encode()
    return hashlib.sha256(first).hexdigest()[:16]


def write_metrics(run_uri: str, attempt: int, part: int, rows: list[dict[str, Any]]) -> None:
    """One immutable segment of metrics."""
    text = "".join(to_json(row) + "\n" for row in rows)
    storage.write(storage.join(run_uri, "metrics", f"{attempt:04d}-{part:05d}.jsonl"), text.encode())


def write_log(run_uri: str, name: str, lines: list[str]) -> None:
    """One immutable segment of what was said."""
    storage.write(storage.join(run_uri, "logs", f"{name}.txt"), "".join(f"{line}\n" for line in lines).encode())


def read_metrics(run_uri: str) -> list[dict[str, Any]]:
    """All rows in order of step; where attempts overlap, the last one wins."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for name in storage.names(storage.join(run_uri, "metrics")):
        for row in _lines(storage.read(storage.join(run_uri, "metrics", name))):
            rows[row["step"], row["kind"]] = row
    return [rows[k] for k in sorted(rows)]


def what_a_sweep_is(uri: str) -> str | None:
    """What to tell somebody who gives a sweep where a run is asked for; None where no sweep is there."""
    if not storage.exists(storage.join(uri, SWEEP)):
        return None
    return f"{uri} is a sweep, whose trials are runs in {storage.join(uri, 'trials')}; `segdist status {uri}` names the best"


def versions() -> dict[str, str]:
    """Of segdist, Python and the libraries that decide the numbers; only those that are loaded already."""
    import sys

    found = {"segdist": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "segmentation_models_pytorch", "numpy"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "?"))
    return found


def to_json(tree: Any, indent: int | None = None) -> str:
    """JSON text; NaN and infinity become null, which JSON has no other word for."""
    return json.dumps(_finite(tree), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.decode().splitlines():
        yield json.loads(line)
