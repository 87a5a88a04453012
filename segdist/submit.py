"""`segdist submit`: a command of segdist as a job on a Ray cluster, from a machine that need not be part of it.

What travels is the code of this machine and the files that the command names, never a folder: data and checkpoints lie in
object storage. The job is one of Ray's own, so `ray job logs`, `ray job stop` and the dashboard know it too.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import segdist
from segdist import config, log, opening, storage
from segdist.errors import RanksError, UserError
from segdist.launch.cluster import present_token
from segdist.sweep import plan
from segdist.sweep.search import known_beforehand

_MOST_BYTES = 50 << 20  # of the working directory; Ray refuses 500 MiB
_STOP_SECONDS = 300  # what a job that is to stop has for its commit
_PATIENCE_SECONDS = 300.0  # with a cluster that does not answer while its log is followed
_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d \S+\s+INFO job_manager.*|Running entrypoint for job .*")
_STEP = re.compile(r"step (\d+)/(\d+)  (.*)")  # how log.Terminal says where a run is
_OUTPUTS = ("--out", "--plot", "--confusion", "--previews")  # options whose files the job writes
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
            "HF_TOKEN")  # fmt: skip


@dataclass
class Job:
    """A command as a job has it. `files`: name in the working directory -> file here; `uri`: the run or sweep it makes."""

    arguments: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    uri: str | None = None

    @property
    def entrypoint(self) -> str:
        return shlex.join(["python", "-m", "segdist", *self.arguments])


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
    if name in ("train", "tune") and not from_sweep:
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
        job.arguments.append(argument if before in _OUTPUTS else _packed(job, argument))
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


def _packed(job: Job, argument: str) -> str:
    """The argument as it is to be given there: a file at a relative path joins the job. Raises UserError for a folder."""
    option, equals, place = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    if option in _OUTPUTS or "=" in place or not storage.is_fleeting(place):
        return argument
    path = storage.local_path(place)
    if path.is_file():
        return f"{option}{equals}{_travelling(job, place, str(len(job.files)))}"
    if path.is_dir() and "/" in place:
        raise UserError(
            f"{place} is a folder of this machine, which a job does not see; copy it to object storage (`segdist prepare` "
            "writes to s3:// too), or give an absolute path on a file system that all nodes share"
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


def submit(job: Job, address: str, variables: Sequence[str] = (), num_gpus: float = 0) -> str:
    """Sends the job, or finds the one that makes the same run already; its submission id.

    `variables`: names of environment variables whose values the job gets. Raises UserError when the cluster cannot be reached.
    """
    client = _client(address)
    if known := _at_it(client, job, address):
        return known
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise UserError(f"--env {missing[0]}: there is no such variable here; export it first")
    kept_here = [name for name in _SECRETS if name in os.environ and name not in variables]
    if kept_here:
        log.say(f"not given to the job: {', '.join(kept_here)} (--env NAME gives it one)")
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
    environment |= {name: os.environ[name] for name in variables}
    with tempfile.TemporaryDirectory(prefix="segdist-job-") as folder:
        num, size = fill(job, Path(folder))
        log.say(f"job: {job.entrypoint}; {num} files travel with it, {size / 2**20:.1f} MiB")
        while not (id := _send(client, job, folder, environment, num_gpus) or _at_it(client, job, address)):
            time.sleep(1)
        return id


def _send(client: Any, job: Job, folder: str, environment: dict[str, str], num_gpus: float) -> str | None:
    """The job's id, or None where another terminal sent it at the same moment."""
    try:
        return str(
            client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=_next_id(job, [str(one.submission_id) for one in client.list_jobs()]),
                runtime_env={"working_dir": folder, "env_vars": environment},
                metadata={"segdist": job.uri or ""},
                entrypoint_num_gpus=num_gpus or None,
            )
        )
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise
        return None


def _at_it(client: Any, job: Job, address: str) -> str | None:
    """The id of the job that makes the same run already, which is told."""
    known = next((one for one in client.list_jobs() if _is_same(one, job)), None)
    if known is None:
        return None
    log.say(
        f"{job.uri or job.entrypoint}: job {known.submission_id} is at it already, and is followed; to change anything, "
        f"stop it first: ray job stop --address {address} {known.submission_id}"
    )
    return str(known.submission_id)


