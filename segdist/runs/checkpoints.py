"""The checkpoints of a run: which are committed, which is the newest, which is the best, which were scored. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from segdist import console, storage
from segdist.errors import CheckpointError, MissingError, UserError
from segdist.runs import checkpoints, segments
from segdist.runs.record import SWEEP

COMMITTED = "COMMITTED"
CHECKPOINT = re.compile(r"step-(\d{8})-(\d{4})")  # the name of its folder: the step, and the attempt


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


def what_a_sweep_is(uri: str) -> str | None:
    """What to tell somebody who gives a sweep where a run is asked for; None where no sweep is there."""
    if not storage.exists(storage.join(uri, SWEEP)):
        return None
    return f"{uri} is a sweep, whose trials are runs in {storage.join(uri, 'trials')}; `segdist status {uri}` names the best"


STATE, BEST = "state.json", "best.json"
EVALUATION = "evaluation.json"  # comes later than COMMITTED, which does not list it


def verify(uri: str) -> None:
    """Raises CheckpointError unless every file is what was committed, StorageError where that cannot be known."""
    try:
        seal = json.loads(read_file(uri, COMMITTED))
        for name, expected in seal.items():
            data = read_file(uri, name)
            if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise CheckpointError(f"{uri}: {name} is not what was committed ({len(data)} bytes)")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError) and not isinstance(error, MissingError):
            raise  # that storage does not answer tells nothing of the checkpoint
        raise CheckpointError(f"{uri}: not a committed checkpoint ({error})") from None


def newest(run_uri: str, warn: Callable[[str], None]) -> str | None:
    """The newest checkpoint that verifies; None when the run has none. Damaged ones are passed over with a warning.

    Raises StorageError when storage does not answer, for then the newest one is not known.
    """
    for uri in storage.with_retries(lambda: committed(run_uri), warn):
        try:
            verify(uri)
            return uri
        except CheckpointError as error:
            warn(f"{error}; falling back to the one before")
    return None


def resolve(uri: str) -> str:
    """The checkpoint that a run or checkpoint URI means: of a run, the best one, or the newest where none was scored.

    Where those are damaged, the newest one that is whole. Raises CheckpointError when there is none.
    """
    if storage.exists(storage.join(uri, STATE)):
        verify(uri)
        return uri
    best = read_best(uri)
    if best is None and storage.exists(storage.join(uri, BEST)):
        console.say(f"warning: {uri}: the best checkpoint is missing or damaged; taking the newest one that is whole")
    chosen = storage.join(uri, best["checkpoint"]) if best else newest(uri, console.say)
    if chosen is None:
        if not storage.exists(uri):
            raise CheckpointError(
                f"{uri}: there is nothing{storage.did_you_mean(uri)}; give the run.uri of a training, such as runs/photos"
            )
        if storage.exists(storage.join(uri, "segdist.json")):
            raise CheckpointError(
                f"{uri} is an export, which `segdist predict` and segdist.load take; here give the run that it came from"
            )
        if sweep := checkpoints.what_a_sweep_is(uri):
            raise CheckpointError(sweep)
        raise CheckpointError(
            f"{uri}: neither a run with a committed checkpoint nor a checkpoint; give the run.uri of a training, such as "
            "runs/photos"
        )
    return chosen


def digest(uri: str) -> str:
    """sha256 of a checkpoint's COMMITTED, which lists the digests of its weights and of all else it holds."""
    return hashlib.sha256(read_file(uri, COMMITTED)).hexdigest()


def load_state(uri: str) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return json.loads(read_file(uri, STATE))


def read_file(uri: str, name: str) -> bytes:
    """A file of a checkpoint, waited for while storage is away."""
    return storage.with_retries(lambda: storage.read(storage.join(uri, name)), console.say)


def prune(run_uri: str, attempt: int, keep_last: int, best: str | None) -> None:
    """Deletes what nobody needs: all but the newest `keep_last` and the best; never anything of a newer attempt.

    Folders of earlier attempts that were never committed go as well.
    """
    folder = storage.join(run_uri, "checkpoints")
    kept = {uri.rsplit("/", 1)[1] for uri in committed(run_uri)[:keep_last]}
    kept |= {best.rsplit("/", 1)[1]} if best else set()
    for name in storage.names(folder):
        match = CHECKPOINT.fullmatch(name)
        if match and name not in kept and int(match[2]) <= attempt:
            storage.delete(storage.join(folder, name, COMMITTED))  # first: half a checkpoint must not look whole
            storage.delete(storage.join(folder, name))


def is_better(miou: float, best: float | None) -> bool:
    """Whether a score beats the best one; one that could not be computed (NaN, or null in JSON) is beaten by any."""
    return best is None or math.isnan(best) or miou > best


def read_best(run_uri: str, scored_on: str | None = None) -> dict[str, Any] | None:
    """best.json: {"step", "miou", "checkpoint" (below the run), "scored_on"}.

    None when there is none, when its checkpoint does not verify, or when it was scored on another split than asked for.
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


def evaluation_of(uri: str) -> dict[str, Any] | None:
    """The report, with its confusion matrix, of a run's own evaluation of this checkpoint; None where there was none."""
    try:
        return json.loads(storage.read(storage.join(uri, EVALUATION)))
    except MissingError:
        return None


def scores_of(uri: str) -> dict[str, Any] | None:
    """The evaluation of a run's checkpoint, as the run's metrics have it; None where it was not scored."""
    run_uri, step = uri.rsplit("/checkpoints/", 1)[0], step_of(uri)
    rows = [row for row in segments.read_metrics(run_uri) if row["kind"] == "eval" and row["step"] == step]
    return rows[-1] if rows else None
