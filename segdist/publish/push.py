"""A run's best model on the Hugging Face Hub: its verified export, a card that tells how it came to be, and pictures.

Made of what the run left in storage, never of a live model, so it can be made at any time, by anyone who may read the run.
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
from segdist.publish.card import about, model_card
from segdist.publish.export import export, usage
from segdist.publish.hub import MARK, Repo, seal
from segdist.runs import checkpoints, record, segments
from segdist.runs.restore import Trained, load_trained

_EXAMPLES = 2  # images that the Hub's page offers


def open_model(repo_id: str, private: bool, run_uri: str, overwrite: bool = False) -> tuple[Repo, str]:
    """(the repository, its address), ready to take the exports of a run.

    Raises UserError when the token may not write there, or (unless `overwrite`) when it holds something else.
    """
    repo = Repo(repo_id)
    url = repo.open(private)
    if not overwrite:
        check_held(repo, run_uri)
    return repo, url


def check_held(repo: Repo, run_uri: str) -> None:
    """Raises UserError when a repository holds something else than the model of this run."""
    held = repo.mark()
    if held is not None and held.get("run_id") != record.run_id(run_uri):
        raise UserError(
            f"{repo.repo_id} on the Hub holds the model of another run ({held.get('run')}); give another name, or replace it "
            "with --overwrite (in a config: hub.overwrite=true)"
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
    """Makes a repository of the Hub hold a run's best model, or one checkpoint.

    Gives {"repo_id", "url", "commit", "changed", "checkpoint"}. `show_samples`: the card shows validation images with truth and
    prediction; None: where the repository is private. Raises UserError before any work when it may not be written, or holds
    something else.
    """
    run_uri = checkpoints.resolve(uri).rsplit("/checkpoints/", 1)[0]
    repo, url = open_model(repo_id, private, run_uri, overwrite)
    shown = repo.is_private() if show_samples is None else show_samples
    trained = load_trained(uri, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_folder(trained, repo_id, folder, shown, verify, licence)
        step = checkpoints.step_of(trained.uri)
        commit = repo.commit(folder, f"{name_of(run_uri)}, after step {step}", overwrite)
    return {"repo_id": repo_id, "url": url, "commit": commit, "changed": repo.changed, "checkpoint": trained.uri}


def write_folder(
    trained: Trained, repo_id: str, folder: Path, show_samples: bool, verify: bool, licence: str | None
) -> None:
    """All that the repository will hold."""
    done = export(trained, str(folder), verify=verify)
    run_uri = trained.uri.rsplit("/checkpoints/", 1)[0]
    told = json.loads((folder / MARK).read_text(encoding="utf-8"))
    images = draw(trained, run_uri, folder, show_samples)
    examples = tuple(keep_examples(trained, folder)) if show_samples else ()
    code = usage.code(done["layout"], repo_id, trained.model.traits, trained.cfg.data.image_size)
    told_there = about(
        trained, repo_id.split("/")[1], repo_id, done["layout"], told["sides"], code, images, examples, licence
    )
    card = model_card(told_there)
    (folder / "README.md").write_text(card, encoding="utf-8")
    state = (record.load(run_uri) or {}).get("state")
    seal(folder, told | {"run_state": state, "checkpoint": name_of(trained.uri)})


def name_of(uri: str) -> str:
    """The last part, which may be told to everybody."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def keep_examples(trained: Trained, folder: Path) -> Iterator[str]:
    """Validation images for the Hub's page to try the model on, as files in FOLDER; none where the data are out of reach."""
    cfg = trained.cfg.data
    try:
        group = Source(cfg.uri, indices.load(cfg.uri), cfg.val_split).fetch(0)
    except UserError as error:
        console.say(f"no example images in the card: {error}")
        return
    for row in range(min(_EXAMPLES, group.num_rows)):
        data = codec.without_metadata(group.sample(row).image.to_pybytes())
        name = f"images/example-{row}.{'jpg' if data[:2] == codec.JPEG else 'png'}"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        yield name


def draw(trained: Trained, run_uri: str, folder: Path, show_samples: bool) -> dict[str, str]:
    """Pictures for the card, in FOLDER/images: {file: what it shows}."""
    found: dict[str, str] = {}

    def keep(name: str, data: bytes, text: str) -> None:
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / name).write_bytes(data)
        found[f"images/{name}"] = text

    if show_samples:
        step = checkpoints.step_of(trained.uri)
        with contextlib.suppress(MissingError):
            data = storage.read(storage.join(run_uri, previews.FOLDER, f"step-{step:08d}.png"))
            keep("samples.png", data, "Validation images: the image, its mask, and what this model says")
    if rows := segments.read_metrics(run_uri):
        keep("curve.png", figures.png(figures.learning_curve(rows)), "Loss, scores and learning rate over the steps")
    if report := checkpoints.evaluation_of(trained.uri):
        drawn = figures.confusion(report["confusion"], list(report["iou"]))
        keep("confusion.png", figures.png(drawn), "What each class is taken for")
    return found
