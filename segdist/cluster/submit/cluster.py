"""A Ray cluster as those see it who send it jobs: over HTTP."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from segdist import console
from segdist.cluster.submit.answers import last_line, soon, unreached
from segdist.cluster.submit.job import Job, fill
from segdist.cluster.submit.job_log import JobLog
from segdist.errors import RanksError, UserError
from segdist.launch.ray_cluster import STOP_SECONDS, present_token, where_the_token_is

_SEND_SECONDS = 300.0  # for taking a job, whose files it may have to store
_TRIES = 30  # to get an id that nobody else has got first
_OF_RAY = re.compile(r"\d{4}-\d\d-\d\d \S+\s+INFO job_manager.*|Running entrypoint for job .*")
# How log.Terminal says where a run is; evaluations, alike but for "val", are lines that stay.
_STEP = re.compile(r"step (\d+)/(\d+)  ((?!val ).*)")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
            "HF_TOKEN")  # fmt: skip
_ADDRESS = (
    "give the address of the cluster's dashboard, such as http://127.0.0.1:8265; `ray dashboard cluster.yaml`, or `kubectl "
    "port-forward service/NAME-head-svc 8265`, brings a distant one to this machine"
)
_NEVER = ("JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT")  # no node has what it asks for
_PENDING = (
    ". It waits for a node with what it asked for, and cannot be stopped before; Ray gives it up after 15 minutes"
)


class Cluster:
    """The cluster whose dashboard is at `address`. Raises UserError when it cannot be reached, or does not let us in."""

    def __init__(self, address: str) -> None:
        self._own_mode = "RAY_AUTH_MODE" in os.environ
        self._address, self._client = address, _client(address)

    def by_ray(self, verb: str, id: str) -> str:
        """The command of Ray's that does this to a job, as one can paste it into the shell that called us."""
        mode = "" if self._own_mode or "RAY_AUTH_MODE" not in os.environ else "RAY_AUTH_MODE=token "
        return f"{mode}ray job {verb} --address {self._address} {id}"

    def submit(self, job: Job, variables: Sequence[str] = (), num_gpus: float = 0) -> str:
        """Sends the job, or finds the one that makes the same run already, from the same settings; its submission id.

        `variables`: names of environment variables whose values the job gets. Raises UserError when other settings are at work,
        RanksError when the cluster does not take it.
        """
        environment, digest = _environment(variables), job.digest(variables, num_gpus)
        if known := self._at_it(job, digest):
            return known
        kept_here = [name for name in _SECRETS if name in os.environ and name not in variables]
        if kept_here:
            console.say(f"not given to the job: {', '.join(kept_here)} (--env NAME gives it one)")
        with tempfile.TemporaryDirectory(prefix="segdist-job-") as folder:
            num, size = fill(job, Path(folder))
            console.say(f"job: {job.entrypoint}; {num} files travel with it, {size / 2**20:.1f} MiB")
            for _ in range(_TRIES):
                if known := self._send(job, digest, folder, environment, num_gpus) or self._at_it(job, digest):
                    return known
                time.sleep(1)
        raise RanksError(f"{self._address} takes no id for the job: others end as fast as it is sent", 75)

    def follow(self, id: str) -> int:
        """Shows the job's log until it ends; the exit code that its command had: 75 where it was stopped.

        JSON goes to stdout as it would have here, all else to stderr. A connection that breaks is made again.
        """
        told, ended = JobLog(self._client, id, self._address), False
        for line in told.lines():
            if _OF_RAY.fullmatch(line):
                continue
            if step := _STEP.fullmatch(line):
                console.show(int(step[1]), int(step[2]), step[3])
                ended = step[1] == step[2]
                continue
            if ended:  # what comes now is for below the bar
                console.close()
            if line.startswith('{"'):
                print(line, flush=True)
            else:
                console.say(line)
        console.close()
        job, code = told.info, told.info.driver_exit_code
        if str(job.status) == "SUCCEEDED":
            return 0
        console.say(f"job {id}: {job.status}" + (f": {job.message}" if code is None and job.message else ""))
        if str(job.status) == "STOPPED":
            return 75
        if code is None and "NodeAffinity" in (job.message or ""):  # with which Ray puts a driver on the head
            console.say("the head of this cluster takes no more jobs: it drains, or is gone; start Ray anew there")
        elif code is None and str(job.error_type) in _NEVER:
            return 2
        if code is None or code < 0 or code > 128:  # its node, or its process by a signal: it had no say
            console.say("it is not finished; the same command goes on")
            return 75
        return int(code)

    def _send(self, job: Job, digest: str, folder: str, environment: dict[str, str], num_gpus: float) -> str | None:
        """The job's id, or None where another terminal sent it at the same moment."""
        sent = {
            "entrypoint": job.entrypoint,
            "submission_id": _next_id(job, [str(one.submission_id) for one in self._ask(self._client.list_jobs)]),
            "runtime_env": {"working_dir": folder, "env_vars": environment},
            "metadata": {"segdist": job.uri or "", "settings": digest},
            "entrypoint_num_gpus": num_gpus or None,
        }
        if (id := self._ask(lambda: self._client.submit_job(**sent), _SEND_SECONDS)) is None:
            return None
        console.say(f"submitted: {id}")
        return str(id)

    def _ask(self, question: Callable[[], Any], seconds: float | None = None) -> Any:
        """What the cluster answers; None where it says that what we send is there already."""
        try:
            return soon(question, seconds)
        except unreached() as error:
            if "already exists" in str(error):
                return None
            raise RanksError(f"{self._address} does not take the job: {last_line(error)}", 75) from None

    def _at_it(self, job: Job, digest: str) -> str | None:
        """The id of the job that does the same already, which is told. Raises UserError when it does so otherwise."""
        known = next((one for one in self._ask(self._client.list_jobs) if _is_same(one, job)), None)
        if known is None:
            return None
        id, what = str(known.submission_id), job.uri or job.entrypoint
        if known.metadata.get("settings") != digest:
            raise UserError(
                f"{what}: job {id} is at it already, from other settings (its command, files, --env or --num-gpus differ), "
                f"which yours would not change. Stop it first: {self.by_ray('stop', id)}; or watch it: "
                f"{self.by_ray('logs --follow', id)}{_PENDING if str(known.status) == 'PENDING' else ''}"
            )
        console.say(f"{what}: job {id} is at it already")
        return id


