"""Push a run's best model to the Hugging Face Hub: its verified export, a model card, and figures.

Everything is made from what the run left in storage, never from a live model. Anyone who can read the run can push it at any
time.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from segdist import console, storage
from segdist.data import codec
from segdist.data import index as indices
from segdist.data.source import Source
from segdist.errors import MissingError, UserError
from segdist.evaluation import figures, previews
from segdist.publish.card import card_info, model_card
from segdist.publish.export import export, usage
from segdist.publish.hub import MANIFEST, Repo, write_manifest
from segdist.runs import checkpoints, record, segments
from segdist.runs.restore import Trained, load_trained

_NUM_EXAMPLES = 2  # images that the model's page on the Hub offers to try


def open_model(repo_id: str, private: bool, run_uri: str, overwrite: bool = False) -> tuple[Repo, str]:
    """Create a model repository if needed, and return (repository, URL).

    Raises UserError if the token may not write there, or (unless `overwrite`) if the repository holds something else.
    """
    repo = Repo(repo_id)
    url = repo.open(private)
    if not overwrite:
        check_held(repo, run_uri)
    return repo, url


def check_held(repo: Repo, run_uri: str) -> None:
    """Raise UserError if a repository holds something other than the model of this run."""
    manifest = repo.manifest()
    if manifest is not None and manifest.get("run_id") != record.run_id(run_uri):
        raise UserError(
            f"{repo.repo_id} on the Hub holds the model of another run ({manifest.get('run')}). Choose another name, or "
            "replace the model with --overwrite (in a config: hub.overwrite=true)"
        )


def push(
    uri: str,
    repo_id: str,
    private: bool = True,
    show_samples: bool | None = None,
    overwrite: bool = False,
    verify: bool = True,
    licence: str | None = None,
) -> dict[str, Any]:
    """Push a run's best model, or one checkpoint, to a model repository.

    Returns {"repo_id", "url", "commit", "changed", "checkpoint"}. `show_samples`: include validation images, masks and
    predictions in the card; None: only if the repository is private. Raises UserError, before any work, if the repository is
    not writable or holds something else.
    """
    run_uri = checkpoints.run_of(checkpoints.resolve(uri))
    repo, url = open_model(repo_id, private, run_uri, overwrite)
    show_samples = repo.is_private() if show_samples is None else show_samples
    trained = load_trained(uri, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folder(trained, repo_id, folder, show_samples, verify, licence)
        step = checkpoints.step_of(trained.uri)
        commit = repo.commit(folder, f"{_base_name(run_uri)}, after step {step}", overwrite)
    return {"repo_id": repo_id, "url": url, "commit": commit, "changed": repo.changed, "checkpoint": trained.uri}


def write_folder(
    trained: Trained, repo_id: str, folder: Path, show_samples: bool, verify: bool, licence: str | None
) -> None:
    """Write everything that the repository will hold into FOLDER."""
    layout = export(trained, str(folder), verify=verify)["layout"]
    run_uri = checkpoints.run_of(trained.uri)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    images = _write_figures(trained, run_uri, folder, show_samples)
    examples = tuple(_write_examples(trained, folder)) if show_samples else ()
    code = usage.code(layout, repo_id, trained.model.traits, trained.cfg.data.image_size)
    info = card_info(
        trained, repo_id.split("/")[1], repo_id, layout, manifest["sides"], code, images, examples, licence
    )
    (folder / "README.md").write_text(model_card(info), encoding="utf-8")
    state = (record.load(run_uri) or {}).get("state")
    write_manifest(folder, manifest | {"run_state": state, "checkpoint": _base_name(trained.uri)})


def _base_name(uri: str) -> str:
    """Return the last part of a URI. The rest may be private."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _write_examples(trained: Trained, folder: Path) -> Iterator[str]:
    """Write validation images for the model's page on the Hub into FOLDER, and yield their file names. Warns if unreadable."""
    cfg = trained.cfg.data
    try:
        group = Source(cfg.uri, indices.load(cfg.uri), cfg.val_split).fetch(0)
    except UserError as error:
        console.say(f"warning: the card has no example images: {error}")
        return
    for row in range(min(_NUM_EXAMPLES, group.num_rows)):
        data = codec.strip_metadata(group.sample(row).image.to_pybytes())
        name = f"images/example-{row}.{'jpg' if data[:2] == codec.JPEG else 'png'}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        yield name


def _write_figures(trained: Trained, run_uri: str, folder: Path, show_samples: bool) -> dict[str, str]:
    """Write the card's figures into FOLDER/images. Return {file: caption}."""
    captions: dict[str, str] = {}

    def write(name: str, data: bytes, caption: str) -> None:
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / name).write_bytes(data)
        captions[f"images/{name}"] = caption

    if show_samples:
        step = checkpoints.step_of(trained.uri)
        with contextlib.suppress(MissingError):
            data = storage.read(storage.join(run_uri, previews.FOLDER, f"step-{step:08d}.png"))
            write("samples.png", data, "Validation samples: the image, its mask, and this model's prediction")
    if rows := segments.read_metrics(run_uri):
        write("curve.png", figures.png(figures.learning_curve(rows)), "Loss, scores and learning rate over the steps")
    if report := checkpoints.evaluation_of(trained.uri):
        drawn = figures.confusion(report["confusion"], list(report["iou"]))
        write("confusion.png", figures.png(drawn), "Confusion matrix on the validation split")
    return captions
