"""A command of segdist as a job has it: what travels is our code and the files that the command names, never a folder."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import segdist
from segdist import config, storage
from segdist.errors import UserError
from segdist.sweep import plan
from segdist.sweep.search import known_beforehand
from segdist.train import setup

_MOST_BYTES = 50 << 20  # of the working directory; Ray refuses 500 MiB
_CONFIGURED = ("config", "sweep", "target", "overrides")  # parameters that say what a run is
_WRITTEN = ("out", "plot", "confusion", "previews", "dest")  # parameters that name what the job writes
_ON_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # OWNER/NAME, which may be a path too


@dataclass
class Job:
    """A command as a job has it. `files`: name in the working directory -> file here; `uri`: the run or sweep it makes;
    `settings`: what that one is, where it is read here."""

    arguments: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    uri: str | None = None
    settings: Any = None

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "segdist", *self.arguments])

    @property
    def commits(self) -> bool:
        """Whether it commits before it ends, when it is asked to stop."""
        return self.arguments[0] in ("train", "tune")

    def digest(self, variables: Sequence[str] = (), num_gpus: float = 0) -> str:
        """Tells its settings from others, however they are written, and what it is given."""
        files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files.items()}
        what = self.settings if self.settings is not None else [self.arguments, files]
        options = sorted(word for word in self.arguments if word.startswith("-"))
        text = json.dumps([what, options, sorted(variables), num_gpus], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def job_of(arguments: Sequence[str], commands: Mapping[str, Any]) -> Job:
    """The job that a command line means; without a command's name, that of `train`. Configs are checked here and now.

    `commands`: name -> click's command. Raises UserError for what can be known not to work there.
    """
    name, words = (arguments[0], arguments[1:]) if arguments[0] in commands else ("train", arguments)
    near = difflib.get_close_matches(arguments[0], commands, 1)
    if arguments[0] not in commands and near and not Path(arguments[0]).exists():
        raise UserError(f"{arguments[0]}: there is no such command or config; did you mean {near[0]}?")
    if any(config.holds_credential(argument) for argument in arguments):  # which is not repeated
        raise UserError(
            "a command holds what looks like a credential, and all who see the cluster see it; use --env NAME"
        )
    job, rest = Job([name]), list(_named(name, commands[name], words))
    overrides = [word for param, word in rest if param in _CONFIGURED and "=" in word]
    first = next((word for param, word in rest if param in _CONFIGURED and "=" not in word), None)
    is_run = name == "train" or (name == "doctor" and first and first.endswith((".yaml", ".yml")))  # others are data
    for param, word in rest:
        if param in _CONFIGURED and word != first and "=" not in word and (is_run or name == "tune"):
            raise UserError(f"override {word!r}: write it as section.field=value")
    if first is None and any(param == "from_sweep" for param, _ in rest):
        job.uri = next((word.removeprefix("run.uri=") for word in overrides if word.startswith("run.uri=")), None)
        _check_places({"run.uri": job.uri or "s3://"})
        rest.append(("overrides", "scale.launcher=ray"))
    elif is_run or name == "tune":
        if first is None:
            raise UserError(f"give a {'config, such as configs/demo.yaml' if name == 'train' else 'sweep file'}")
        (_add_run if is_run else _add_sweep)(job, first, overrides)
        rest = [(p, word) for p, word in rest if word != first and not (name == "tune" and word.startswith("config="))]
    job.arguments += [_packed(job, param, word) for param, word in rest]
    job.uri = None if name == "doctor" or not job.uri else job.uri.rstrip("/")
    return job


def _named(name: str, command: Any, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(parameter of the command, word) for each word; an option whose value is the next word has none itself.

    Raises UserError for an option that the command does not have.
    """
    options = {opt: p for p in command.params if p.param_type_name == "option" for opt in (*p.opts, *p.secondary_opts)}
    places = [p for p in command.params if p.param_type_name == "argument"]
    awaited, num = None, 0
    for word in words:
        if awaited is not None:
            yield awaited, word
            awaited = None
        elif word.startswith("-"):
            option, equals, _ = word.partition("=")
            if option not in options:
                near = difflib.get_close_matches(option, options, 1)
                raise UserError(f"segdist {name} has no option {option}{f'; did you mean {near[0]}?' if near else ''}")
            param = options[option]
            yield (param.name if equals else ""), word
            awaited = None if equals or param.is_flag else param.name
        else:
            yield places[min(num, len(places) - 1)].name, word
            num += 1