def follow(address: str, id: str) -> int:
    """Shows the job's log until it ends; the exit code that its command had: 75 where it was stopped.

    JSON goes to stdout as it would have here, all else to stderr. A connection that breaks is made again.
    """
    client = _client(address)
    for line in _lines(client, id):
        if _OF_RAY.fullmatch(line):
            continue
        if step := _STEP.fullmatch(line):
            log.show(int(step[1]), int(step[2]), step[3])
        elif line.startswith('{"'):
            print(line, flush=True)
        else:
            log.say(line)
    log.close()
    job = client.get_job_info(id)
    code = job.driver_exit_code
    if str(job.status) == "SUCCEEDED":
        return 0
    log.say(f"job {id}: {job.status}" + (f": {job.message}" if code is None and job.message else ""))
    is_lost = code is None or code < 0  # its node or its process, which says nothing of the command
    return 75 if is_lost or str(job.status) == "STOPPED" else int(code)


def _lines(client: Any, id: str) -> Iterator[str]:
    """The lines of the job's log, each once, until the job has ended."""
    import aiohttp
    from ray.exceptions import RayError

    seen, rest, failing_since = 0, "", None
    while True:
        at = 0  # it always tells the log from its beginning
        try:
            for chunk in _waited_for(client.tail_job_logs(id)):
                new = chunk[max(0, seen - at) :]
                at += len(chunk)
                seen, failing_since = max(seen, at), None
                *lines, rest = (rest + new).split("\n")
                yield from lines
            if client.get_job_status(id).is_terminal():
                yield from (rest + client.get_job_logs(id)[seen:]).splitlines()
                return
        except (aiohttp.ClientError, RuntimeError, OSError, RayError) as error:
            if "does not exist" in str(error) or getattr(error, "status", None) == 404:
                raise RanksError(
                    f"the cluster knows no job {id} any more: its head was lost; the same command goes on", 75
                ) from None
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > _PATIENCE_SECONDS:
                raise RanksError(
                    f"the cluster does not answer any more ({error}); job {id} may go on without us: the same command finds "
                    "it, or goes on",
                    75,
                ) from None
        time.sleep(1)


def _waited_for(chunks: AsyncIterator[str]) -> Iterator[str]:
    with asyncio.Runner() as runner:
        while True:
            try:
                yield runner.run(anext(chunks))  # type: ignore[arg-type]
            except StopAsyncIteration:
                return


def _client(address: str) -> Any:
    """Ray's client for jobs. Raises UserError, with the remedy, where it cannot connect."""
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: give the address of the cluster's dashboard, such as http://127.0.0.1:8265; `ray dashboard "
            "cluster.yaml`, or `kubectl port-forward service/NAME-head-svc 8265`, brings a distant one to this machine"
        )
    present_token()
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()  # whether it lets us in
    except RayError:
        raise UserError(
            f"--address {address}: the cluster wants its token; put it into ~/.ray/auth_token, or name its file in "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"--address {address}: {str(error).strip().splitlines()[0]}") from None
    return client


def _is_same(known: Any, job: Job) -> bool:
    """Whether a job that has not ended makes the same run or sweep, or is the very same command."""
    made = (known.metadata or {}).get("segdist")
    alike = made == job.uri if job.uri else made == "" and known.entrypoint == job.entrypoint
    return made is not None and alike and not known.status.is_terminal()


def _next_id(job: Job, known: Sequence[str]) -> str:
    """train-camvid-3fa9c1-2: the same for all who send the job at this moment. Ray takes an id once, so one of them wins."""
    name = (job.uri or "").rpartition("/")[2]
    told = re.sub(r"[^A-Za-z0-9]+", "-", f"{job.arguments[0]}-{name}").strip("-")[:40]
    stem = f"{told}-{hashlib.sha256((job.uri or job.entrypoint).encode()).hexdigest()[:6]}-"
    return stem + str(
        1 + max((int(id[len(stem) :]) for id in known if re.fullmatch(re.escape(stem) + r"\d+", id)), default=0)
    )
