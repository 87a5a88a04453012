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
from typing import Any

from segdist import __version__, storage
from segdist.errors import MissingError, StorageError

NAME, SWEEP = "run.json", "sweep.json"
RUNNING, PREEMPTED, FAILED, SUCCEEDED = "RUNNING", "PREEMPTED", "FAILED", "SUCCEEDED"
_ATTEMPT = re.compile(r"(\d{4,})\.json")


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


def run_id(run_uri: str) -> str:
    """What tells a run from others wherever it lies, and may be told to everybody: a digest of its first attempt's claim."""
    try:
        first = storage.read(storage.join(run_uri, "attempts", "0001.json"))
    except MissingError:  # a checkpoint without its run
        first = run_uri.encode()
    return hashlib.sha256(first).hexdigest()[:16]


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
