"""Turn a segdist command into a job: check it here, and collect the files that the job needs.

The job gets this machine's segdist code and the files that the command names, but never a folder.
"""

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
from segdist.sweep.search import points_to_check
from segdist.train import setup

_MAX_BYTES = 50 << 20  # of the working directory; Ray refuses 500 MiB
_CONFIG_PARAMS = ("config", "sweep", "target", "overrides")  # parameters that hold a config or its overrides
_OUTPUT_PARAMS = ("out", "plot", "confusion", "previews", "dest")  # parameters that name what the job writes
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # OWNER/NAME, which may be a path too
_NO_FOLDERS = (
    "a job cannot access folders on this machine. Use s3://, or an absolute path on a file system that all nodes share"
)
_CREDENTIAL = "contains what looks like a credential, which the cluster's dashboard would show. Use --env NAME instead"


@dataclass
class Job:
    """A segdist command prepared to run as a job.

    `files` maps names in the job's working directory to files on this machine. `uri` is the run or sweep that the job makes,
    and `settings` its resolved config, if that was read here.
    """

    arguments: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    uri: str | None = None
    settings: Any = None

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "segdist", *self.arguments])

    @property
    def commits(self) -> bool:
        """Whether the command commits a checkpoint before it ends when it is asked to stop."""
        return self.arguments[0] in ("train", "tune")

    def digest(self, variables: Sequence[str] = (), num_gpus: float = 0) -> str:
        """Return a hash of the job's settings and resources. It does not depend on how a config is written."""
        files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.files.items()}
        what = self.settings if self.settings is not None else [self.arguments, files]
        options = sorted(word for word in self.arguments if word.startswith("-"))
        text = json.dumps([what, options, sorted(variables), num_gpus], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def job_of(arguments: Sequence[str], commands: Mapping[str, Any]) -> Job:
    """Return the job for a command line. Without a command name, the command is `train`.

    `commands` maps names to click commands. Configs are checked here. Raises UserError if the command cannot work as a job.
    """
    name, words = (arguments[0], arguments[1:]) if arguments[0] in commands else ("train", arguments)
    near = difflib.get_close_matches(arguments[0], commands, 1)
    if arguments[0] not in commands and near and not Path(arguments[0]).exists():
        raise UserError(f"{arguments[0]}: there is no such command or config. Did you mean {near[0]}?")
    for number, word in enumerate(arguments, 1):
        if config.holds_credential(word):  # do not repeat it
            key = re.match(r"-{0,2}[a-z][a-z0-9_.-]*(?==)", word)
            which = key[0] if key and not config.holds_credential(key[0]) else f"argument {number}"
            raise UserError(f"{which} of the command {_CREDENTIAL}")
    job, rest = Job([name]), list(_params_of(name, commands[name], words))
    overrides = [word for param, word in rest if param in _CONFIG_PARAMS and "=" in word]
    first = next((word for param, word in rest if param in _CONFIG_PARAMS and "=" not in word), None)
    # `doctor` checks a config or a dataset
    is_run = name == "train" or (name == "doctor" and first and first.endswith((".yaml", ".yml")))
    for param, word in rest:
        if param in _CONFIG_PARAMS and word != first and "=" not in word and (is_run or name == "tune"):
            raise UserError(f"override {word!r}: write it as section.field=value")
    if first is None and any(param == "from_sweep" for param, _ in rest):
        job.uri = next((word.removeprefix("run.uri=") for word in overrides if word.startswith("run.uri=")), None)
        _check_uris({"run.uri": job.uri or "s3://"})
        rest.append(("overrides", "scale.launcher=ray"))
    elif is_run or name == "tune":
        if first is None:
            raise UserError(f"give a {'config, such as configs/demo.yaml' if name == 'train' else 'sweep file'}")
        (_add_run if is_run else _add_sweep)(job, first, overrides)
        rest = [(p, word) for p, word in rest if word != first and not (name == "tune" and word.startswith("config="))]
    job.arguments += [_rewritten(job, param, word) for param, word in rest]
    job.uri = None if name == "doctor" or not job.uri else job.uri.rstrip("/")
    return job


def _params_of(name: str, command: Any, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (parameter of the command, word) for each word. The parameter is "" for an option without its value.

    Raises UserError for an option that the command does not have.
    """
    options = {opt: p for p in command.params if p.param_type_name == "option" for opt in (*p.opts, *p.secondary_opts)}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    awaited, num = None, 0  # the option whose value is the next word; positional arguments so far
    for word in words:
        if awaited is not None:
            yield awaited, word
            awaited = None
        elif word.startswith("-"):
            option, equals, _ = word.partition("=")
            if option not in options:
                near = difflib.get_close_matches(option, options, 1)
                raise UserError(f"segdist {name} has no option {option}{f'. Did you mean {near[0]}?' if near else ''}")
            param = options[option]
            yield (param.name if equals else ""), word
            awaited = None if equals or param.is_flag else param.name
        else:
            yield arguments[min(num, len(arguments) - 1)].name, word
            num += 1


def _add_run(job: Job, uri: str, overrides: list[str]) -> None:
    changes = ["scale.launcher=ray", *overrides]
    cfg = config.load(uri, changes) if "://" not in uri else config.loads(storage.read(uri), uri, changes)
    if cfg.scale.launcher != "ray":
        raise UserError(
            f"scale.launcher={cfg.scale.launcher} would train on the cluster's head instead of its nodes. Leave out "
            "scale.launcher"
        )
    setup.check_num_ranks(cfg, cfg.scale.num_ranks)
    _check_uris(config.uris(cfg))
    job.uri, job.settings = cfg.run.uri, config.to_tree(cfg)
    job.arguments += [_add_file(job, uri, "config"), "scale.launcher=ray"]


def _add_sweep(job: Job, uri: str, overrides: list[str]) -> None:
    read = plan.read(uri, overrides)
    cfg = read.config(points_to_check(read.sweep, 1)[0], storage.join(read.sweep.uri, "trials"))
    setup.check_num_ranks(cfg, cfg.scale.num_ranks)
    _check_uris({**config.uris(cfg), "run.uri": "s3://", "uri": read.sweep.uri})
    job.uri, job.settings = read.sweep.uri, [read.sweep.model_dump(mode="json", exclude={"config"}), read.base]
    job.arguments.append(_add_file(job, uri, "sweep"))
    if storage.is_local(uri) and storage.is_local(read.config_uri):
        job.files["files/sweep/base/config.yaml"] = storage.local_path(read.config_uri)
        job.arguments.append("config=base/config.yaml")  # relative to the sweep file


def _check_uris(uris: dict[str, str]) -> None:
    """Raise UserError if a URI (key -> URI) is a relative path or holds a credential."""
    relative = []
    for key, uri in uris.items():
        if config.holds_credential(uri):  # do not repeat it
            raise UserError(f"{key} {_CREDENTIAL}")
        if storage.is_relative(uri):
            relative.append(f"{key} {uri}")
    if relative:
        raise UserError(f"{', '.join(relative)}: {_NO_FOLDERS}")


def _add_file(job: Job, uri: str, folder: str) -> str:
    """Add a file of this machine to the job and return its name there. A remote URI is returned unchanged."""
    if not storage.is_local(uri):
        return uri
    path = storage.local_path(uri)
    name = f"files/{folder}/{path.name}"
    job.files[name] = path
    return name


def _rewritten(job: Job, param: str, word: str) -> str:
    """Return the word as the job needs it. A file at a relative path is added to the job.

    Raises UserError for a folder at a relative path, and for an output at one.
    """
    option, equals, place = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if not param or "=" in place or not storage.is_relative(place):
        return word
    path = storage.local_path(place)
    if param not in _OUTPUT_PARAMS and path.is_file():
        return f"{option}{equals}{_add_file(job, place, str(len(job.files)))}"
    if param in _OUTPUT_PARAMS or ("/" in place and (path.is_dir() or not _HUB_ID.fullmatch(place))):
        what = place if param in ("dest", "checkpoint", "data", "images", "source") else f"--{param} {place}"
        raise UserError(f"{what}: {_NO_FOLDERS}. `segdist prepare` can write to s3:// too")
    return word


def write_working_dir(job: Job, folder: Path) -> tuple[int, int]:
    """Write the job's working directory and return (number of files, bytes). Raises UserError if it is too large."""
    source = Path(segdist.__file__).parent
    shutil.copytree(source, folder / "segdist", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name, path in job.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > _MAX_BYTES:
        named = {path: path.stat().st_size for path in job.files.values()}
        if 2 * sum(named.values()) > sum(sizes.values()):
            remedy = f"The largest is {max(named, key=lambda path: named[path])}. Put it into object storage"
        else:
            remedy = f"Most of them are in {source}. Remove from there what is not part of segdist"
        raise UserError(
            f"the job's files have {sum(sizes.values()) >> 20} MiB, more than the limit of {_MAX_BYTES >> 20} MiB. {remedy}"
        )
    return len(sizes), sum(sizes.values())
