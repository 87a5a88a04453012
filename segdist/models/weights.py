"""Initial weights: fetched into a local folder from wherever `model.weights` points, with a record of their origin.

A Hub ID is resolved through huggingface_hub's cache, at a commit that is recorded. A URI (such as s3://) is read through
`storage`. Only safetensors are read, and pytorch_model.bin with `weights_only=True`: no pickled objects, and no code from a
repository.

The origin of weights is a JSON-able dict. Checkpoints and exports pass it on, so that a licence is never lost: `source` (a Hub
ID or URI; None if random), `revision` (the commit that was loaded), `licence` (see `licences`) and `through` (the runs and
exports that the weights passed through, the last one last).
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError  # only the class: torch raises it for content that weights_only rejects
from typing import Any

import torch

from segdist import console, storage
from segdist.errors import StorageError, UnavailableError, UserError, first_few
from segdist.models import licences
from segdist.models.head import Loaded
from segdist.models.segmenter import Segmenter, Tensors

CONFIG, ABOUT, CARD = "config.json", "segdist.json", "README.md"
RUN_CONFIG = "config.yaml"  # beside segdist.json: the config of the run
_WHOLE = ("model.safetensors", "pytorch_model.bin")  # in order of preference
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Weights:
    """A local folder with config.json and weights."""

    source: str  # as written in the config
    folder: Path
    origin: dict[str, Any]  # see the module
    commit: str | None = None  # on the Hub

    @property
    def about(self) -> dict[str, Any]:
        """The segdist.json of our own exports, or {}. Raises UserError if it is damaged or its export is incomplete."""
        about = _json(self.folder / ABOUT, self.source) if (self.folder / ABOUT).is_file() else {}
        if about.get("whole") is False:
            raise unreadable(self, f"its export was cut off. Export {about.get('run')} there again")
        return about

    @property
    def names(self) -> list[str] | None:
        """Class names from segdist.json, or None."""
        classes = self.about.get("classes")
        return [c["name"] for c in classes] if classes else None


@contextlib.contextmanager
def fetched(source: str, revision: str | None) -> Iterator[Weights]:
    """Fetch weights (model.weights, model.revision) into a folder that exists while the context is open.

    Raises UserError if they cannot be loaded, as UnavailableError if a later attempt may succeed.
    """
    local = "://" not in source and Path(source).expanduser().is_dir()
    hub = is_hub_id(source)
    if revision is not None and not hub:
        raise UserError(
            f"model.revision {revision!r} pins a Hub ID, but model.weights {source!r} is not a Hub ID. Leave model.revision out"
        )
    with tempfile.TemporaryDirectory() as place:
        if hub:
            folder = _download_from_hub(source, revision)
        elif "://" in source:
            folder = Path(place)
            _download(source, folder)
        elif local:
            folder = Path(source).expanduser()
        else:
            raise UserError(
                f"model.weights {source!r} could not be loaded: there is no such folder"
                f"{storage.did_you_mean(source)}, and it is not a Hub ID"
            )
        licence = licences.of(source if hub else None, _text(folder / CARD))
        commit = folder.name if hub else None
        found = Weights(source, folder, origin_of(source, commit, licence), commit)
        files(found)
        before = found.about.get("initial")  # set in our own exports
        yield replace(found, origin=inherited(before, f"{source}@{commit}" if hub else source)) if before else found


def is_hub_id(source: str) -> bool:
    """Return whether model.weights is a model on the Hub, rather than a folder or a URI."""
    return "://" not in source and not Path(source).expanduser().is_dir() and _HUB_ID.fullmatch(source) is not None


def commit_of(repo: str, revision: str | None) -> str:
    """Return the commit that a Hub ID currently resolves to. Raises as `fetched`."""
    return _config_of_hub(repo, revision).parent.name


def origin_of(source: str, revision: str | None, licence: licences.Licence | None) -> dict[str, Any]:
    """Return the origin of weights that come from outside segdist."""
    return {"source": source, "revision": revision, "licence": licence, "through": []}


def inherited(before: dict[str, Any], uri: str) -> dict[str, Any]:
    """Return the origin of weights that passed through one more run or export."""
    return before | {"through": [*before["through"], uri]}


def record_weights(model: Segmenter, found: Weights, loaded: Loaded) -> Segmenter:
    """Record the initial weights on the model and return it: `notes` for the user, `origin` and `tensors` in full."""
    commit = f" at {found.commit[:10]}" if found.commit else ""
    return record_origin(model, found.source + commit, found.origin, loaded)


def record_origin(model: Segmenter, source: str, origin: dict[str, Any], loaded: Loaded) -> Segmenter:
    """Like `record_weights`, for weights that are not in a folder."""
    partly = f", {len(loaded.partly)} in part" if loaded.partly else ""
    model.notes = [
        f"initial weights from {source}",
        loaded.head,
        f"tensors: {len(loaded.loaded)} loaded{partly}; {_count(loaded.new)} newly initialised; "
        f"{_count(loaded.unused)} of the weights unused",
    ]
    if origin["licence"] and origin["licence"]["note"]:
        model.notes.append(f"licence of {origin['source']}: {licences.describe(origin['licence'])}")
    model.origin = origin
    model.tensors = {k: sorted(getattr(loaded, k)) for k in ("loaded", "partly", "new", "unused")}
    return model


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} ({first_few(sorted(names))})" if names else "none"


def tensors(found: Weights) -> Tensors:
    """Return all tensors of a folder. Raises UserError if a file cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    held: Tensors = {}
    for name in files(found):
        try:
            path = found.folder / name
            held |= load_file(path) if name.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, EOFError, UnpicklingError) as error:
            raise unreadable(found, f"{name}: {_first_line(error)}") from None
    return held


