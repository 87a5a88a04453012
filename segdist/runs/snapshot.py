"""Committed checkpoints: a folder whose COMMITTED, written last, lists every file with its size and sha256.

A folder without COMMITTED does not exist. Its name carries the step and the attempt, so an outdated attempt can neither
overwrite nor delete what a newer one wrote. Only safetensors and JSON are read, never pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from segdist import storage
from segdist.errors import CheckpointError
from segdist.runs import record
from segdist.runs.checkpoints import COMMITTED, STATE, load_state, read_file

MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "ema.safetensors"
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
    return AVERAGE in json.loads(read_file(uri, COMMITTED))


def _tensors(uri: str, name: str) -> Tensors:
    try:
        return load_tensors(read_file(uri, name))
    except SafetensorError as error:
        raise CheckpointError(f"{uri}: {name} is damaged ({error})") from None


def _copies(tensors: Tensors) -> Tensors:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
