"""Count what tests use: cold interpreters, forks, starts of Ray, training steps. The test run fails above a limit.

Unlike seconds, counts are the same on every machine. Tests marked `long` count separately and have no limit. Not counted: what
happens inside a cold interpreter, and the training steps and CPU seconds of Ray's processes. `--spending=FILE` writes the
counts and seconds of every test as JSON, and `python tests/spending.py FILE` prints them as the table in
benchmarks/results/tests.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# About a tenth above what a whole run counted (benchmarks/results/tests.md)
LIMITS = {"cold interpreters": 28, "starts of Ray": 5, "forks": 260, "training steps": 1400}
_KINDS = {"c": "cold interpreters", "r": "starts of Ray", "f": "forks", "s": "training steps"}
FORKS = "segdist-forks-"  # prefix of the folder with the commands of tests/forks.py
_FILE = "SEGDIST_TESTS_SPENDING"  # path of a file to which this process and its forks append one letter per event


def note(letters: str) -> None:
    """Append events to the file of this test process, if there is one."""
    if path := os.environ.get(_FILE):
        with contextlib.suppress(FileNotFoundError):  # the test process has ended
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, letters.encode())
            os.close(fd)


def events_of(command: Any) -> str:
    """Return the events that a command given to subprocess counts as."""
    words = [os.fspath(command)] if isinstance(command, str | bytes | os.PathLike) else [os.fspath(w) for w in command]
    if words[0] == "nice":
        words = words[3:]
    name = Path(str(words[0])).name
    if Path(words[0]).parent.name.startswith(FORKS):
        return "f"
    if name == "ray" and "start" in words:
        return "cr"
    if name.startswith("gcs_server"):  # started by `ray start` and by a `ray.init` without a cluster
        return "r"
    if "torch.distributed.run" in words:
        return "c" * (1 + int(words[words.index("--nproc-per-node") + 1]))
    return "c" if name.startswith(("python", "segdist", "ray", "make")) or name in ("bash", "sh") else ""


def begin() -> None:
    """Count the commands and training steps of this process from now on."""
    start = subprocess.Popen.__init__
    if not hasattr(start, "__wrapped__"):

        @functools.wraps(start)
        def counted(self: Any, args: Any, *rest: Any, **options: Any) -> None:
            note(events_of(args))
            start(self, args, *rest, **options)

        subprocess.Popen.__init__ = counted  # type: ignore[method-assign]
    strategy = sys.modules.get("segdist.step.update")
    if strategy is not None and not hasattr(strategy.Step.__call__, "__wrapped__"):
        step = strategy.Step.__call__

        @functools.wraps(step)
        def stepped(self: Any, *given: Any, **options: Any) -> Any:
            note("s")
            return step(self, *given, **options)

        strategy.Step.__call__ = stepped


class Account:
    """Measures each test of a test process."""

    def __init__(self) -> None:
        self._path = Path(tempfile.mkstemp(prefix="segdist-spending-")[1])
        self._letters = open(self._path, "rb")  # noqa: SIM115 (open until `close`)
        os.environ[_FILE] = str(self._path)
        begin()
        self._last = self._clock()

    @staticmethod
    def _clock() -> tuple[float, float]:
        import forks

        used = os.times()
        return time.monotonic(), used.user + used.system + used.children_user + used.children_system + forks.spent

    def spent(self) -> dict[str, float]:
        """Return the counts and seconds since the previous call."""
        counted = Counter(self._letters.read().decode())
        now = self._clock()
        wall, cpu = (round(a - b, 2) for a, b in zip(now, self._last))
        self._last = now
        return {name: counted[letter] for letter, name in _KINDS.items()} | {"wall": wall, "cpu": cpu}

    def close(self) -> None:
        self._letters.close()
        self._path.unlink()


class Ledger:
    """Adds up the measurements of all tests, in the process that prints, and checks them against the limits."""

    def __init__(self, file: str | None) -> None:
        self._file, self.tests = file, dict[str, dict[str, Any]]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "spent" and report.when == "teardown":
                self.tests[report.nodeid] = {**value, "long": "long" in report.keywords}  # type: ignore[dict-item]

    def over(self) -> list[str]:
        """Return a description of each limit that is exceeded."""
        sums = self.sums(long=False)
        return [
            f"{sums[name]} {name}, but at most {limit} are allowed"
            for name, limit in LIMITS.items()
            if sums[name] > limit
        ]

    def sums(self, long: bool) -> Counter[str]:
        total: Counter[str] = Counter()
        for spent in self.tests.values():
            if spent["long"] == long:
                total.update({name: spent[name] for name in (*LIMITS, "cpu")})
        return total

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._file:
            Path(self._file).write_text(json.dumps(self.tests, indent=1), encoding="utf-8")
        if self.over() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("counts")
        for long in (False, True):
            if any(spent["long"] == long for spent in self.tests.values()):
                sums = self.sums(long)
                counts = ", ".join(
                    f"{sums[name]} {name}" + ("" if long else f" (of {LIMITS[name]})") for name in LIMITS
                )
                terminalreporter.line(f"{'long tests: ' if long else ''}{counts}, {sums['cpu']:.0f} s of CPU time")
        for line in self.over():
            terminalreporter.line(f"over the limit of tests/spending.py: {line}", red=True)


_account = pytest.StashKey[Account]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--spending", metavar="FILE", help="write the counts and seconds of every test to this file, as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(config.getoption("--spending")), "ledger")


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.items and not session.config.option.collectonly:  # not in xdist's controller, which runs no tests
        session.config.stash[_account] = Account()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    if outcome.get_result().when == "teardown" and (account := item.config.stash.get(_account, None)):
        outcome.get_result().user_properties.append(("spent", account.spent()))


def pytest_unconfigure(config: pytest.Config) -> None:
    if account := config.stash.get(_account, None):
        account.close()


def table(path: str, rows: int = 50) -> str:
    """Return the slowest tests as a Markdown table."""
    tests = json.loads(Path(path).read_text(encoding="utf-8"))
    lines = ["| CPU s | wall s | cold | Ray | forks | steps | test |", "| --: | --: | --: | --: | --: | --: | --- |"]
    for name, spent in sorted(tests.items(), key=lambda one: -one[1]["wall"])[:rows]:
        counts = " | ".join(str(spent[kind] or "") for kind in _KINDS.values())
        lines.append(f"| {spent['cpu']:.1f} | {spent['wall']:.1f} | {counts} | `{name.removeprefix('tests/')}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1]))