def files(found: Weights) -> list[str]:
    """Return the names of the weight files. Raises UserError if there are none in a supported format."""
    name = _weight_file(found.source, {path.name for path in found.folder.iterdir()})
    return _shards(found.folder / name, found.source) if name.endswith(".json") else [name]


def config_of(found: Weights) -> dict[str, Any]:
    """Return its config.json. Raises UserError if there is none."""
    if not (found.folder / CONFIG).is_file():
        raise unreadable(found, f"{found.folder} has no {CONFIG}")
    return _json(found.folder / CONFIG, found.source)


def origin_of_hub(repo: str, revision: str | None, licence: licences.Licence | None = None) -> dict[str, Any]:
    """Return the origin of weights that another library fetched from the Hub. `licence` is used if the card states none."""
    try:
        card = _hub_file(repo, CARD, revision)
    except StorageError as error:  # a missing card must not fail the run
        console.say(f"warning: {error}. The licence of {repo} may be missing from the record of these weights")
        card = None
    stated = licences.of(repo, _text(card) if card else None) or licence
    return origin_of(repo, revision or (card.parent.name if card else None), stated)


def unreadable(found: Weights, why: str) -> UserError:
    """Return the error for weights that cannot be loaded; `why` is the reason, and may end with a remedy."""
    return UserError(f"model.weights {found.source!r} could not be loaded: {why}")


def _weight_file(source: str, names: set[str]) -> str:
    """Return the name of the weight file or of the index of its shards. Raises UserError if there is neither."""
    for name in _WHOLE:
        for each in (name, f"{name}.index.json"):
            if each in names:
                return each
    raise UserError(
        f"model.weights {source!r} could not be loaded: it holds {first_few(sorted(names)) or 'nothing'}, but neither "
        "model.safetensors nor pytorch_model.bin, the only formats that are read. Convert the weights, for example with "
        "save_pretrained of their library, which writes safetensors"
    )


def _shards(index: Path, source: str) -> list[str]:
    """Return the files listed in an index of shards. Raises UserError if one lies outside its folder."""
    listed = _json(index, source).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(
            f"model.weights {source!r}: {index.name} has no weight_map of tensors to files. Save the weights again"
        )
    names = sorted(set(listed.values()))
    if outside := [name for name in names if Path(name).name != name or name in ("", "..")]:  # ".." is its own name
        raise UserError(
            f"model.weights {source!r}: {index.name} lists {outside[0]!r}, which lies outside its folder. Save the weights "
            "again"
        )
    return names


def _download_from_hub(repo: str, revision: str | None) -> Path:
    """Return the folder in huggingface_hub's cache; its name is the commit."""
    folder = _config_of_hub(repo, revision).parent
    for name in (CARD, "preprocessor_config.json", ABOUT):
        _model_file(repo, name, folder.name)
    if (folder / ABOUT).is_file():
        _model_file(repo, RUN_CONFIG, folder.name)
    _get_weights(repo, lambda name: _model_file(repo, name, folder.name) is not None, folder)
    return folder


def _config_of_hub(repo: str, revision: str | None) -> Path:
    """Return the path of config.json in that folder. Raises as `fetched`."""
    found = _model_file(repo, CONFIG, revision)
    if found is None:
        raise UserError(
            f"model.weights {repo!r} could not be loaded: the Hub has no {CONFIG} there, or cannot be reached. Give a Hub ID "
            "that this machine can reach, or a local folder with config.json and model.safetensors"
        )
    return found


def _model_file(repo: str, name: str, revision: str | None) -> Path | None:
    """Like `_hub_file`, with errors that name model.weights."""
    try:
        return _hub_file(repo, name, revision)
    except StorageError as error:
        kind = UnavailableError if isinstance(error, UnavailableError) else UserError
        no_folder = f"there is no such folder{near}, and " if (near := storage.did_you_mean(repo)) else ""
        raise kind(f"model.weights {repo!r} could not be loaded: {no_folder}{error}") from None


def _hub_file(repo: str, name: str, revision: str | None) -> Path | None:
    """Return storage.hub_file, with retries while the Hub does not answer."""
    return storage.with_retries(lambda: storage.hub_file(repo, name, revision), console.say)


def _download(uri: str, folder: Path) -> None:
    """Download the config, card and weights at a URI into a folder, and no other files."""
    there = set(storage.with_retries(lambda: storage.names(uri), console.say))

    def get(name: str) -> bool:
        if name in there:
            data = storage.with_retries(lambda: storage.read(storage.join(uri, name)), console.say)
            (folder / name).write_bytes(data)
        return name in there

    if not get(CONFIG):
        raise UserError(
            f"model.weights {uri!r} could not be loaded: there is no {CONFIG}. Give a folder that holds {CONFIG} and weights"
        )
    for name in (CARD, ABOUT, RUN_CONFIG, "preprocessor_config.json"):
        get(name)
    if not _get_weights(uri, get, folder):
        _weight_file(uri, there)


def _get_weights(source: str, get: Callable[[str], bool], folder: Path) -> bool:
    """Get the first existing weight file with all its shards. Return whether there is one."""
    for name in _WHOLE:
        if get(name):
            return True
        if get(f"{name}.index.json"):
            for shard in _shards(folder / f"{name}.index.json", source):
                if not get(shard):
                    raise UserError(
                        f"model.weights {source!r} could not be loaded: the shard {shard} is missing. Save the weights again"
                    )
            return True
    return False


def _json(path: Path, source: str) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.weights {source!r}: cannot read {path.name} ({_first_line(error)}). Save the weights again"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(f"model.weights {source!r}: {path.name} is not a JSON object. Save the weights again")
    return tree


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
