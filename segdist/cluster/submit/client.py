"""A client for the jobs API of a Ray cluster, which is served by the dashboard of its head."""

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
from segdist.cluster.submit.connection import request_errors, with_time_limit
from segdist.cluster.submit.job import Job, write_working_dir
from segdist.cluster.submit.job_log import JobLog
from segdist.errors import TRY_AGAIN, RanksError, UserError, last_line
from segdist.launch.ray_cluster import STOP_SECONDS, present_token, token_source

_SEND_SECONDS = 300.0  # for accepting a job, whose files the cluster may have to store
_MAX_ATTEMPTS = 30  # to get a job ID that nobody else gets first
_RAY_LINE = re.compile(r"\d{4}-\d\d-\d\d \S+\s+INFO job_manager.*|Running entrypoint for job .*")
# The progress lines of console.Terminal. Lines of evaluations differ only by "val"; they stay on the screen.
_STEP = re.compile(r"step (\d+)/(\d+)  ((?!val ).*)")
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
            "HF_TOKEN")  # fmt: skip
_ADDRESS_HELP = (
    "Give the address of the cluster's dashboard, such as http://127.0.0.1:8265. To forward a remote dashboard to this "
    "machine, use `ray dashboard cluster.yaml` or `kubectl port-forward service/NAME-head-svc 8265`"
)
_UNSCHEDULABLE = (
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
)  # no node fits its request
_PENDING = (
    ". It is waiting for a node with the resources it asks for, and cannot be stopped before it starts. Ray gives up after "
    "15 minutes"
)


class JobClient:
    """The jobs of the cluster whose dashboard is at `address`.

    Raises UserError if the dashboard cannot be reached or rejects the token.
    """

    def __init__(self, address: str) -> None:
        self._had_auth_mode = "RAY_AUTH_MODE" in os.environ
        self._address, self._client = address, _connect(address)

    def ray_command(self, verb: str, id: str) -> str:
        """Return the `ray job` command that does this to a job, to be pasted into the user's shell."""
        mode = "" if self._had_auth_mode or "RAY_AUTH_MODE" not in os.environ else "RAY_AUTH_MODE=token "
        return f"{mode}ray job {verb} --address {self._address} {id}"

    def submit(self, job: Job, variables: Sequence[str] = (), num_gpus: float = 0) -> str:
        """Submit the job, or find the active job that makes the same run from the same settings. Returns the submission ID.

        `variables` are names of environment variables to pass to the job. Raises UserError if a job with other settings is
        active, and RanksError if the cluster does not accept the job.
        """
        environment, digest = _environment(variables), job.digest(variables, num_gpus)
        if known := self._find_active(job, digest, self._jobs()):
            return known
        kept_back = [name for name in _SECRETS if name in os.environ and name not in variables]
        if kept_back:
            console.say(f"not passed to the job: {', '.join(kept_back)}. Use --env NAME to pass one.")
        with tempfile.TemporaryDirectory(prefix="segdist-job-") as folder:
            num, size = write_working_dir(job, Path(folder))
            console.say(f"submitting {job.entrypoint} with {num} files ({size / 2**20:.1f} MiB)")
            for _ in range(_MAX_ATTEMPTS):
                # One list for both questions: if a job of this run is missing from it, Ray refuses the same ID.
                jobs = self._jobs()
                if known := self._find_active(job, digest, jobs):
                    return known
                id = _next_id(job, [str(one.submission_id) for one in jobs])
                if self._send(job, id, digest, folder, environment, num_gpus):
                    return id
                time.sleep(1)
        raise RanksError(
            f"{self._address}: could not reserve a job ID after {_MAX_ATTEMPTS} attempts. Run the same command again",
            TRY_AGAIN,
        )

    def follow(self, id: str) -> int:
        """Print the job's log until the job ends, and return the exit code of its command (75 if the job was stopped).

        JSON goes to stdout, as it would in a local run, and everything else to stderr. Reconnects if the connection breaks.
        """
        log, is_last_step = JobLog(self._client, id, self._address), False
        for line in log.lines():
            if _RAY_LINE.fullmatch(line):
                continue
            if step := _STEP.fullmatch(line):
                console.show(int(step[1]), int(step[2]), step[3])
                is_last_step = step[1] == step[2]
                continue
            if is_last_step:  # further lines belong below the progress bar
                console.close()
            if line.startswith('{"'):
                print(line, flush=True)
            else:
                console.say(line)
        console.close()
        return _exit_code(id, log.info)

    def _jobs(self) -> list[Any]:
        return list(self._request(self._client.list_jobs))

    def _send(self, job: Job, id: str, digest: str, folder: str, environment: dict[str, str], num_gpus: float) -> bool:
        """Submit the job, and return whether it was: not if someone else has taken this ID at the same moment."""
        arguments = {
            "entrypoint": job.entrypoint,
            "submission_id": id,
            "runtime_env": {"working_dir": folder, "env_vars": environment},
            "metadata": {"segdist": job.uri or "", "settings": digest},
            "entrypoint_num_gpus": num_gpus or None,
        }
        if self._request(lambda: self._client.submit_job(**arguments), _SEND_SECONDS) is None:
            return False
        console.say(f"submitted: {id}")
        return True

    def _request(self, request: Callable[[], Any], seconds: float | None = None) -> Any:
        """Return the cluster's answer, or None if it says that the job ID already exists."""
        try:
            return with_time_limit(request, seconds)
        except request_errors() as error:
            if "already exists" in str(error):
                return None
            raise RanksError(f"{self._address} did not accept the job: {last_line(error)}", TRY_AGAIN) from None

    def _find_active(self, job: Job, digest: str, jobs: Sequence[Any]) -> str | None:
        """Return the ID of the active job that does the same, or None. Raises UserError if its settings differ."""
        known = next((one for one in jobs if _is_same(one, job)), None)
        if known is None:
            return None
        id, what = str(known.submission_id), job.uri or job.entrypoint
        if known.metadata.get("settings") != digest:
            raise UserError(
                f"{what}: job {id} is already active with other settings (its command, files, --env or --num-gpus differ). "
                f"Stop it first with `{self.ray_command('stop', id)}`, or follow it with "
                f"`{self.ray_command('logs --follow', id)}`{_PENDING if str(known.status) == 'PENDING' else ''}"
            )
        console.say(f"{what}: job {id} is already active")
        return id


