"""Initial weights: brought into a local folder from wherever `model.weights` says, and what is known of them.

A Hub id comes through huggingface_hub's cache, at a commit that is recorded; an address (s3:// and others) through
`storage`. Only safetensors are read, and pytorch_model.bin as `weights_only=True` reads it: never pickled objects, never a
repository's own code.

Where weights began is a JSON-able dict that checkpoints and exports pass on, so that a licence is not lost on the way:
`source` (a Hub id or address; None: random), `revision` (the commit that was loaded), `licence` (see `licences`) and
`through` (the runs and exports that they passed through, the last one last).
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError  # the class alone: torch raises it for what weights_only does not read
from typing import Any

import torch

from segdist import console, storage
from segdist.errors import StorageError, UnavailableError, UserError
from segdist.models import licences
from segdist.models.head import Loaded, short
from segdist.models.segmenter import Segmenter

CONFIG, ABOUT, CARD = "config.json", "segdist.json", "README.md"
RECIPE = "config.yaml"  # beside segdist.json: the config of the run
_WHOLE = ("model.safetensors", "pytorch_model.bin")  # in order of preference
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Weights:
    """A local folder with config.json and weights."""

    said: str  # as the config has it
    folder: Path
    origin: dict[str, Any]  # see above
    commit: str | None = None  # of the Hub

    @property
    def about(self) -> dict[str, Any]:
        """What segdist wrote beside weights of its own; empty for others. Raises UserError when it is damaged, or not whole."""
        about = _json(self.folder / ABOUT) if (self.folder / ABOUT).is_file() else {}
        if about.get("whole") is False:
            raise unreadable(self, f"its export was cut off; export {about.get('run')} there again")
        return about

    @property
    def names(self) -> list[str] | None:
        """Classes as segdist.json has them."""
        classes = self.about.get("classes")
        return [c["name"] for c in classes] if classes else None


@contextlib.contextmanager
def fetched(said: str, revision: str | None) -> Iterator[Weights]:
    """The weights that a config means, in a folder that is there while this is open.

    Raises UserError when they are not to be had; it is an UnavailableError when that may be different later.
    """
    local = "://" not in said and Path(said).expanduser().is_dir()
    hub = is_hub_id(said)
    if revision is not None and not hub:
        raise UserError(f"model.revision {revision!r} pins a Hub id, and model.weights {said!r} is none; leave it out")
    with tempfile.TemporaryDirectory() as place:
        if hub:
            folder = _of_hub(said, revision)
        elif "://" in said:
            folder = Path(place)
            _download(said, folder)
        elif local:
            folder = Path(said).expanduser()
        else:
            raise UserError(
                f"model.weights {said!r} could not be loaded: there is no such folder"
                f"{storage.did_you_mean(said)}, and it is not a Hub ID"
            )
        licence = licences.of(said if hub else None, _text(folder / CARD))
        commit = folder.name if hub else None
        found = Weights(said, folder, origin_of(said, commit, licence), commit)
        files(found)
        before = found.about.get("initial")  # an export of ours
        yield replace(found, origin=inherited(before, f"{said}@{commit}" if hub else said)) if before else found


def is_hub_id(said: str) -> bool:
    """Whether model.weights means a model on the Hub, and not a folder or an address."""
    return "://" not in said and not Path(said).expanduser().is_dir() and _HUB_ID.fullmatch(said) is not None


def commit_of(repo: str, revision: str | None) -> str:
    """The commit that a Hub id means now. Raises as `fetched`."""
    return _config_of_hub(repo, revision).parent.name


def origin_of(source: str, revision: str | None, licence: licences.Licence | None) -> dict[str, Any]:
    """Where weights began that come from outside."""
    return {"source": source, "revision": revision, "licence": licence, "through": []}


def inherited(before: dict[str, Any], uri: str) -> dict[str, Any]:
    """Where weights began that passed through one more run or export."""
    return before | {"through": [*before["through"], uri]}


def start(model: Segmenter, found: Weights, done: Loaded) -> Segmenter:
    """The model, which now tells of its initial weights: in `notes` for a person, in `origin` and `tensors` in full."""
    return tell(model, found.said + (f" at {found.commit[:10]}" if found.commit else ""), found.origin, done)


def tell(model: Segmenter, said: str, origin: dict[str, Any], done: Loaded) -> Segmenter:
    """As `start`, of weights that lie in no folder."""
    partly = f", {len(done.partly)} in part" if done.partly else ""
    model.notes = [
        f"initial weights from {said}",
        done.head,
        f"tensors: {len(done.loaded)} loaded{partly}; {_count(done.new)} newly initialised; "
        f"{_count(done.unused)} of the weights unused",
    ]
    if origin["licence"] and origin["licence"]["note"]:
        model.notes.append(f"licence of {origin['source']}: {licences.shown(origin['licence'])}")
    model.origin = origin
    model.tensors = {k: sorted(getattr(done, k)) for k in ("loaded", "partly", "new", "unused")}
    return model


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} ({short(sorted(names))})" if names else "none"


def tensors(found: Weights) -> dict[str, torch.Tensor]:
    """All tensors of a folder. Raises UserError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    held: dict[str, torch.Tensor] = {}
    for name in files(found):
        try:
            path = found.folder / name
            held |= load_file(path) if name.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, EOFError, UnpicklingError) as error:
            raise unreadable(found, f"{name}: {_first(error)}") from None
    return held


