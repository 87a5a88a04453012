"""All facts about a run's checkpoints: which are committed, the newest, the best, which were scored. Needs no torch.

A checkpoint is a folder `checkpoints/step-SSSSSSSS-AAAA` (step, attempt) below the run. COMMITTED is written last and lists
every file with its size and sha256; a folder without COMMITTED does not count as a checkpoint. best.json names the best one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from segdist import console, storage
from segdist.errors import CheckpointError, MissingError, UserError
from segdist.runs import segments
from segdist.runs.record import SWEEP

COMMITTED, STATE, BEST = "COMMITTED", "state.json", "best.json"
EVALUATION = "evaluation.json"  # written after COMMITTED, which therefore does not list it
CHECKPOINT = re.compile(r"step-(\d{8})-(\d{4})")  # name of a checkpoint's folder: step, attempt


def committed(run_uri: str) -> list[str]:
    """Return the URIs of the committed checkpoints, newest first: by attempt, then by step.

    An attempt that fell back behind a damaged checkpoint writes lower steps than the attempt before it. Its checkpoints are
    the newer ones all the same.
    """
    return list(_committed(run_uri))


def newest_committed(run_uri: str) -> str | None:
    """Return the URI of the newest committed checkpoint without verifying it, or None if there is none."""
    return next(_committed(run_uri), None)


def _committed(run_uri: str) -> Iterator[str]:
    folder = storage.join(run_uri, "checkpoints")
    found = [match for name in storage.names(folder) if (match := CHECKPOINT.fullmatch(name))]
    uris = [storage.join(folder, m[0]) for m in sorted(found, key=lambda m: (m[2], m[1]), reverse=True)]
    return (uri for uri in uris if storage.exists(storage.join(uri, COMMITTED)))


def folder_name(step: int, attempt: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"step-{step:08d}-{attempt:04d}"


def step_of(uri: str | None) -> int | None:
    """Return the step in a checkpoint's name, or None for None or another name."""
    match = CHECKPOINT.fullmatch(uri.rsplit("/", 1)[-1]) if uri else None
    return int(match[1]) if match else None


def run_of(uri: str) -> str:
    """Return the URI of the run that a checkpoint belongs to."""
    return uri.rsplit("/checkpoints/", 1)[0]


def below_run(uri: str) -> str:
    """Return the path of a checkpoint below the URI of its run."""
    return uri[len(run_of(uri)) + 1 :]


