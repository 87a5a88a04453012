"""Several machines on one: network and process namespaces on a bridge, each with its own address and host name.

`with network(4) as machines:` needs root, iproute2 and util-linux; see `can_be_made`. Like a pod, a machine sees only its own
processes. `die` kills all of them at once with SIGKILL, and `bytes` counts the network traffic.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
_GCS, _DASHBOARD = 6379, 8265


def can_be_made() -> bool:
    """Return whether this process may create namespaces, bridges and pairs of interfaces."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter", "hostname"))):
        return False
    with contextlib.suppress(subprocess.CalledProcessError, OSError, ValueError, AssertionError), network(1):
        return True
    return False


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass
class Machine:
    """A machine. `cable` names its network interface and `init` is the ID of its first process, both as seen from outside.

    When the first process ends, the kernel kills all other processes of the machine.
    """

    name: str
    address: str
    cable: str
    folder: Path
    environment: dict[str, str]
    init: int = 0
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def boot(self) -> None:
        """Start the first process."""
        first = f"hostname {self.name}; echo $$; sleep infinity & wait"  # the shell reaps orphans
        apart = ["unshare", "--pid", "--uts", "--fork", "--mount-proc", "sh", "-c", first]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *apart], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout and process.stdout.readline() == b"1\n"
        self.init = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        self.started.append(process)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on the machine, with its output in `log`. Return its parent process; use `signal` to signal it."""
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid", "--uts", *command],
                env={**self.environment, **environment},
                stdin=subprocess.PIPE,  # stays open as long as this process lives
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    @staticmethod
    def signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to the command that `start` started."""
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), number)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Wait until the machine's log contains the text. Fails with the end of the log."""
        until = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert time.monotonic() < until, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)

    def processes(self) -> set[int]:
        """Return the IDs of its processes, as seen from outside."""
        return {int(pid) for pid in _ip("netns", "pids", self.name).split()}

    def die(self) -> None:
        """Kill all of its processes."""
        if self.init:  # 0 if it has not booted, or is dead already
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
            self.init = 0
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in self.started:
            process.communicate(timeout=20)
        self.started.clear()

    def bytes(self) -> tuple[int, int]:
        """Return the bytes (sent, received) so far."""
        counts = Path(f"/sys/class/net/{self.cable}/statistics")
        # from outside, the directions are swapped
        return int((counts / "rx_bytes").read_text()), int((counts / "tx_bytes").read_text())

    def start_ray(self, head: Machine, num_cpus: int = 1, labels: Sequence[str] = ()) -> None:
        """Start a node of the cluster whose head runs on the machine `head`."""
        place = (
            ["--head", f"--port={_GCS}", f"--dashboard-port={_DASHBOARD}", "--dashboard-host=127.0.0.1"]
            if self is head
            else [f"--address={head.address}:{_GCS}"]
        )
        self.start(
            str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *place, f"--num-cpus={num_cpus}",
            f"--node-ip-address={self.address}", f"--object-store-memory={100 << 20}", f"--temp-dir={self.folder / self.name}",
            *([f"--labels={','.join(labels)}"] if labels else []),
        )  # fmt: skip
        self.wait_for("Ray runtime started")


@contextmanager
def network(num: int, **environment: str) -> Iterator[list[Machine]]:
    """Start machines that reach each other and, at 10.77.N.254, this process. They have no other network."""
    tag = secrets.token_hex(3)
    bridge, net = f"sd{tag}", f"10.77.{secrets.randbelow(250)}"
    folder = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))  # short: socket paths end at 107 characters
    (folder / "token").write_text(secrets.token_hex(32), encoding="utf-8")
    (folder / "token").chmod(0o600)
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "HF_", "RAY_"))}
    bare |= {
        "PATH": f"{BIN}:{bare['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        **environment,
    }
    machines: list[Machine] = []
    _ip("link", "add", bridge, "type", "bridge")
    try:
        _ip("addr", "add", f"{net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for i in range(num):
            machine = Machine(f"{bridge}-{i}", f"{net}.{i + 1}", f"{bridge}p{i}", folder, bare)
            machine.log.touch()
            _ip("netns", "add", machine.name)
            machines.append(machine)
            _ip("link", "add", machine.cable, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
            _ip("link", "set", machine.cable, "master", bridge)
            _ip("link", "set", machine.cable, "up")
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", machine.name, "link", "set", device, "up")
            machine.boot()
        yield machines
    finally:
        for machine in machines:
            machine.die()
            _ip("netns", "del", machine.name)
        _ip("link", "del", bridge)
        shutil.rmtree(folder, ignore_errors=True)