def files(found: Weights) -> list[str]:
    """Names of the files with weights. Raises UserError when there are none of a kind that is read."""
    name = _chosen(found.said, {path.name for path in found.folder.iterdir()})
    return _shards(_json(found.folder / name)) if name.endswith(".json") else [name]


def config_of(found: Weights) -> dict[str, Any]:
    """Its config.json. Raises UserError."""
    if not (found.folder / CONFIG).is_file():
        raise unreadable(found, f"there is no {CONFIG} in it")
    return _json(found.folder / CONFIG)


def origin_of_hub(repo: str, revision: str | None, licence: licences.Licence | None = None) -> dict[str, Any]:
    """Where weights began that another library has fetched from the Hub; `licence` stands in where the card tells none."""
    try:
        card = _hub_file(repo, CARD, revision)
    except StorageError as error:  # the weights are there, and what their card says is not worth a run
        console.say(f"warning: {error}; the licence of {repo} may be missing from the record of these weights")
        card = None
    said = licences.of(repo, _text(card) if card else None) or licence
    return origin_of(repo, revision or (card.parent.name if card else None), said)


def unreadable(found: Weights, why: str) -> UserError:
    """The error that says so."""
    return UserError(f"model.weights {found.said!r} could not be loaded: {why}")


def _chosen(said: str, names: set[str]) -> str:
    """The name of the file with the weights, or with the list of such files. Raises UserError when there is none."""
    for name in _WHOLE:
        for each in (name, f"{name}.index.json"):
            if each in names:
                return each
    raise UserError(
        f"model.weights {said!r} could not be loaded: it holds {short(sorted(names)) or 'nothing'}, but neither "
        "model.safetensors nor pytorch_model.bin; nothing else is read. Convert it (save_pretrained of its library writes "
        "safetensors)"
    )


def _shards(index: dict[str, Any]) -> list[str]:
    """Files that a list of shards names. Raises UserError when one lies elsewhere."""
    listed = index.get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(
            "a list of weights of model.weights has no weight_map of tensors to files; save the weights again"
        )
    names = sorted(set(listed.values()))
    if odd := [name for name in names if Path(name).name != name or name in ("", "..")]:  # ".." is its own name
        raise UserError(f"a list of weights names {odd[0]!r}, which lies outside its folder")
    return names


def _of_hub(repo: str, revision: str | None) -> Path:
    """The folder in huggingface_hub's cache, which bears the name of the commit."""
    folder = _config_of_hub(repo, revision).parent
    for name in (CARD, "preprocessor_config.json", ABOUT):
        _of_model(repo, name, folder.name)
    if (folder / ABOUT).is_file():
        _of_model(repo, RECIPE, folder.name)
    _fetch(repo, lambda name: _of_model(repo, name, folder.name) is not None, folder)
    return folder


def _config_of_hub(repo: str, revision: str | None) -> Path:
    """config.json in that folder. Raises as `fetched`."""
    found = _of_model(repo, CONFIG, revision)
    if found is None:
        raise UserError(
            f"model.weights {repo!r} could not be loaded: the Hub has no {CONFIG} there, or cannot be reached. Give a Hub id "
            "that this machine can reach, or a local folder with config.json and model.safetensors"
        )
    return found


def _of_model(repo: str, name: str, revision: str | None) -> Path | None:
    """As `_hub_file`, with errors that say what it was for."""
    try:
        return _hub_file(repo, name, revision)
    except StorageError as error:
        kind = UnavailableError if isinstance(error, UnavailableError) else UserError
        here = f"there is no such folder{near}, and " if (near := storage.did_you_mean(repo)) else ""
        raise kind(f"model.weights {repo!r} could not be loaded: {here}{error}") from None


def _hub_file(repo: str, name: str, revision: str | None) -> Path | None:
    """storage.hub_file, waited for while the Hub is away."""
    return storage.with_retries(lambda: storage.hub_file(repo, name, revision), console.say)


def _download(uri: str, folder: Path) -> None:
    """Puts config, card and weights of an address into a folder; nothing else of what lies there."""
    there = set(storage.with_retries(lambda: storage.names(uri), console.say))

    def get(name: str) -> bool:
        if name in there:
            data = storage.with_retries(lambda: storage.read(storage.join(uri, name)), console.say)
            (folder / name).write_bytes(data)
        return name in there

    if not get(CONFIG):
        raise UserError(
            f"model.weights {uri!r} could not be loaded: no {CONFIG} is there; give a folder with it and weights"
        )
    for name in (CARD, ABOUT, RECIPE, "preprocessor_config.json"):
        get(name)
    if not _fetch(uri, get, folder):
        _chosen(uri, there)


def _fetch(said: str, get: Callable[[str], bool], folder: Path) -> bool:
    """Gets the weights by the first name that is there, with all their shards; whether there are any."""
    for name in _WHOLE:
        if get(name):
            return True
        if get(f"{name}.index.json"):
            for shard in _shards(_json(folder / f"{name}.index.json")):
                if not get(shard):
                    raise UserError(f"model.weights {said!r} could not be loaded: {shard} is missing")
            return True
    return False


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} of model.weights cannot be read: {_first(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path.name} of model.weights holds no mapping")
    return tree


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
