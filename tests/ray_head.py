"""Start a real Ray head on loopback with token authentication: `with running() as head:`

The head does not have the address and credentials of the tests' S3 server. Each job must bring its own.
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
STARTS = 0  # number of heads that this process has started


@dataclass(frozen=True)
class Head:
    """A running head. `environment` leads drivers and the `ray` command to it; `log` is the output of `ray start`."""

    environment: dict[str, str]
    dashboard: str
    log: Path


def free_ports(num: int) -> list[int]:
    """Return different free ports of this machine."""
    sockets = [socket.socket() for _ in range(num)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@contextmanager
def running(num_cpus: int = 4, num_gpus: int = 0) -> Iterator[Head]:
    """Run a head until the end of the context. Its Python processes are forks (see tests/forks.py)."""
    import forks  # not earlier: pytest must load its plugin `spending` first

    global STARTS
    STARTS += 1
    python = forks.python()
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: socket paths end at 107 characters
    token = folder / "token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    token.chmod(0o600)
    gcs, dashboard, client, agent, agent_grpc, metrics = free_ports(6)
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "RAY_"))}
    bare["PATH"] = f"{Path(python).parent}:{BIN}:{bare['PATH']}"  # as in an activated environment
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        python, str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}",
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
        process.send_signal(signal.SIGTERM)  # Ray then ends its own processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        for pid in processes_naming(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


_shared: contextlib.ExitStack | None = None
_head: Head | None = None


def shared() -> Head:
    """Return the head that this test process shares between its test files, which is started on first use."""
    global _shared, _head
    if _head is None:
        _shared = contextlib.ExitStack()
        _head = _shared.enter_context(running(num_cpus=8, num_gpus=1))  # more than there are
    return _head


def stop_shared() -> None:
    """Stop the shared head if it runs."""
    global _shared, _head
    if _shared is not None:
        _shared.close()
        _shared = _head = None


def processes_naming(text: str) -> list[int]:
    """Return the IDs of processes whose command line contains the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def ranks(head: Head) -> set[int]:
    """Return the process IDs of Ray Train's running ranks on this head."""
    found = set()
    for pid in processes_naming("ray::RayTrainWorker"):
        with contextlib.suppress(OSError):  # a process that has ended has no files
            stdout = Path(os.readlink(f"/proc/{pid}/fd/1"))
            # else a command with its title
            if stdout.is_relative_to(head.log.parent) and stdout.name.startswith("worker-"):
                found.add(pid)
    return found
