"""Drain the Ray nodes of this machine before it goes away, because of a spot notice or because its pod is evicted.

When a node is drained, Ray tells its ranks. They commit, train on until the deadline, and restart elsewhere. But nothing tells
Ray: its cluster launcher does not know that a spot machine will go until it has gone. Therefore a spot machine runs
`segdist node watch` beside Ray, and a pod that may be evicted runs `segdist node drain` as its preStop hook.

EC2 gives notice two minutes ahead, through the instance metadata service, version 2:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from segdist import console
from segdist.errors import TRY_AGAIN, UserError
from segdist.launch.ray_cluster import present_token

_EC2 = "http://169.254.169.254"
_POLL_SECONDS, _ANSWER_SECONDS, _TOKEN_SECONDS = 5.0, 2.0, 21600
_DRAIN_SECONDS = 30.0  # for the drain request to Ray, whose import alone takes two seconds
_LEAVE_SECONDS = 10.0  # that ranks need to end after Ray's deadline, until which they train
_START_SECONDS = 60.0  # in which the metadata service must answer for the first time
_WORK = {  # kind of work of a process, by the title that Ray gives it
    "ray::RayTrainWorker": "rank",
    "ray::TrialProcess": "trial",
    "ray::_Inner": "trial",
    "ray::JobSupervisor": "job",
}


@dataclass(frozen=True)
class SpotNotice:
    action: str  # terminate, stop or hibernate
    when: float  # seconds since the epoch


class Metadata:
    """EC2's instance metadata service. AWS_EC2_METADATA_SERVICE_ENDPOINT overrides its address, as for AWS's own tools."""

    def __init__(self) -> None:
        self.address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _EC2).rstrip("/")
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # never through a proxy
        self._token = ""

    def get(self, name: str) -> str | None:
        """Return the value of this name, or None if there is none. Raises OSError if the service does not answer."""
        for _ in range(2):
            if not self._token:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = self._request("PUT", "api/token", ttl)
            try:
                return self._request("GET", f"meta-data/{name}", {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                self._token = ""  # expired
        raise OSError(f"{self.address} rejects the token that it has just issued")

    def notice(self) -> SpotNotice | None:
        """Return the notice that this machine will be taken away, or None if there is none yet. Raises OSError like `get`."""
        text = self.get("spot/instance-action")
        if text is None:
            return None
        found = json.loads(text)
        return SpotNotice(str(found["action"]), datetime.fromisoformat(found["time"]).timestamp())

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self.address}/latest/{path}", headers=headers, method=method)
        with self._open(request, timeout=_ANSWER_SECONDS) as answer:
            return str(answer.read(1 << 16).decode())


def watch() -> None:
    """Wait for a spot notice, then drain this machine. Returns at once unless it is a spot machine.

    Raises UserError if the metadata service does not answer.
    """
    metadata = Metadata()
    console.say(f"contacting the EC2 metadata service at {metadata.address} (for up to {_START_SECONDS:g} s)")
    lifecycle = _lifecycle(metadata)
    if lifecycle != "spot":
        console.say(f"this machine is {lifecycle}. Only spot machines get a notice, so there is nothing to watch.")
        return
    console.say(f"checking for a spot notice every {_POLL_SECONDS:g} s")
    is_failing = False
    while True:
        time.sleep(_POLL_SECONDS)
        try:
            notice, is_failing = metadata.notice(), False
        except (OSError, ValueError, KeyError) as error:
            if not is_failing:
                console.say(f"warning: no answer from the EC2 metadata service ({error}). Retrying.")
            notice, is_failing = None, True
        if notice is None:
            continue
        left = notice.when - time.time()
        console.say(f"spot notice: {notice.action} in {left:.0f} s")
        if left <= 0 or _drain_in_subprocess(left, f"spot notice: {notice.action}"):
            return  # otherwise try again: Ray may be about to start, or its head may come back


def _drain_in_subprocess(seconds: float, reason: str) -> bool:
    """Call `drain` in another process, and return whether it succeeded.

    Ray's client ends the process that it runs in if the head does not answer.
    """
    options = ["--no-wait", "--seconds", f"{max(1, round(seconds))}", "--why", reason]
    command = [sys.executable, "-m", "segdist", "node", "drain", *options]
    try:
        return subprocess.run(command, timeout=_DRAIN_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def drain(seconds: float, reason: str) -> int:
    """Tell Ray that its nodes on this machine go away in `seconds`, and return how many there are.

    Raises UserError if there is none, or if Ray cannot be told.
    """
    present_token()
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # there may be only two minutes in all
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # as `ray drain-node` does it
    from ray.core.generated import autoscaler_pb2
    from ray.exceptions import RayError

    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    found = nodes_here()
    if not found:
        address = os.environ.get("RAY_ADDRESS")
        which = f" of the cluster at RAY_ADDRESS={address}" if address else ""
        raise UserError(f"no Ray node{which} runs on this machine, so there is nothing to drain")
    for node in found:
        deadline = int((time.time() + seconds) * 1000)
        try:
            accepted, refusal = GcsClient(address=node.cluster).drain_node(node.id, preemption, reason, deadline)
        except RayError as error:
            first = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
            raise UserError(
                f"cannot tell {node.cluster} to drain node {node.id}: {first}. Check that the cluster runs and that this "
                "machine has its token"
            ) from None
        if not accepted:
            raise UserError(
                f"{node.cluster} refused to drain node {node.id} ({refusal}). Check with `ray status` that it is alive"
            )
    return len(found)


@dataclass(frozen=True)
class Node:
    """A Ray node on this machine. `cluster` is the address of its cluster, `pid` the parent process of its workers."""

    id: str
    cluster: str
    pid: int


def nodes_here() -> list[Node]:
    """Return the Ray nodes on this machine. If RAY_ADDRESS is HOST:PORT, only those of that cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    # a URL has the port of the dashboard or Ray Client
    port = address.rpartition(":")[2] if "://" not in address else ""
    found = []
    for pid, _, words in _processes():
        if os.path.basename(words[0]) == "raylet":
            options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
            if not port.isdigit() or options["gcs-address"].endswith(f":{port}"):
                found.append(Node(options["node_id"], options["gcs-address"], pid))
    return found


