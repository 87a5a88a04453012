"""What one checkpoint holds, written and read back. Only safetensors and JSON are read, never pickle.

The name of a checkpoint holds its step and its attempt. So an outdated attempt can neither overwrite nor delete what a newer
attempt wrote.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from segdist import storage
from segdist.errors import CheckpointError
from segdist.models.segmenter import Tensors
from segdist.runs import record
from segdist.runs.checkpoints import COMMITTED, STATE, folder_name, load_state, read_file

MODEL, OPTIMIZER, EMA = "model.safetensors", "optimizer.safetensors", "ema.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """The state of training at one step, independent of strategy and number of ranks. `state` is JSON-able.

    `model` holds weights and running statistics, `optimizer` the optimizer's state with the names of `optim.tensors`, `ema` the
    EMA weights, if there are any.
    """

    model: Tensors
    optimizer: Tensors
    ema: Tensors | None
    state: dict[str, Any]

    def copied(self) -> Snapshot:
        """Return a copy on the CPU, which training no longer changes."""
        ema = None if self.ema is None else _copies(self.ema)
        return Snapshot(_copies(self.model), _copies(self.optimizer), ema, self.state)


def commit(run_uri: str, attempt: int, taken: Snapshot) -> str:
    """Write a snapshot and return the URI of its folder. If this raises StorageError, nothing was committed."""
    uri = storage.join(run_uri, "checkpoints", folder_name(taken.state["step"], attempt))
    files = {
        MODEL: save_tensors(taken.model),
        OPTIMIZER: save_tensors(taken.optimizer),
        STATE: record.to_json(taken.state, indent=1).encode(),
    }
    if taken.ema is not None:
        files[EMA] = save_tensors(taken.ema)
    for name, data in files.items():
        storage.write(storage.join(uri, name), data)
    listed = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    storage.write(storage.join(uri, COMMITTED), json.dumps(listed, indent=1).encode())
    return uri


def load(uri: str) -> Snapshot:
    """Return everything a checkpoint holds."""
    ema = _tensors(uri, EMA) if has_ema(uri) else None
    return Snapshot(_tensors(uri, MODEL), _tensors(uri, OPTIMIZER), ema, load_state(uri))


def load_model(uri: str, raw: bool = False) -> Tensors:
    """Return the weights and running statistics of a checkpoint: the EMA weights if there are any, unless `raw`.

    The EMA weights (optim.ema_decay) are the ones that evaluation scores.
    """
    return _tensors(uri, EMA if not raw and has_ema(uri) else MODEL)


def has_ema(uri: str) -> bool:
    """Return whether the checkpoint holds EMA weights."""
    return EMA in json.loads(read_file(uri, COMMITTED))


def _tensors(uri: str, name: str) -> Tensors:
    try:
        return load_tensors(read_file(uri, name))
    except SafetensorError as error:
        raise CheckpointError(f"{uri}: {name} is damaged ({error})") from None


def _copies(tensors: Tensors) -> Tensors:
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
