"""Models out of exports, from a folder, a bucket or the Hugging Face Hub, to predict with; runs and checkpoints as well.

Of an export only its JSON, its config and its safetensors are read, and what is computed is segdist's own code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re

import torch

from segdist import config, models, storage
from segdist.data.labels import Labels
from segdist.errors import CheckpointError, StorageError, UserError
from segdist.models import weights
from segdist.runs.restore import Trained, is_run, load_trained

_HUB = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./%-]+))?")


def load_model(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """The model of a run (its best checkpoint), of a checkpoint or of an export, ready to predict with.

    An export may be a folder or address, or OWNER/NAME or hf://OWNER/NAME@REVISION on the Hub. `raw`: see
    checkpoint.load_model. Raises UserError with what there is instead.
    """
    hub = _HUB.fullmatch(uri)
    if hub and (uri.startswith("hf://") or not storage.exists(uri)):
        repo, revision = hub["repo"], hub["revision"]
        _check_there(uri, repo, revision)
        if storage.exists(repo):  # a folder of the same name, which would be taken for it
            return _load_export(uri, None, device, raw)
        return _load_export(repo, revision, device, raw)
    if storage.exists(storage.join(uri, weights.ABOUT)) and not is_run(uri):
        _check_native(uri)
        return _load_export(uri, None, device, raw)
    return load_trained(uri, device, raw)


def _check_there(uri: str, repo: str, revision: str | None) -> None:
    """Raises UserError unless the Hub has such a model; most who get here have mistyped a path."""
    here = "" if uri.startswith("hf://") else f"no such folder{storage.did_you_mean(uri)}, and "
    try:
        if storage.hub_knows(repo, weights.CONFIG, revision):
            return
        why = "no such model on the Hub, or not at this revision"
    except StorageError as error:
        why = str(error).partition(": ")[2]
        if "knows no such repository" in why:
            why = "no such repository on the Hub (or a private one; then set HF_TOKEN)"
    raise UserError(f"{uri}: {here}{why}; give a run, a checkpoint or an export, such as runs/photos or OWNER/NAME")


def _check_native(uri: str) -> None:
    """Raises UserError where an export is a graph, which other runtimes run."""
    with contextlib.suppress(json.JSONDecodeError, AttributeError):  # damaged: who loads it says so
        about = json.loads(storage.read(storage.join(uri, weights.ABOUT)))
        if about.get("format", "native") != "native":
            raise UserError(
                f"{uri} is a graph ({about['layout']}), and its README.md says how to run that; to predict with segdist give "
                f"the run ({about['run']}), or its export as `segdist export RUN DEST` writes it"
            )


def _load_export(said: str, revision: str | None, device: torch.device, raw: bool) -> Trained:
    """An export in its library's own layout. Raises UserError where it is something else, or damaged."""
    with weights.fetched(said, revision) as found:
        about, address = found.about, f"hf://{said}@{found.commit}" if found.commit else said
        if "classes" not in about or not (found.folder / weights.RECIPE).is_file():
            raise UserError(
                f"{address} is no export of segdist: it lacks segdist.json or config.yaml. To train on from its weights say "
                f"model.weights={said}"
            )
        names = weights.files(found)
        if not all(name.endswith(".safetensors") for name in names):
            raise UserError(f"{address} holds {names[0]}; of an export only safetensors are read: export it again")
        if raw and about["weights"] != "raw":
            raise UserError(f"{address} holds {about['weights']} weights; export the run with --raw for the others")
        labels = Labels.from_json({"classes": about["classes"], "void": []})
        cfg = config.loads((found.folder / weights.RECIPE).read_bytes(), storage.join(address, weights.RECIPE))
        bare = cfg.model.model_copy(update={"weights": said, "aux_head": False, "transfer_head": "none"})
        model = models.build(bare, labels.names, found)
        if model.tensors["new"]:
            lacking = weights.short(model.tensors["new"])
            raise CheckpointError(f"{address} is damaged: it lacks {lacking}; export or download it again")
        digest = hashlib.sha256()
        for name in [*names, weights.ABOUT]:
            digest.update(hashlib.sha256((found.folder / name).read_bytes()).digest())
    return Trained(address, model.to(device).eval(), labels, cfg, about["weights"], digest.hexdigest())
