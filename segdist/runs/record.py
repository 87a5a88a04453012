"""A run's state in run.json, and the claims of its attempts.

The record in storage is the truth; a resubmitted job reads it there. An attempt is claimed by creating its file. If two
processes race, exactly one of them creates it. The newest attempt owns the run, and an older attempt that notices this stops.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import time
from typing import Any

from segdist import __version__, storage
from segdist.errors import MissingError, StorageError

NAME, SWEEP = "run.json", "sweep.json"
RUNNING, PREEMPTED, FAILED, SUCCEEDED = "RUNNING", "PREEMPTED", "FAILED", "SUCCEEDED"
_ATTEMPT = re.compile(r"(\d{4,})\.json")


def load(run_uri: str) -> dict[str, Any] | None:
    """Return run.json, or None if there is no run yet. Raises StorageError if the file is damaged."""
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
        raise StorageError(f"{address} is damaged: it is not a JSON object. Delete it, or set another run.uri")
    return tree


def save(run_uri: str, tree: dict[str, Any]) -> None:
    """Replace run.json."""
    storage.write(storage.join(run_uri, NAME), to_json(tree, indent=1).encode())


def claim_attempt(run_uri: str) -> int:
    """Claim the next attempt and return its number, 1 for the first. No other process gets the same number."""
    folder = storage.join(run_uri, "attempts")
    number = newest_attempt(run_uri)
    about = {"host": platform.node(), "pid": os.getpid(), "started": time.time(), "versions": versions()}
    while True:
        number += 1
        if storage.create(storage.join(folder, f"{number:04d}.json"), to_json(about).encode()):
            return number


def give_up(run_uri: str, launch: str, step: int, state: str, why: str) -> None:
    """Record the end of a run whose ranks are gone and cannot do it themselves.

    Does nothing if another launch has taken over the run. `launch` identifies the launch that started the ranks; `step` is the
    last step they reported.
    """
    newest, tree = newest_attempt(run_uri), load(run_uri)
    if tree and (tree["state"], tree.get("launch"), tree["attempt"]) == (RUNNING, launch, newest):
        save(run_uri, {**tree, "state": state, "error": why, "step": max(step, tree["step"])})


def newest_attempt(run_uri: str) -> int:
    """Return the number of the attempt that owns the run, or 0 if there is none."""
    names = storage.names(storage.join(run_uri, "attempts"))
    return max((int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name))), default=0)


def run_id(run_uri: str) -> str:
    """Return an ID that identifies the run even after it was moved, and that reveals nothing private."""
    try:
        first = storage.read(storage.join(run_uri, "attempts", "0001.json"))
    except MissingError:  # a checkpoint without its run
        first = run_uri.encode()
    return hashlib.sha256(first).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of segdist, Python and the libraries that affect the numbers, if they are already imported."""
    import sys

    found = {"segdist": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "segmentation_models_pytorch", "numpy"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "?"))
    return found


def to_json(tree: Any, indent: int | None = None) -> str:
    """Return JSON text. NaN and infinity become null, because JSON cannot express them."""
    return json.dumps(_finite(tree), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
