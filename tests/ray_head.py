"""A real `ray start --head` on loopback with token authentication, and commands that use it: `with running() as head:`

It knows nothing of the tests' S3 server or credentials: those must come with each job.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """`environment` makes drivers and the `ray` command find it; `log` holds what `ray start` said."""

    environment: dict[str, str]
    dashboard: str
    log: Path


def free_ports(num: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def running(num_cpus: int = 4, num_gpus: int = 0) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: socket paths end at 107 characters
    token = folder / "token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    token.chmod(0o600)
    gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "RAY_"))}
    bare["PATH"] = f"{BIN}:{bare['PATH']}"  # as in an activated environment
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}",
        f"--num-gpus={num_gpus}", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}", f"--object-store-memory={100 << 20}",
        f"--temp-dir={folder / 't'}",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**bare, **auth}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    head = Head({**auth, "RAY_ADDRESS": f"127.0.0.1:{gcs}"}, f"http://127.0.0.1:{dashboard}", log)
    try:
        deadline = time.monotonic() + 90
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield head
    finally:
        process.send_signal(signal.SIGTERM)  # it ends what it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        for pid in processes_naming(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def processes_naming(text: str) -> list[int]:
    """Ids of processes whose command line holds the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def ranks(head: Head) -> set[int]:
    """Ids of the processes that Ray Train's ranks of this machine run in, alive."""
    found = set()
    for pid in processes_naming("ray::RayTrainWorker"):
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                found.add(pid)
    return found
