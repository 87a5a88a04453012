"""Start Python processes by fork, from a server that has already imported torch, transformers and the other libraries.

A cold interpreter spends 8 to 20 seconds on these imports. A fork takes half a second. All workers of a test run share one
server. A forked process has its own arguments, environment, working directory, streams, signals and exit code.

- `run` replaces `subprocess.run` of `python ...`, and `Process` replaces `subprocess.Popen`. Every module of segdist is
  already imported, except those that import Ray or `datasets`. With `bare=True`, segdist is not imported.
- `ranks` starts several processes with the environment variables that torchrun sets.
- `python` returns a command to use in place of `sys.executable` when another program starts the process, such as Ray, whose
  own processes are then forked too. Each of them imports segdist itself, from where it would without a fork. Each imports Ray
  itself, except Ray's workers: the first of a raylet makes the server fork another server, which imports Ray for all of them.

Settings that Python reads before its first import (OMP_NUM_THREADS, PYTHONHASHSEED) cannot be passed to a forked process.
A few tests start a real interpreter, the `segdist` script and the real torchrun.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import marshal
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import forked_python
import spending
from forked_python import ANSWER, send_request

_CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_", "PYTEST"))}  # before tests change it
_HERE = Path(__file__).resolve()
_LIBRARIES = """
    boto3 botocore.httpsession huggingface_hub moto.server numpy onnx optuna pandas PIL.Image psutil pyarrow.fs pyarrow.parquet
    pydantic rich.progress safetensors.torch segmentation_models_pytorch torch torch._dynamo torch.distributed torchvision
    transformers transformers.models.segformer.modeling_segformer transformers.pipelines typer yaml
""".split()
_READS_ENVIRONMENT = {"ray", "datasets", "deepspeed"}  # at import, so only a forked process may import these
_OF_WORKERS = """
    ray.train.torch ray.train.v2._internal.execution.controller.controller ray.tune
""".split()
_LATE = (
    "segdist.evaluation.hf_mean_iou",
    "segdist.metric",
    "segdist.sweep",
    "segdist.launch",
    "segdist.cluster",
)  # modules that import them
_FIRST_SECONDS = 300  # the server ends if no test process connects in this time, because its start failed
spent = 0.0  # CPU seconds of finished processes that this process started


# -- the interface for tests ---------------------------------------------------------------------------------------------


class Process:
    """A forked process with the interface of subprocess.Popen. Its output goes to files, so no pipe can fill up."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        bare: bool = False,
        files: Sequence[Any] = (),
    ) -> None:
        """Start a process.

        Args:
            command: Python's arguments. `sys.executable` may come first.
            bare: Do not import segdist beforehand.
            files: Open files for stdout and stderr. Default: temporary files.
        """
        self.args = [str(word) for word in command]
        words = self.args[1:] if self.args[0] == sys.executable else self.args
        self.files = files or [tempfile.TemporaryFile("a+b", buffering=0) for _ in range(2)]  # noqa: SIM115
        self.returncode: int | None = None
        self._link = _connect("bare" if bare else "segdist")
        environment = {**(os.environ if env is None else env), _FOLDER: str(_folder)}
        request = {
            "argv": words, "env": environment, "cwd": os.fspath(cwd or os.getcwd()), "umask": _umask(), "numbers": [0, 1, 2],
            "executable": None,
        }  # fmt: skip
        with open(os.devnull, "rb") as nothing:
            send_request(self._link, request, [nothing.fileno(), *(file.fileno() for file in self.files)])
        answer = self._answer(None)
        assert answer is not None
        self.pid = int(answer[0])
        spending.note("f")

    def _answer(self, timeout: float | None) -> tuple[int, float] | None:
        """Return the next answer of the server, or None if it does not come in time."""
        self._link.settimeout(None if timeout is None else max(timeout, 1e-3))
        try:
            self._link.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return None
        self._link.settimeout(None)
        data = self._link.recv(ANSWER.size, socket.MSG_WAITALL)
        assert len(data) == ANSWER.size, "the fork server has ended"
        return ANSWER.unpack(data)

    def poll(self) -> int | None:
        return self._wait(0.0)

    def _wait(self, timeout: float | None) -> int | None:
        global spent
        if self.returncode is None and (answer := self._answer(timeout)) is not None:
            self.returncode = os.waitstatus_to_exitcode(int(answer[0]))
            spent += answer[1]
            self._link.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired if the process does not end in time."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def out(self) -> str:
        """What the process has written to stdout so far."""
        return _text(self.files[0])

    @property
    def err(self) -> str:
        """What the process has written to stderr so far."""
        return _text(self.files[1])

    def completed(self, timeout: float | None) -> subprocess.CompletedProcess[str]:
        """Wait for the process. Kills it and raises subprocess.TimeoutExpired if it does not end in time."""
        try:
            code = self.wait(timeout)
        except subprocess.TimeoutExpired as late:
            self.kill()
            self.wait()
            raise subprocess.TimeoutExpired(self.args, late.timeout, self.out, self.err) from None
        except BaseException:  # Ctrl-C, or pytest's limit of time
            self.kill()
            raise
        return subprocess.CompletedProcess(self.args, code, self.out, self.err)


