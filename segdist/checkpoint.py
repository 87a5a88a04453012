"""Committed checkpoints: a folder whose COMMITTED, written last, lists every file with its size and sha256.

A folder without COMMITTED does not exist. Its name carries the step and the attempt, so an outdated attempt can neither
overwrite nor delete what a newer one wrote. Only safetensors and JSON are read, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from segdist import log, record, storage
from segdist.errors import CheckpointError, MissingError, UserError
from segdist.outbox import Outbox
from segdist.record import CHECKPOINT, COMMITTED, committed, step_of

STATE, BEST = "state.json", "best.json"
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "ema.safetensors"
EVALUATION = "evaluation.json"  # comes later than COMMITTED, which does not list it
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A moment of training, the same for every strategy and number of ranks; `state` is JSON-able.

    Weights and running statistics; the optimizer's states, as `optim.tensors` names them; the average of the weights, where
    one is kept.
    """

    model: Tensors
    optimizer: Tensors
    average: Tensors | None
    state: dict[str, Any]

    def copied(self) -> Snapshot:
        """The same on the CPU, apart from what trains on."""
        average = None if self.average is None else _copies(self.average)
        return Snapshot(_copies(self.model), _copies(self.optimizer), average, self.state)


def commit(run_uri: str, attempt: int, taken: Snapshot) -> str:
    """Writes a snapshot; the URI of its folder. Raises StorageError, and then nothing has been committed."""
    uri = storage.join(run_uri, "checkpoints", f"step-{taken.state['step']:08d}-{attempt:04d}")
    files = {
        MODEL: save_tensors(taken.model),
        OPTIMIZER: save_tensors(taken.optimizer),
        STATE: record.to_json(taken.state, indent=1).encode(),
    }
    if taken.average is not None:
        files[AVERAGE] = save_tensors(taken.average)
    for name, data in files.items():
        storage.write(storage.join(uri, name), data)
    seal = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    storage.write(storage.join(uri, COMMITTED), json.dumps(seal, indent=1).encode())
    return uri


def verify(uri: str) -> None:
    """Raises CheckpointError unless every file is what was committed, StorageError where that cannot be known."""
    try:
        seal = json.loads(_read(uri, COMMITTED))
        for name, expected in seal.items():
            data = _read(uri, name)
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
    for uri in storage.patiently(lambda: committed(run_uri), warn):
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
        log.say(f"warning: {uri}: the best checkpoint is missing or damaged; taking the newest one that is whole")
    chosen = storage.join(uri, best["checkpoint"]) if best else newest(uri, log.say)
    if chosen is None:
        if not storage.exists(uri):
            raise CheckpointError(
                f"{uri}: there is nothing{storage.near(uri)}; give the run.uri of a training, such as runs/photos"
            )
        if storage.exists(storage.join(uri, "segdist.json")):
            raise CheckpointError(
                f"{uri} is an export, which `segdist predict` and segdist.load take; here give the run that it came from"
            )
        if sweep := record.what_a_sweep_is(uri):
            raise CheckpointError(sweep)
        raise CheckpointError(
            f"{uri}: neither a run with a committed checkpoint nor a checkpoint; give the run.uri of a training, such as "
            "runs/photos"
        )
    return chosen


def digest(uri: str) -> str:
    """sha256 of a checkpoint's COMMITTED, which lists the digests of its weights and of all else it holds."""
    return hashlib.sha256(_read(uri, COMMITTED)).hexdigest()


def load_state(uri: str) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return json.loads(_read(uri, STATE))


def _read(uri: str, name: str) -> bytes:
    """A file of a checkpoint, waited for while storage is away."""
    return storage.patiently(lambda: storage.read(storage.join(uri, name)), log.say)


def load(uri: str) -> Snapshot:
    """All that a checkpoint holds."""
    average = _tensors(uri, AVERAGE) if has_average(uri) else None
    return Snapshot(_tensors(uri, MODEL), _tensors(uri, OPTIMIZER), average, load_state(uri))


def load_model(uri: str, raw: bool = False) -> Tensors:
    """The weights and running statistics of a checkpoint: those that were scored, or (`raw`) those that train on.

    They differ where a run averages its weights (optim.ema_decay).
    """
    return _tensors(uri, AVERAGE if not raw and has_average(uri) else MODEL)


def has_average(uri: str) -> bool:
    """Whether the weights that were scored are an average of those that train on."""
    return AVERAGE in json.loads(_read(uri, COMMITTED))


def _tensors(uri: str, name: str) -> Tensors:
    try:
        return load_tensors(_read(uri, name))
    except SafetensorError as error:
        raise CheckpointError(f"{uri}: {name} is damaged ({error})") from None


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


def _copies(tensors: Tensors) -> Tensors:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


class Keeper:
    """The checkpoints of one attempt, written through an outbox: newest, best, and the deletion of the rest.

    `owns` says whether the run still belongs to this attempt; when not, nothing is written.
    """

    def __init__(
        self,
        run_uri: str,
        attempt: int,
        keep_last: int,
        outbox: Outbox,
        owns: Callable[[], bool],
        newest: str | None,
        best: dict[str, Any] | None,
    ) -> None:
        self._run_uri, self._attempt, self._keep_last, self._outbox, self._owns = (
            run_uri,
            attempt,
            keep_last,
            outbox,
            owns,
        )
        self.newest = newest  # URI of the newest committed checkpoint
        self.best = best  # as best.json has it

    def put(self, taken: Snapshot) -> None:
        """Commits a snapshot in the background."""
        self._outbox.put("checkpoint", lambda: self._commit(taken))

    def mark_scored(self, step: int, report: dict[str, Any], scored_on: str) -> None:
        """Puts an evaluation into the newest checkpoint, if it is that of `step`, and makes it the best if none is better.

        `scored_on` is the digest of the split.
        """
        self._outbox.put(f"scores {step}", lambda: self._mark_scored(step, report, scored_on))

    def _commit(self, taken: Snapshot) -> None:
        if self._owns():
            self.newest = commit(self._run_uri, self._attempt, taken)
            self._outbox.put("prune", self._prune)

    def _mark_scored(self, step: int, report: dict[str, Any], scored_on: str) -> None:
        if self.newest is None or step_of(self.newest) != step or not self._owns():
            return
        storage.write(storage.join(self.newest, EVALUATION), record.to_json(report).encode())
        miou = report["miou"]
        if self.best is None or is_better(miou, self.best["miou"]):
            name = f"checkpoints/{self.newest.rsplit('/', 1)[1]}"
            best = {"step": step, "miou": miou, "checkpoint": name, "scored_on": scored_on}
            storage.write(storage.join(self._run_uri, BEST), record.to_json(best, indent=1).encode())
            self.best = best
            self._outbox.put("prune", self._prune)

    def _prune(self) -> None:
        prune(self._run_uri, self._attempt, self._keep_last, self.best["checkpoint"] if self.best else None)


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
        best = json.loads(storage.patiently(lambda: storage.read(address), log.say))
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
    rows = [row for row in record.read_metrics(run_uri) if row["kind"] == "eval" and row["step"] == step]
    return rows[-1] if rows else None
