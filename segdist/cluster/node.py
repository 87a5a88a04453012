"""This machine as a node that is to go: the notice of its cloud, or of its pod, becomes a drain of Ray's.

Ray tells the ranks of a node that is drained; they commit, train on until its deadline, and start again elsewhere. But nobody
tells Ray: to its launcher for clouds a spot machine is there until it is gone. So a spot machine runs `segdist node watch`
beside Ray, and a pod that may be evicted has `segdist node drain` as its preStop hook.

The notice of EC2 comes two minutes before the end, by the instance metadata service, version 2:
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
from segdist.errors import UserError
from segdist.launch.ray_cluster import present_token

_EC2 = "http://169.254.169.254"
_EVERY_SECONDS, _ANSWER_SECONDS, _TOKEN_SECONDS = 5.0, 2.0, 21600
_DRAIN_SECONDS = 30.0  # for asking Ray, which takes two seconds to import
_LEAVE_SECONDS = 10.0  # that ranks need to end once Ray's deadline is there, until which they train on
_START_SECONDS = 60.0  # in which the service may begin to answer
_WORK = {  # what processes are, by the names that Ray gives them
    "ray::RayTrainWorker": "rank",
    "ray::TrialProcess": "trial",
    "ray::_Inner": "trial",
    "ray::JobSupervisor": "job",
}


@dataclass(frozen=True)
class Notice:
    action: str  # terminate, stop or hibernate
    when: float  # seconds since the epoch


class Metadata:
    """EC2's instance metadata service. AWS_EC2_METADATA_SERVICE_ENDPOINT may name another place, as for AWS's own tools."""

    def __init__(self) -> None:
        self.address = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _EC2).rstrip("/")
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # it is never behind a proxy
        self._token = ""

    def get(self, name: str) -> str | None:
        """What it has under this name; None where there is nothing. Raises OSError when it does not answer."""
        for _ in range(2):
            if not self._token:
                wish = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = self._ask("PUT", "api/token", wish)
            try:
                return self._ask("GET", f"meta-data/{name}", {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401:
                    raise
                self._token = ""  # it has expired
        raise OSError(f"{self.address} takes no token of its own")

    def notice(self) -> Notice | None:
        """That this machine will be taken away; None while nobody has said so. Raises OSError as `get`."""
        text = self.get("spot/instance-action")
        if text is None:
            return None
        found = json.loads(text)
        return Notice(str(found["action"]), datetime.fromisoformat(found["time"]).timestamp())

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self.address}/latest/{path}", headers=headers, method=method)
        with self._open(request, timeout=_ANSWER_SECONDS) as answer:
            return str(answer.read(1 << 16).decode())


def watch() -> None:
    """Waits for the notice, and drains this node when it comes. Raises UserError on a machine without the service."""
    metadata = Metadata()
    console.say(f"asking EC2's metadata service, {metadata.address}, for up to {_START_SECONDS:g} s")
    kind = _kind(metadata)
    if kind != "spot":
        console.say(f"this machine is {kind}: it gets no notice, and nothing is to be watched")
        return
    console.say(f"watching for a spot notice, every {_EVERY_SECONDS:g} s")
    silent = False
    while True:
        time.sleep(_EVERY_SECONDS)
        try:
            notice, silent = metadata.notice(), False
        except (OSError, ValueError, KeyError) as error:
            if not silent:
                console.say(f"warning: the metadata service gives no answer ({error}); it is asked again")
            notice, silent = None, True
        if notice is None:
            continue
        left = notice.when - time.time()
        console.say(f"notice: {notice.action} in {left:.0f} s")
        if left <= 0 or _drain_apart(left, f"spot notice: {notice.action}"):
            return  # else Ray may be about to start, or its head may come back


def _drain_apart(seconds: float, why: str) -> bool:
    """`drain` in another process, since Ray's client ends the one that it is in when the head does not answer."""
    asked = ["--no-wait", "--seconds", f"{max(1, round(seconds))}", "--why", why]
    command = [sys.executable, "-m", "segdist", "node", "drain", *asked]
    try:
        return subprocess.run(command, timeout=_DRAIN_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def drain(seconds: float, why: str) -> int:
    """Tells Ray that it loses what nodes it has on this machine in so many seconds; their number. Raises UserError."""
    present_token()
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")  # of the two minutes that there may be
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # as `ray drain-node` does it
    from ray.core.generated import autoscaler_pb2
    from ray.exceptions import RayError

    preemption = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    found = nodes_here()
    if not found:
        raise UserError("no node of Ray runs on this machine, or not the one at RAY_ADDRESS; there is nothing to drain")
    for node in found:
        deadline = int((time.time() + seconds) * 1000)
        try:
            accepted, refusal = GcsClient(address=node.cluster).drain_node(node.id, preemption, why, deadline)
        except RayError as error:
            told = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{node.cluster} is not told that node {node.id} goes: {told}") from None
        if not accepted:
            raise UserError(f"{node.cluster} does not drain node {node.id}: {refusal}")
    return len(found)


@dataclass(frozen=True)
class Node:
    """A node of Ray on this machine: its id, the address of its cluster, and the process that its workers are children of."""

    id: str
    cluster: str
    pid: int


def nodes_here() -> list[Node]:
    """Where RAY_ADDRESS names a cluster (HOST:PORT), those of that one alone."""
    address = os.environ.get("RAY_ADDRESS", "")
    port = address.rpartition(":")[2] if "://" not in address else ""  # else that of the dashboard, or of Ray's client
    found = []
    for pid, _, words in _processes():
        if os.path.basename(words[0]) == "raylet":
            said = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
            if not port.isdigit() or said["gcs-address"].endswith(f":{port}"):
                found.append(Node(said["node_id"], said["gcs-address"], pid))
    return found


def leave(seconds: float, why: str) -> int:
    """Tells Ray that this machine goes, and waits for what works here: 0 when it has left, 75 when the time was too short.

    Where a whole cluster is taken away, nobody may be left to tell; but whoever did that has asked the ranks to commit, and
    they need the time all the same. 2 when Ray could not be told and nothing works here.
    """
    until = time.monotonic() + seconds
    if not _drain_apart(max(1.0, seconds - _LEAVE_SECONDS), why):
        if not _works_here():
            return 2
        console.say("warning: Ray could not be told that this machine goes; its work is waited for all the same")
    if wait_for_work(until - time.monotonic()):
        console.say("nothing works here any more; Ray gives this machine no more work until it is started anew on it")
        return 0
    left = ", ".join(f"{num} {kind}(s)" for kind, num in Counter(_works_here()).items())
    console.say(
        f"after {seconds:g} s there are still {left or 'none'} here; what they did since their newest checkpoint will be lost"
    )
    return 75


def wait_for_work(seconds: float) -> bool:
    """Whether all ranks, trials and submitted commands have left this machine within so many seconds."""
    until = time.monotonic() + seconds
    while _works_here():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _kind(metadata: Metadata) -> str:
    """How this machine was bought: spot or on-demand."""
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            return metadata.get("instance-life-cycle") or "of an unknown kind"
        except OSError as error:
            if time.monotonic() > until or not isinstance(error, TimeoutError | urllib.error.URLError):
                raise UserError(
                    f"no metadata service of EC2 answers ({error}). In a container it takes host networking, or "
                    "HttpPutResponseHopLimit 2 in the instance's MetadataOptions"
                ) from None
        time.sleep(1)


def _works_here() -> list[str]:
    """What kind of work each of the processes of these nodes is that does some."""
    nodes = {node.pid for node in nodes_here()}
    found = [words[0] for _, parent, words in _processes() if parent in nodes]
    return [kind for title in found for name, kind in _WORK.items() if title.startswith(name)]


def _processes() -> Iterator[tuple[int, int, list[str]]]:
    """(id, that of the parent, command line) of all that run here."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int((path / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            if text := (path / "cmdline").read_bytes():
                yield int(path.name), parent, text.decode(errors="replace").rstrip("\0").split("\0")