def verify(uri: str) -> None:
    """Raise CheckpointError unless every file is exactly what was committed. Raises StorageError if storage does not answer."""
    try:
        files = json.loads(read_file(uri, COMMITTED))
        for name, expected in files.items():
            data = read_file(uri, name)
            if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise CheckpointError(f"{uri}: {name} ({len(data)} bytes) differs from what was committed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError) and not isinstance(error, MissingError):
            raise  # storage that does not answer says nothing about the checkpoint
        raise CheckpointError(f"{uri}: not a committed checkpoint ({error})") from None


def newest(run_uri: str, warn: Callable[[str], None]) -> str | None:
    """Return the newest checkpoint that verifies, or None. Warns about each damaged one and falls back to the one before.

    Raises StorageError if storage does not answer, because the newest checkpoint is then unknown.
    """
    for uri in storage.with_retries(lambda: committed(run_uri), warn):
        try:
            verify(uri)
            return uri
        except CheckpointError as error:
            warn(f"{error}. Falling back to the checkpoint before it.")
    return None


def resolve(uri: str) -> str:
    """Return the checkpoint that a URI means: itself, or of a run its best checkpoint, or the newest if none was scored.

    Falls back to the newest intact checkpoint if the best one is damaged. Raises CheckpointError if there is none.
    """
    if storage.exists(storage.join(uri, STATE)):
        verify(uri)
        return uri
    best = read_best(uri)
    if best is None and storage.exists(storage.join(uri, BEST)):
        console.say(f"warning: {uri}: the best checkpoint is missing or damaged. Using the newest intact one instead.")
    chosen = storage.join(uri, best["checkpoint"]) if best else newest(uri, console.say)
    if chosen is None:
        raise CheckpointError(_why_none(uri))
    return chosen


def _why_none(uri: str) -> str:
    """Return the message for a URI without a checkpoint."""
    if not storage.exists(uri):
        return (
            f"{uri} does not exist{storage.did_you_mean(uri)}. Give the run.uri of a training run, such as runs/photos"
        )
    if storage.exists(storage.join(uri, "segdist.json")):
        return f"{uri} is an export. Only `segdist predict` and segdist.load read exports; give the run it came from instead"
    if sweep := sweep_hint(uri):
        return sweep
    return (
        f"{uri} is neither a checkpoint nor a run with a committed checkpoint. Give the run.uri of a training run, such as "
        "runs/photos"
    )


def sweep_hint(uri: str) -> str | None:
    """Return what to tell a user who gives a sweep where a run is expected, or None if `uri` is not a sweep."""
    if not storage.exists(storage.join(uri, SWEEP)):
        return None
    return f"{uri} is a sweep. Its trials are runs in {storage.join(uri, 'trials')}; `segdist status {uri}` names the best one"


def digest(uri: str) -> str:
    """Return the sha256 of a checkpoint's COMMITTED, which in turn lists the digests of all its files."""
    return hashlib.sha256(read_file(uri, COMMITTED)).hexdigest()


def load_state(uri: str) -> dict[str, Any]:
    """Return state.json of a checkpoint."""
    return json.loads(read_file(uri, STATE))


def read_file(uri: str, name: str) -> bytes:
    """Read a file of a checkpoint. Retries while storage is unavailable."""
    return storage.with_retries(lambda: storage.read(storage.join(uri, name)), console.say)


def prune(run_uri: str, attempt: int, keep_last: int, best: str | None) -> None:
    """Delete all checkpoints but the newest `keep_last` and the best. Never deletes anything of a newer attempt.

    Also deletes folders of earlier attempts that were never committed.
    """
    folder = storage.join(run_uri, "checkpoints")
    kept = {uri.rsplit("/", 1)[1] for uri in committed(run_uri)[:keep_last]}
    kept |= {best.rsplit("/", 1)[1]} if best else set()
    for name in storage.names(folder):
        match = CHECKPOINT.fullmatch(name)
        if match and name not in kept and int(match[2]) <= attempt:
            # first, so that half a checkpoint never looks complete
            storage.delete(storage.join(folder, name, COMMITTED))
            storage.delete(storage.join(folder, name))


def is_better(miou: float, best: float | None) -> bool:
    """Return whether a score beats the best one so far. Any score beats one that is missing or NaN."""
    return best is None or math.isnan(best) or miou > best


def read_best(run_uri: str, scored_on: str | None = None) -> dict[str, Any] | None:
    """Return best.json: {"step", "miou", "checkpoint" (below the run), "scored_on"}.

    Returns None if there is none, if its checkpoint does not verify, or if it was scored on another split than `scored_on`.
    """
    address = storage.join(run_uri, BEST)
    if not storage.exists(address):
        return None
    try:
        best = json.loads(storage.with_retries(lambda: storage.read(address), console.say))
        verify(storage.join(run_uri, best["checkpoint"]))
    except (CheckpointError, ValueError, KeyError):
        return None
    return best if scored_on in (None, best.get("scored_on")) else None


def name_of_best(run_uri: str) -> str | None:
    """Return the best checkpoint below the run as best.json has it, unverified; None if it cannot be read."""
    try:
        return str(json.loads(storage.read(storage.join(run_uri, BEST)))["checkpoint"])
    except (ValueError, KeyError):
        return None


def evaluation_of(uri: str) -> dict[str, Any] | None:
    """Return the run's own evaluation of this checkpoint, with its confusion matrix, or None if it was not scored."""
    try:
        return json.loads(storage.read(storage.join(uri, EVALUATION)))
    except MissingError:
        return None


def scores_of(uri: str) -> dict[str, Any] | None:
    """Return the run's metrics row for the evaluation of this checkpoint, or None if it was not scored."""
    step = step_of(uri)
    rows = [row for row in segments.read_metrics(run_of(uri)) if row["kind"] == "eval" and row["step"] == step]
    return rows[-1] if rows else None