def drain_and_wait(seconds: float, reason: str) -> int:
    """Drain this machine and wait until all work has left it.

    Returns 0 if it has, 75 if the time was too short, and 2 if Ray could not be told and no work runs here. When a whole
    cluster is deleted, no head may be left to tell. Its ranks have been asked to commit by other means and still need the time.
    """
    until = time.monotonic() + seconds
    if not _drain_in_subprocess(max(1.0, seconds - _LEAVE_SECONDS), reason):
        if not _work_here():
            return 2
        console.say("warning: cannot tell Ray to drain this machine. Waiting for its work to end all the same.")
    if wait_for_work(until - time.monotonic()):
        console.say("all work has left this machine. Ray places no more work on it until Ray is restarted here.")
        return 0
    left = ", ".join(f"{num} {kind}(s)" for kind, num in Counter(_work_here()).items())
    console.say(
        f"still running here after {seconds:g} s: {left or 'none'}. Progress since the newest checkpoint will be lost."
    )
    return TRY_AGAIN


def wait_for_work(seconds: float) -> bool:
    """Wait up to `seconds` until no rank, trial or submitted job runs on this machine, and return whether that is so."""
    until = time.monotonic() + seconds
    while _work_here():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _lifecycle(metadata: Metadata) -> str:
    """Return "spot" or "on-demand". Raises UserError if the metadata service does not answer."""
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            return metadata.get("instance-life-cycle") or "of unknown type"
        except OSError as error:
            if time.monotonic() > until or not isinstance(error, TimeoutError | urllib.error.URLError):
                raise UserError(
                    f"no EC2 metadata service answers at {metadata.address} ({error}). In a container, use host networking, or "
                    "set HttpPutResponseHopLimit to 2 in the instance's MetadataOptions"
                ) from None
        time.sleep(1)


def _work_here() -> list[str]:
    """Return the kind of work of every process that works for a Ray node on this machine."""
    nodes = {node.pid for node in nodes_here()}
    titles = [words[0] for _, parent, words in _processes() if parent in nodes]
    return [kind for title in titles for name, kind in _WORK.items() if title.startswith(name)]


def _processes() -> Iterator[tuple[int, int, list[str]]]:
    """Yield (pid, parent's pid, command line) of every process on this machine."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            parent = int((path / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            if text := (path / "cmdline").read_bytes():
                yield int(path.name), parent, text.decode(errors="replace").rstrip("\0").split("\0")