def _add_run(job: Job, uri: str, overrides: list[str]) -> None:
    said = ["scale.launcher=ray", *overrides]
    cfg = config.load(uri, said) if "://" not in uri else config.loads(storage.read(uri), uri, said)
    if cfg.scale.launcher != "ray":
        raise UserError("scale.launcher=local would train beside the cluster's head, not on its nodes; leave it out")
    setup.check_groups(cfg, cfg.scale.num_ranks)
    _check_places(config.places(cfg))
    job.uri, job.settings = cfg.run.uri, config.to_tree(cfg)
    job.arguments += [_travelling(job, uri, "config"), "scale.launcher=ray"]


def _add_sweep(job: Job, uri: str, overrides: list[str]) -> None:
    read = plan.read(uri, overrides)
    cfg = read.config(known_beforehand(read.sweep, 1)[0], storage.join(read.sweep.uri, "trials"))
    setup.check_groups(cfg, cfg.scale.num_ranks)
    _check_places({**config.places(cfg), "run.uri": "s3://", "uri": read.sweep.uri})
    job.uri, job.settings = read.sweep.uri, [read.sweep.model_dump(mode="json", exclude={"config"}), read.base]
    job.arguments.append(_travelling(job, uri, "sweep"))
    if storage.is_local(uri) and storage.is_local(read.config_uri):
        job.files["files/sweep/base/config.yaml"] = storage.local_path(read.config_uri)
        job.arguments.append("config=base/config.yaml")  # from the sweep's own folder on


def _check_places(places: dict[str, str]) -> None:
    here = []
    for key, uri in places.items():
        if config.holds_credential(uri):  # which the cluster would show, and so is not repeated
            raise UserError(
                f"{key} holds what looks like a credential, and all who see the cluster see it; use --env NAME"
            )
        if storage.is_relative(uri):
            here.append(f"{key} {uri}")
    if here:
        raise UserError(
            f"{', '.join(here)}: a job does not see the folders of this machine; give s3://, or an absolute path on a file "
            "system that all nodes share"
        )


def _travelling(job: Job, place: str, folder: str) -> str:
    """The name there of a file of this machine, which joins the job; an address stays as it is."""
    if not storage.is_local(place):
        return place
    path = storage.local_path(place)
    name = f"files/{folder}/{path.name}"
    job.files[name] = path
    return name


def _packed(job: Job, param: str, word: str) -> str:
    """The word as it is to be given there: a file at a relative path joins the job.

    Raises UserError for a folder, and for a relative path that is to be written.
    """
    option, equals, place = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if not param or "=" in place or not storage.is_relative(place):
        return word
    path = storage.local_path(place)
    if param not in _WRITTEN and path.is_file():
        return f"{option}{equals}{_travelling(job, place, str(len(job.files)))}"
    if param in _WRITTEN or ("/" in place and (path.is_dir() or not _ON_HUB.fullmatch(place))):
        what = place if param in ("dest", "checkpoint", "data", "images", "source") else f"--{param} {place}"
        raise UserError(
            f"{what}: a job does not see the folders of this machine; give s3:// (`segdist prepare` "
            "writes there too), or an absolute path on a file system that all nodes share"
        )
    return word


def fill(job: Job, folder: Path) -> tuple[int, int]:
    """Writes the job's working directory; (files, bytes). Raises UserError when it is too large to travel."""
    source = Path(segdist.__file__).parent
    shutil.copytree(source, folder / "segdist", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name, path in job.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > _MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"the job's files have {sum(sizes.values()) >> 20} MiB, the largest is {largest.relative_to(folder)}; more than "
            f"{_MOST_BYTES >> 20} MiB do not travel with a job: put it into object storage"
        )
    return len(sizes), sum(sizes.values())