def _environment(variables: Sequence[str]) -> dict[str, str]:
    """What a job's process has besides what its node gives it. Raises UserError for what is no variable of this shell."""
    for name in variables:
        if "=" in name:  # whose value is not repeated
            raise UserError(
                f"--env {name.partition('=')[0]}=...: give the name alone; the value is taken from this shell"
            )
        if name not in os.environ:
            raise UserError(f"--env {name}: there is no such variable here; export it first")
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
    return environment | {name: os.environ[name] for name in variables}


def _client(address: str) -> Any:
    """Ray's client for jobs. Raises UserError, with the remedy, where it cannot connect."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        shown = address if "@" not in parts.netloc else f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}"
        raise UserError(f"--address {shown}: {_ADDRESS}")
    present_token()
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = soon(lambda: JobSubmissionClient(address))
        soon(client.list_jobs)  # whether it lets us in
    except RayError as error:
        place = where_the_token_is()
        wanted = "the cluster wants its token; put it into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        if place and "Missing" in str(error):
            wanted = (
                f"the cluster wants its token, which RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} keeps here; unset that"
            )
        elif place == "RAY_AUTH_TOKEN_PATH" and not Path(os.environ[place]).is_file():
            wanted = f"RAY_AUTH_TOKEN_PATH names {os.environ[place]}, and there is no such file"
        elif place:
            wanted = f"the token in {place} is not this cluster's"
        raise UserError(f"--address {address}: {wanted}") from None
    except unreached() as error:
        raise UserError(f"--address {address}: {last_line(error)} Is it running? Otherwise {_ADDRESS}") from None
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
    numbers = [int(id[len(stem) :]) for id in known if re.fullmatch(re.escape(stem) + r"\d+", id)]
    return f"{stem}{1 + max(numbers, default=0)}"
