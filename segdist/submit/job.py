"""A command of segdist as a job has it: what travels is our code and the files that the command names, never a folder."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import segdist
from segdist import config, opening, storage
from segdist.errors import UserError
from segdist.sweep import plan
from segdist.sweep.search import known_beforehand

_MOST_BYTES = 50 << 20  # of the working directory; Ray refuses 500 MiB
_OUTPUTS = {"--out", "--plot", "--confusion", "--previews"}  # options whose files the job writes


@dataclass
class Job:
    """A command as a job has it. `files`: name in the working directory -> file here; `uri`: the run or sweep it makes."""

    arguments: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    uri: str | None = None

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "segdist", *self.arguments])

    @property
    def commits(self) -> bool:
        """Whether it commits before it ends, when it is asked to stop."""
        return self.arguments[0] in ("train", "tune")

    def digest(self) -> str:
        """Tells its settings from others: the command, and what its files hold."""
        files = [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in sorted(self.files.items())]
        return hashlib.sha256("\n".join([self.entrypoint, *files]).encode()).hexdigest()


def job_of(arguments: Sequence[str], commands: Sequence[str]) -> Job:
    """The job that a command line means; without a command's name, that of `train`. Configs are checked here and now.

    Raises UserError for what can be known not to work there.
    """
    name, rest = (arguments[0], list(arguments[1:])) if arguments[0] in commands else ("train", list(arguments))
    if any(config.holds_credential(argument) for argument in arguments):  # which is not repeated
        raise UserError(
            "a command holds what looks like a credential, and all who see the cluster see it; use --env NAME"
        )
    job = Job([name])
    from_sweep = any(argument.partition("=")[0] == "--from-sweep" for argument in rest)
    if name == "doctor" and rest and rest[0].endswith((".yaml", ".yml")):  # of a run: other targets are data
        _add_run(job, rest[0], [a for a in rest[1:] if not a.startswith("-")])
        job.uri, rest = None, rest[1:]
    elif name in ("train", "tune") and not from_sweep:
        first = next((a for a in rest if not a.startswith("-") and "=" not in a), None)
        if first is None:
            raise UserError(f"give a {'config, such as configs/demo.yaml' if name == 'train' else 'sweep file'}")
        rest.remove(first)
        (_add_run if name == "train" else _add_sweep)(job, first, [a for a in rest if not a.startswith("-")])
        if name == "tune":
            rest = [a for a in rest if not a.startswith("config=")]  # it is packed already
    elif name == "train":
        job.uri = next((a.removeprefix("run.uri=") for a in rest if a.startswith("run.uri=")), None)
        _check_places({"run.uri": job.uri or "s3://"})
        rest.append("scale.launcher=ray")
    before = ""
    for argument in rest:
        job.arguments.append(_packed(job, argument, before))
        before = argument
    job.uri = job.uri and job.uri.rstrip("/")
    return job


def _add_run(job: Job, uri: str, overrides: list[str]) -> None:
    said = ["scale.launcher=ray", *overrides]
    cfg = config.load(uri, said) if "://" not in uri else config.loads(storage.read(uri), uri, said)
    if cfg.scale.launcher != "ray":
        raise UserError("scale.launcher=local would train beside the cluster's head, not on its nodes; leave it out")
    opening.check_groups(cfg, cfg.scale.num_ranks)
    _check_places(config.places(cfg))
    job.uri = cfg.run.uri
    job.arguments += [_travelling(job, uri, "config"), "scale.launcher=ray"]


def _add_sweep(job: Job, uri: str, overrides: list[str]) -> None:
    read = plan.read(uri, overrides)
    cfg = read.config(known_beforehand(read.sweep, 1)[0], storage.join(read.sweep.uri, "trials"))
    opening.check_groups(cfg, cfg.scale.num_ranks)
    _check_places({**config.places(cfg), "run.uri": "s3://", "uri": read.sweep.uri})
    job.uri = read.sweep.uri
    job.arguments.append(_travelling(job, uri, "sweep"))
    if storage.is_local(uri) and storage.is_local(read.config_uri):
        job.files["files/sweep/base/config.yaml"] = storage.local_path(read.config_uri)
        job.arguments.append("config=base/config.yaml")  # from the sweep's own folder on


def _check_places(places: dict[str, str]) -> None:
    for key, uri in places.items():
        if config.holds_credential(uri):  # which the cluster would show, and so is not repeated
            raise UserError(
                f"{key} holds what looks like a credential, and all who see the cluster see it; use --env NAME"
            )
        if storage.is_fleeting(uri):
            raise UserError(
                f"{key} {uri}: a job does not see the folders of this machine; give s3://, or an absolute path on a file "
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


def _packed(job: Job, argument: str, before: str) -> str:
    """The argument as it is to be given there: a file at a relative path joins the job. `before`: the argument before it.

    Raises UserError for a folder, and for a relative path where something is to be written or read that is not here.
    """
    option, equals, place = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    if "=" in place or not storage.is_fleeting(place) or (place.startswith("-") and not option):
        return argument
    path, writes = storage.local_path(place), _OUTPUTS & {option, before}
    if path.is_file() and not writes:
        return f"{option}{equals}{_travelling(job, place, str(len(job.files)))}"
    if writes or ("/" in place and (path.is_dir() or not (option or before.startswith("--")))):
        raise UserError(
            f"{' '.join((*writes, place))}: a job does not see the folders of this machine; give s3:// (`segdist prepare` "
            "writes there too), or an absolute path on a file system that all nodes share"
        )
    return argument


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