def _exit_code(id: str, info: Any) -> int:
    """Return the exit code for a job that has ended: its command's own, or 75 if the same command can continue."""
    code = info.driver_exit_code
    if str(info.status) == "SUCCEEDED":
        return 0
    console.say(f"job {id}: {info.status}" + (f": {info.message}" if code is None and info.message else ""))
    if str(info.status) == "STOPPED":
        return TRY_AGAIN
    if code is None and "NodeAffinity" in (info.message or ""):  # Ray places drivers on the head by node affinity
        console.say("the head of this cluster accepts no more jobs, because it is draining or gone. Restart Ray there.")
    elif code is None and str(info.error_type) in _UNSCHEDULABLE:
        return 2
    if code is None or code < 0 or code > 128:  # its node was lost, or a signal ended its process
        console.say("the job did not finish. Run the same command again to continue.")
        return TRY_AGAIN
    return int(code)


def _environment(variables: Sequence[str]) -> dict[str, str]:
    """Return the job's environment variables besides those of its node. Raises UserError if one is not set here."""
    for name in variables:
        if "=" in name:  # do not repeat the value
            raise UserError(
                f"--env {name.partition('=')[0]}=...: give the name alone. The value is taken from this shell"
            )
        if name not in os.environ:
            raise UserError(f"--env {name}: this variable is not set. Export it first")
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONUNBUFFERED": "1"}
    return environment | {name: os.environ[name] for name in variables}


def _connect(address: str) -> Any:
    """Return Ray's client for the jobs API. Raises UserError if it cannot connect."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        hidden = address if "@" not in parts.netloc else f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}"
        raise UserError(f"--address {hidden}: expected http://HOST:PORT. {_ADDRESS_HELP}")
    present_token()
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = with_time_limit(lambda: JobSubmissionClient(address))
        with_time_limit(client.list_jobs)  # checks the token
    except RayError as error:
        raise UserError(f"--address {address}: {_token_problem(error)}") from None
    except request_errors() as error:
        reason = last_line(error).rstrip(".")
        raise UserError(f"--address {address}: {reason}. Is the cluster running? {_ADDRESS_HELP}") from None
    return client


def _token_problem(error: Exception) -> str:
    """Return why the cluster rejected the request, and the remedy."""
    place = token_source()
    if place and "Missing" in str(error):
        return (
            f"the cluster requires its token, but RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} keeps Ray from sending it. "
            "Unset RAY_AUTH_MODE"
        )
    if place == "RAY_AUTH_TOKEN_PATH" and not Path(os.environ[place]).is_file():
        return f"RAY_AUTH_TOKEN_PATH is {os.environ[place]}, but there is no such file"
    if place:
        return f"the token in {place} is not this cluster's"
    return (
        "the cluster requires its token. Put it into ~/.ray/auth_token or RAY_AUTH_TOKEN, or set RAY_AUTH_TOKEN_PATH to its "
        "file"
    )


def _is_same(known: Any, job: Job) -> bool:
    """Return whether an active job makes the same run or sweep, or has the very same command."""
    uri = (known.metadata or {}).get("segdist")
    is_same = uri == job.uri if job.uri else uri == "" and known.entrypoint == job.entrypoint
    return uri is not None and is_same and not known.status.is_terminal()


def _next_id(job: Job, known: Sequence[str]) -> str:
    """Return the next ID of the run, such as train-camvid-3fa9c1-2.

    All who submit the job at this moment get the same ID. Ray accepts an ID only once, so one of them wins.
    """
    name = (job.uri or "").rpartition("/")[2]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", f"{job.arguments[0]}-{name}").strip("-")[:40]
    stem = f"{readable}-{hashlib.sha256((job.uri or job.entrypoint).encode()).hexdigest()[:6]}-"
    numbers = [int(id[len(stem) :]) for id in known if re.fullmatch(re.escape(stem) + r"\d+", id)]
    return f"{stem}{1 + max(numbers, default=0)}"
