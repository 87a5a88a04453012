"""Run a Python command line in a process forked by tests/forks.py: `python -I -S tests/forked_python.py FOLDER ARGUMENTS...`

`forks.python()` returns a script that runs this file in place of a Python interpreter. This file imports almost nothing, so
it starts in milliseconds. It sends its arguments, environment, working directory and open files to the fork server, forwards
signals to the forked process and ends with the same status. If this process is killed, the server kills the forked one.
"""

from __future__ import annotations

import _socket
import array
import binascii
import marshal
import os
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # importing typing would take a third of the time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
RAY_SETTINGS = {  # Otherwise Ray's agent ends: its parent process is not the raylet, but the fork server.
    "RAY_enable_pipe_based_agent_to_parent_health_check": "1",
}
ANSWER = struct.Struct("<qd")  # first (process id, 0), then (wait status, CPU seconds)


def send_request(link: Any, request: dict[str, Any], files: Sequence[int]) -> None:
    """Ask the fork server for a process. `files` become its file descriptors `request["numbers"]`."""
    body = marshal.dumps(request)
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", files).tobytes())
    link.sendmsg([struct.pack("<q", len(body))], [rights])
    link.sendall(body)


def main(folder: str, arguments: list[str]) -> None:
    is_worker = any(word.endswith("default_worker.py") for word in arguments)
    pid, early = 0, list[int]()

    def forward(number: int, frame: object) -> None:
        if pid:
            try:  # noqa: SIM105 (importing contextlib takes time)
                os.kill(pid, number)
            except ProcessLookupError:  # it has just ended, and its status is on the way
                pass
        else:
            early.append(number)

    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        link = _server_of_workers(folder) if is_worker else _connect(f"{folder}/bare.socket")
    except OSError:  # the test run is over
        os._exit(1)
    files = [int(name) for name in os.listdir("/proc/self/fd")]
    files = [fd for fd in files if fd != link.fileno() and _is_open(fd)]
    request = {
        "argv": arguments, "env": {**RAY_SETTINGS, **os.environ}, "cwd": os.getcwd(), "umask": os.umask(0o22), "numbers": files,
        "executable": f"{folder}/python",
    }  # fmt: skip
    send_request(link, request, files)
    for fd in files:
        if fd > 2:  # a reader that waits for end of file must not wait for this process
            os.close(fd)
    pid = int(_answer(link)[0])
    for number in early:
        os.kill(pid, number)
    status = _copy_title_until_end(pid, link) if is_worker else int(_answer(link)[0])
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _connect(path: str) -> Any:
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    link.connect(path)
    return link


def _server_of_workers(folder: str) -> Any:
    """Connect to the server of this raylet's workers, in which Ray has read the same settings that it would read here."""
    settings = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("RAY_"))
    name = f"workers-{binascii.crc32(repr(settings).encode()):08x}"
    is_asked, deadline = False, time.monotonic() + 120
    while True:
        try:
            return _connect(f"{folder}/{name}.socket")
        except FileNotFoundError:
            if not is_asked:
                link = _connect(f"{folder}/bare.socket")
                send_request(link, {"workers": name, "env": {**RAY_SETTINGS, **os.environ}}, [])
                is_asked = True
            if time.monotonic() > deadline or not os.path.exists(f"{folder}/bare.socket"):
                sys.stderr.write(f"no server of Ray's workers: see {folder}/log\n")
                raise
            time.sleep(0.02)


def _answer(link: Any) -> tuple[int, float]:
    data = link.recv(ANSWER.size, _socket.MSG_WAITALL)
    if len(data) < ANSWER.size:
        os._exit(1)
    return ANSWER.unpack(data)


def _copy_title_until_end(pid: int, link: Any) -> int:
    """Return the wait status of a Ray worker; until it ends, show the worker's title as the title of this process.

    Ray sets the title of a worker to the work that it does. segdist.cluster.node reads the titles of the raylet's children,
    of which this process is one and the forked process is not.
    """
    with open("/proc/self/stat", encoding="utf-8") as file:
        # of the command line in memory
        begin, end = (int(word) for word in file.read().rpartition(")")[2].split()[45:47])
    shown = b""
    while True:
        link.settimeout(0.3)
        try:
            link.recv(1, _socket.MSG_PEEK)
            link.settimeout(None)
            return int(_answer(link)[0])
        except TimeoutError:
            pass
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read().rstrip(b"\0")[: end - begin - 1]
        except OSError:
            continue
        if title != shown:
            shown = title
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(begin)
                memory.write(title.ljust(end - begin, b"\0"))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
