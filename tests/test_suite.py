"""Tests of the test infrastructure: forked processes, counts and limits, leaks of state, selection of long tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import leaks
import long_tests
import pytest
import spending
import torch
import yaml
from conftest import ROOT, tree

from segdist.runs import checkpoints, snapshot


def test_a_fork_has_its_own_arguments_environment_folder_streams_and_exit_code(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['WHO']); print(os.getpid(), file=sys.stderr); sys.exit(3)"
    process = forks.Process(["-c", code, "x"], env={**os.environ, "WHO": "me"}, cwd=tmp_path)
    done = process.completed(60)
    assert (done.returncode, done.stdout) == (3, f"['-c', 'x'] {tmp_path} me\n")
    assert int(done.stderr) == process.pid != os.getpid()
    assert forks.run(["-c", "1 / 0"]).stderr.endswith("ZeroDivisionError: division by zero\n")
    assert forks.run(["-m", "segdist", "--version"]).stdout.startswith("segdist ")


def test_a_fork_can_be_killed_and_a_wait_for_it_can_time_out() -> None:
    process = forks.Process(["-c", "import time; time.sleep(60)"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


def test_a_bare_fork_has_not_imported_segdist_and_has_one_thread() -> None:
    code = "import sys, torch; assert not [m for m in sys.modules if m.startswith('segdist')]; print(torch.get_num_threads())"
    assert forks.run(["-c", code], bare=True, check=True).stdout == "1\n"


def test_the_replacement_for_python_passes_on_everything_and_dies_with_its_process(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), sys.executable); sys.stdout.flush(); sys.stdin.read(); sys.exit(3)"
    done = subprocess.run([forks.python(), "-c", code, "x"], cwd=tmp_path, capture_output=True, text=True, input="")
    assert (done.returncode, done.stdout) == (3, f"['-c', 'x'] {tmp_path} {forks.python()}\n"), done.stderr
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen([forks.python(), "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout and process.stdout.readline()
            process.send_signal(number)
            assert process.wait(60) == -number
            assert process.stdout.read() == b""  # at its end of file, the forked process has ended too


def test_if_one_rank_fails_the_others_end_and_its_exit_code_is_returned() -> None:
    code = "import os, sys, time; sys.exit(5) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert forks.ranks(2, ["-c", code]).returncode == 5


@pytest.mark.slow
def test_training_in_a_fork_gives_the_same_bits_as_in_a_cold_interpreter(street_data: str, tmp_path: Path) -> None:
    path, found = tmp_path / "run.yaml", []
    path.write_text(yaml.safe_dump(tree(street_data, "-", train={"num_steps": 2})), encoding="utf-8")
    for name in ("cold", "forked"):
        command = ["-m", "segdist", "train", str(path), f"run.uri={tmp_path / name}"]
        if name == "cold":
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
        else:
            forks.run(command, check=True)
        found.append(snapshot.load_model(checkpoints.resolve(str(tmp_path / name))))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


@pytest.mark.parametrize(
    ("command", "letters"),
    [
        ([sys.executable, "-m", "segdist"], "c"),
        (["nice", "-n", "10", sys.executable, "-m", "segdist"], "c"),
        ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "x.py"], "ccc"),
        ([Path(sys.executable).with_name("ray"), "start", "--head"], "cr"),
        (["/somewhere/gcs_server", "--x"], "r"),
        ([f"/tmp/{spending.FORKS}0-1/python", "-m", "segdist"], "f"),
        (["git", "diff"], ""),
        ("make demo", "c"),
    ],
)
def test_a_command_counts_as_the_processes_that_it_starts(command: Any, letters: str) -> None:
    assert spending.events_of(command) == letters


def test_exceeded_limits_are_reported_and_long_tests_have_none() -> None:
    ledger, nothing = spending.Ledger(None), dict.fromkeys(spending.LIMITS, 0)
    most = spending.LIMITS["training steps"]
    ledger.tests = {"a": {**nothing, "cpu": 1.0, "long": False, "training steps": most}}
    assert ledger.over() == []
    ledger.tests["b"] = {**nothing, "cpu": 1.0, "long": True, "training steps": 1}
    assert ledger.over() == []
    ledger.tests["c"] = {**nothing, "cpu": 1.0, "long": False, "training steps": 1}
    assert ledger.over() == [f"{most + 1} training steps, but at most {most} are allowed"]


def test_changed_global_state_is_named_and_restored(tmp_path: Path) -> None:
    before, folder = leaks.snapshot(), os.getcwd()
    assert leaks.undo(before) == []
    os.environ["LEFT"] = "1"
    os.chdir(tmp_path)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    said = leaks.undo(before)
    assert [line.split(":")[0] for line in said] == [
        "the current folder", "torch's determinism", "TF32 of products", "environment variable LEFT",
    ]  # fmt: skip
    assert leaks.snapshot() == before and "LEFT" not in os.environ and os.getcwd() == folder


def test_a_fixture_of_a_module_may_change_state_until_its_end_and_a_test_may_not(tmp_path: Path) -> None:
    (tmp_path / "test_two_modules.py").write_text("""
import os, pytest
@pytest.fixture(scope="module")
def changed():
    with pytest.MonkeyPatch.context() as patch:
        yield patch.setenv("LEFT", "1")
def test_with_it(changed, monkeypatch): monkeypatch.setenv("LEFT", "2")
def test_leaks(changed): os.environ["LEFT"] = "3"
def test_with_it_again(changed): assert os.environ["LEFT"] == "1"
""")
    (tmp_path / "test_without.py").write_text("def test(): import os; assert 'LEFT' not in os.environ")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = forks.run(["-m", "pytest", "-p", "leaks", "-q"], env=environment, cwd=tmp_path, bare=True)
    assert re.search("^4 passed.* 1 error", done.stdout, re.MULTILINE), done.stdout
    assert "ERROR test_two_modules.py::test_leaks" in done.stdout
    assert "this test leaves global state changed: environment variable LEFT" in done.stdout


def test_a_long_test_runs_if_a_path_that_it_covers_changed() -> None:
    assert long_tests.covers("test_zoo.py", ["README.md", "segdist/models/hf.py"])
    assert long_tests.covers("test_zoo.py", ["tests/test_zoo.py"])
    assert long_tests.covers("test_zoo.py", ["constraints.txt"])
    assert not long_tests.covers("test_zoo.py", ["README.md"]) and not long_tests.covers("test_zoo.py", [])


def test_changed_are_files_of_the_last_commit_and_those_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    for name in ("before", "last", "edited", "new"):
        (tmp_path / name).write_text(name)
        if name == "new":
            (tmp_path / "edited").write_text("again")
            continue
        git("add", ".")
        git("commit", "--quiet", "-m", name)
    monkeypatch.setattr(long_tests, "ROOT", tmp_path)
    assert sorted(long_tests.changed_files()) == ["edited", "new"]


def test_every_file_with_long_tests_has_an_entry_of_existing_paths() -> None:
    marked = {p.name for p in ROOT.glob("tests/test_*.py") if re.search(r"mark\.long\b|\bEVERY\b", p.read_text())}
    assert len(marked) > 9 and marked <= long_tests.COVERS.keys()
    paths = [path for covered in long_tests.COVERS.values() for path in covered]
    assert [path for path in paths if not (ROOT / path).exists()] == []
