"""Load models for prediction: from exports in a folder, a bucket or on the Hugging Face Hub, and from runs and checkpoints.

Only the JSON, the config and the safetensors of an export are read. No code from an export is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re

import torch

from segdist import config, models, storage
from segdist.data.labels import Labels
from segdist.errors import CheckpointError, StorageError, UserError, first_few
from segdist.models import weights
from segdist.runs.restore import Trained, is_run, load_trained

_HUB = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./%-]+))?")


def load_model(uri: str, device: torch.device, raw: bool = False) -> Trained:
    """Load the model of a run (its best checkpoint), of a checkpoint or of an export, ready to predict.

    An export is a path or URI of a folder, or OWNER/NAME or hf://OWNER/NAME@REVISION on the Hub. `raw`: use the raw weights
    instead of the EMA weights. Raises UserError if there is no model; the message says what was found instead.
    """
    hub = _HUB.fullmatch(uri)
    if hub and (uri.startswith("hf://") or not storage.exists(uri)):
        repo, revision = hub["repo"], hub["revision"]
        _check_there(uri, repo, revision)
        if storage.exists(repo):  # a local folder has the same name and would be used instead
            return _load_export(uri, None, device, raw)
        return _load_export(repo, revision, device, raw)
    if storage.exists(storage.join(uri, weights.ABOUT)) and not is_run(uri):
        _check_native(uri)
        return _load_export(uri, None, device, raw)
    return load_trained(uri, device, raw)


def _check_there(uri: str, repo: str, revision: str | None) -> None:
    """Raise UserError unless the Hub has this model. The usual cause is a mistyped path."""
    here = "" if uri.startswith("hf://") else f"no such folder{storage.did_you_mean(uri)}, and "
    try:
        if storage.hub_file_exists(repo, weights.CONFIG, revision):
            return
        why = "no such model on the Hub at this revision"
    except StorageError as error:
        why = str(error).partition(": ")[2]
        if "no such repository" in why:
            why = "no such repository on the Hub (or a private one; then set HF_TOKEN)"
    raise UserError(f"{uri}: {here}{why}. Give a run, a checkpoint or an export, such as runs/photos or OWNER/NAME")


def _check_native(uri: str) -> None:
    """Raise UserError if an export is an ONNX or torch.export file, which segdist does not run."""
    with contextlib.suppress(json.JSONDecodeError, AttributeError):  # damaged: loading it raises the error
        about = json.loads(storage.read(storage.join(uri, weights.ABOUT)))
        if about.get("format", "native") != "native":
            raise UserError(
                f"{uri} is an export for {about['layout']}. Its README.md explains how to run it. To predict with segdist, "
                f"give the run ({about['run']}) or a native export from `segdist export RUN DEST`"
            )


def _load_export(uri: str, revision: str | None, device: torch.device, raw: bool) -> Trained:
    """Load a native export from a path, URI or Hub ID. Raises UserError if it is something else or damaged."""
    with weights.fetched(uri, revision) as found:
        about, address = found.about, f"hf://{uri}@{found.commit}" if found.commit else uri
        if "classes" not in about or not (found.folder / weights.RUN_CONFIG).is_file():
            raise UserError(
                f"{address} is not an export of segdist: segdist.json or config.yaml is missing. To fine-tune from its "
                f"weights, set model.weights={uri}"
            )
        names = weights.files(found)
        if not all(name.endswith(".safetensors") for name in names):
            raise UserError(
                f"{address} holds {names[0]}, but only safetensors are read from an export. Export the run again"
            )
        if raw and about["weights"] != "raw":
            raise UserError(
                f"{address} holds {about['weights']} weights, not raw weights. Export the run with --raw to get them"
            )
        labels = Labels.from_json({"classes": about["classes"], "void": []})
        cfg = config.loads((found.folder / weights.RUN_CONFIG).read_bytes(), storage.join(address, weights.RUN_CONFIG))
        bare = cfg.model.model_copy(update={"weights": uri, "aux_head": False, "transfer_head": "none"})
        model = models.build(bare, labels.names, found)
        if model.tensors["new"]:
            missing = first_few(model.tensors["new"])
            raise CheckpointError(f"{address} is damaged: {missing} missing. Export or download it again")
        digest = hashlib.sha256()
        for name in [*names, weights.ABOUT]:
            digest.update(hashlib.sha256((found.folder / name).read_bytes()).digest())
    return Trained(address, model.to(device).eval(), labels, cfg, about["weights"], digest.hexdigest())