def _text(file: Any) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def popen(
    command: Sequence[str], *, stdout: Any, stderr: Any, env: Mapping[str, str], start_new_session: bool
) -> Process:
    """Replace subprocess.Popen where segdist starts another segdist process."""
    words = list(command[command.index(sys.executable) :])  # without `nice -n 10`
    return Process(words, env=env, files=(stdout, stderr))


def proofs() -> SimpleNamespace:
    """Return a replacement for `subprocess` in segdist.publish.export.verification, whose processes must not import segdist."""

    def verify(
        command: Sequence[str], *, cwd: Path, capture_output: bool, text: bool
    ) -> subprocess.CompletedProcess[str]:
        assert capture_output and text
        return run(command, bare=True, cwd=cwd)

    return SimpleNamespace(run=verify)


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    bare: bool = False,
    timeout: float | None = 240,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run `python ...` and capture its output as text."""
    done = Process(command, env=env, cwd=cwd, bare=bare).completed(timeout)
    if check and done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done


def ranks(
    num_ranks: int,
    command: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Run the same command on several ranks, like torchrun. If one fails, the others get SIGTERM; returns its exit code."""
    if num_ranks == 1:
        return run(command, env=env, timeout=timeout)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "WORLD_SIZE": str(num_ranks)}
    shared |= {"LOCAL_WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
    started: list[Process] = []
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment = {**(os.environ if env is None else env), **shared, **own}
        started.append(Process(command, env=environment, files=started[0].files if started else ()))
    first, failed, deadline = started[0], 0, time.monotonic() + timeout
    try:
        while None in [process.poll() for process in started]:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(first.args, timeout, first.out, first.err)
            codes = [process.returncode for process in started if process.returncode]
            if codes and not failed:
                failed, deadline = codes[0], min(deadline, time.monotonic() + 30)
                time.sleep(0.5)  # the other ranks may have noticed the failure and have a message to print
                for process in started:
                    process.terminate()
            time.sleep(0.01)
        failed = failed or next((process.returncode for process in started if process.returncode), 0)
    except BaseException as error:
        for process in started:
            process.kill()
        if not failed or not isinstance(error, subprocess.TimeoutExpired):
            raise
    return subprocess.CompletedProcess(first.args, failed, first.out, first.err)


_ports: list[int] = []


def _port() -> int:
    """Return a free port below the system's ephemeral ports, from a range of this pytest worker's own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        _ports.append(1)
        port = 20_000 + worker % 10 * 1000 + (os.getpid() + len(_ports)) % 1000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def killed_at_the_end(process: Process) -> Iterator[Process]:
    """Kill the process at the end of the context if it is still running."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def python() -> str:
    """Return the path of a command that replaces this environment's Python. `segdist` lies beside it.

    With SEGDIST_TESTS_COLD=1, return the ordinary Python.
    """
    if os.environ.get("SEGDIST_TESTS_COLD"):
        return sys.executable
    _connect("bare").close()  # starts the server
    assert _folder is not None
    return str(_folder / "python")


def _write_commands(folder: Path) -> None:
    command = f"exec {sys.executable} -I -S {os.path.abspath(forked_python.__file__)} {folder}"
    for name, words in (("python", command), ("segdist", f"{command} -m segdist")):
        (folder / name).write_text(f'#!/bin/sh\n{words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)


# -- the server ------------------------------------------------------------------------------------------------------------

_FOLDER = "SEGDIST_TESTS_FORKS"
_folder: Path | None = None
_kept: list[socket.socket] = []  # the server runs as long as one test process keeps these open


def _connect(name: str) -> socket.socket:
    """Return a connection to the server, which is started on first use."""
    global _folder
    if _folder is None and _FOLDER in os.environ:  # in a forked process
        _folder = Path(os.environ[_FOLDER])
    if _folder is None:
        run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"pid{os.getpid()}")
        _folder = Path(tempfile.gettempdir()) / f"{spending.FORKS}{os.getuid()}-{run_id}"
        _folder.mkdir(mode=0o700, exist_ok=True)
        with open(_folder / "lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (_folder / "segdist.socket").exists():
                _start(_folder)
            _kept.extend(_open(_folder, name) for name in ("bare", "segdist"))
        atexit.register(_let_go)
    return _open(_folder, name)


def _open(folder: Path, name: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.connect(str(folder / f"{name}.socket"))
    return link


def _let_go() -> None:
    for link in _kept:
        link.close()


def _start(folder: Path) -> None:
    """Start the server and wait until it has imported everything."""
    _write_commands(folder)
    read, write = os.pipe()
    path = os.pathsep.join([str(_HERE.parents[1]), *filter(None, [_CLEAN.get("PYTHONPATH")])])
    with open(folder / "log", "wb") as log:
        subprocess.Popen(
            [sys.executable, str(_HERE), str(folder), str(write)],
            env={**_CLEAN, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write], start_new_session=True,
        )  # fmt: skip
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"ready", (folder / "log").read_text()


def _import_all(names: Sequence[str], but: set[str] = _READS_ENVIRONMENT) -> None:
    """Import these modules, none of which may import one of `but` or start a thread."""
    import importlib

    for name in names:
        importlib.import_module(name)
    found = but & sys.modules.keys()
    assert not found, f"{found} read the environment at import, so the fork server must not import them"
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    others = [name for name in threads if not name.startswith("jemalloc")]  # pyarrow's allocator, which supports forks
    assert len(others) == 1, f"a fork would lose the threads {threads}"


def _modules(package: Any) -> list[str]:
    """Return the names of all modules of a package without importing them."""
    root = Path(package.__path__[0])
    names = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in sorted(root.rglob("*.py"))]
    return [name for name in names if not name.endswith(("__init__", "__main__"))]


def _serve_all(folder: Path, ready: int) -> None:
    """Run two servers: one without segdist, and a fork of it that has imported every module of segdist."""
    _import_all(_LIBRARIES)
    if os.fork():
        os.close(ready)
        _serve(folder / "bare.socket")
    else:
        import segdist

        _import_all([name for name in _modules(segdist) if not name.startswith(_LATE)])
        while not (folder / "bare.socket").exists():
            time.sleep(0.01)
        _serve(folder / "segdist.socket", ready)


def _serve(path: Path, ready: int | None = None, keeper: socket.socket | None = None) -> None:
    """Fork for every request, answer with process id, wait status and CPU seconds, and end with the last test process.

    The server of a raylet's workers ends with its parent, which holds the other end of `keeper`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waker, wakes = socket.socketpair()
    waker.setblocking(False)
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path.with_suffix(".new")))
    listener.listen(200)
    path.with_suffix(".new").rename(path)
    gc.collect()
    gc.freeze()  # objects that the collector does not touch stay shared
    if ready is not None:
        os.write(ready, b"ready")
        os.close(ready)
    kept, children, has_begun = {keeper} - {None}, dict[int, _Child](), keeper is not None
    templates: dict[str, socket.socket] = {}
    selector = selectors.DefaultSelector()
    if keeper:
        selector.register(keeper, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    selector.register(waker, selectors.EVENT_READ)
    while kept or not has_begun:
        events = selector.select(None if has_begun else _FIRST_SECONDS)
        if not events:
            break
        for key, _ in events:
            link: Any = key.fileobj
            if link is listener:
                link = listener.accept()[0]
                kept.add(link)
                selector.register(link, selectors.EVENT_READ)
                has_begun = True
            elif link is waker:
                waker.recv(4096)
                _reap(children)
            elif request := _receive(link) if link in kept else None:
                if name := request[0].get("workers"):
                    if name not in templates:
                        templates[name], theirs = socket.socketpair()
                        if os.fork() == 0:
                            for other in (
                                listener,
                                waker,
                                wakes,
                                *kept,
                                *(c.link for c in children.values()),
                                *templates.values(),
                            ):
                                other.close()
                            os.environ.clear()
                            os.environ.update(request[0]["env"])
                            _import_all(_OF_WORKERS, but={"datasets", "deepspeed"})
                            _serve(path.with_name(f"{name}.socket"), keeper=theirs)
                            os._exit(0)
                        theirs.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    os.close(selector.fileno())
                    links = (child.link for child in children.values())
                    _become(*request, [listener, waker, wakes, *kept, *links, *templates.values()])
                for fd in request[1]:
                    os.close(fd)
                kept.discard(link)
                children[pid] = _Child(link, ends_with_link=bool(request[0]["executable"]))
                _answer(link, pid, 0)
            else:  # the other side has closed the connection or has ended
                kept.discard(link)
                selector.unregister(link)
                for pid, child in children.items():
                    if child.link is link and child.ends_with_link:
                        os.kill(pid, signal.SIGKILL)
                link.close()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    path.unlink()
    if not list(path.parent.glob("*.socket")):
        shutil.rmtree(path.parent, ignore_errors=True)


@dataclass
class _Child:
    """A forked process; it is killed when its connection is closed if `ends_with_link`."""

    link: socket.socket
    ends_with_link: bool


def _receive(link: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return a request and its files, or None if the other side has ended."""
    files: list[int] = []
    try:
        begin, files, _, _ = socket.recv_fds(link, 8, 250)
        length, body = struct.unpack("<q", begin)[0], b""
        while len(body) < length:
            part = link.recv(length - len(body))
            if not part:
                raise OSError("the connection was closed")
            body += part
    except (OSError, struct.error):
        for fd in files:
            os.close(fd)
        return None
    return marshal.loads(body), files


def _reap(children: dict[int, _Child]) -> None:
    while children:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if not pid:
            break
        if pid in children:
            _answer(children.pop(pid).link, status, usage.ru_utime + usage.ru_stime)


def _answer(link: socket.socket, number: int, seconds: float) -> None:
    with contextlib.suppress(OSError):
        link.sendall(ANSWER.pack(number, seconds))


# -- the forked process ------------------------------------------------------------------------------------------------------


def _become(request: dict[str, Any], files: list[int], others: list[socket.socket]) -> None:
    """Turn a fresh fork into the requested process. Never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        for other in others:
            other.close()
        _take_files(files, request["numbers"])
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        _open_streams()
        settings_again()
        spending.begin()
        if request["executable"]:
            sys.executable = sys._base_executable = request["executable"]  # type: ignore[attr-defined]
        if "segdist.publish.export.verification" in sys.modules:
            sys.modules["segdist.publish.export.verification"].subprocess = proofs()  # type: ignore[attr-defined]
        code = _python(request["argv"])
    finally:
        _end(code)


def _take_files(files: list[int], numbers: list[int]) -> None:
    """Move the open files to the requested file descriptors."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 300) for fd in files]
    for fd in files:
        os.close(fd)
    for fd, number in zip(high, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    for number in {0, 1, 2} - set(numbers):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)


def _open_streams() -> None:
    """Replace sys.stdin, sys.stdout and sys.stderr, with the buffering that Python chooses at its start."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        by_line = number == 2 or os.isatty(number)
        errors = "strict" if number == 1 else "backslashreplace"
        stream = open(number, "w", 1 if by_line else -1, "utf-8", errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(write_through=bool(os.environ.get("PYTHONUNBUFFERED")))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def settings_again() -> None:
    """Apply what libraries read from the environment at import: the Hub client's settings and the console's width."""
    import importlib
    import random

    import numpy
    from huggingface_hub import constants

    before = dict(vars(constants))
    importlib.reload(constants)
    changed = {k: v for k, v in vars(constants).items() if k.isupper() and k in before and before[k] != v}
    for name, module in list(sys.modules.items()):
        if changed and name.split(".")[0] in ("huggingface_hub", "transformers", "timm", "datasets", "segdist"):
            for key in changed.keys() & vars(module).keys():
                if vars(module)[key] == before[key]:
                    setattr(module, key, changed[key])
    console = sys.modules.get("segdist.console")
    if console is not None and os.environ.get("COLUMNS"):
        console.console.width = int(os.environ["COLUMNS"])
    random.seed()
    numpy.random.seed()


def _python(argv: list[str]) -> int:
    """Run a Python command line (-c, -m, a file, or stdin) and return its exit code."""
    words = list(argv)
    while words and words[0] in ("-u", "-I", "-S", "-E", "-s"):
        if words.pop(0) == "-u":
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    kind = words[0] if words else "-"
    first = {"-m": os.getcwd(), "-c": "", "-": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *own, *sys.path[1:]]
    try:
        if kind == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif kind in ("-c", "-"):
            code, file = (words[1], "<string>") if kind == "-c" else (sys.stdin.read(), "<stdin>")
            sys.argv = ["-c", *words[2:]] if kind == "-c" else words or [""]
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(code, file, "exec"), main.__dict__)
        else:
            sys.argv = words
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0)
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _end(code: int) -> None:
    """End like the interpreter: join threads, call exit functions, flush streams. Does not tear down the libraries."""
    import threading

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    sys.path[0] = str(_HERE.parent)
    _serve_all(Path(sys.argv[1]), int(sys.argv[2]))
