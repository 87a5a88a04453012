"""Select the tests marked `long`: `--long no`, `--long all`, or `--long changed`.

With `changed`, a `long` test runs if its own file changed, or a path that COVERS lists for this file. Changed files are those
that git finds different from the point where this branch left origin/main, or, on origin/main, from the previous commit.
Without git or its history, no file counts as changed.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COVERS: dict[str, tuple[str, ...]] = {
    "test_before_rooms.py": ("segdist/sweep/", "tests/fixtures/before_rooms/"),
    "test_commands.py": ("segdist/distributed.py", "segdist/launch/in_process.py", "segdist/cli/__init__.py"),
    "test_evaluate.py": (
        "segdist/evaluation/inference.py",
        "segdist/evaluation/evaluate.py",
        "benchmarks/evaluation.py",
    ),
    "test_export.py": ("segdist/publish/export/", "segdist/models/"),
    "test_kube.py": ("segdist/cluster/kube/", "segdist/cluster/node.py", "segdist/launch/", "k8s/"),
    "test_loss.py": ("segdist/step/loss.py", "segdist/ops/"),
    "test_machines.py": (
        "segdist/launch/",
        "segdist/distributed.py",
        "segdist/cluster/node.py",
        "segdist/sweep/driver.py",
        "segdist/sweep/trial.py",
        "tests/machines.py",
    ),
    "test_node.py": ("segdist/cluster/node.py",),
    "test_ranks.py": ("segdist/step/", "segdist/ops/", "segdist/distributed.py"),
    "test_ray.py": (
        "segdist/launch/",
        "segdist/distributed.py",
        "segdist/train/agreement.py",
        "segdist/cluster/drivers.py",
        "segdist/cluster/node.py",
        "tests/ray_head.py",
    ),
    "test_readme.py": ("README.md", "Makefile", "demo/", "configs/demo.yaml", "segdist/cli/", "segdist/launch/"),
    "test_s3.py": ("segdist/storage/", "segdist/runs/"),
    "test_strategy.py": ("segdist/step/",),
    "test_submit.py": ("segdist/cluster/submit/", "segdist/launch/", "jobs/"),
    "test_sweep_ray.py": ("segdist/sweep/", "segdist/launch/"),
    "test_train.py": ("segdist/train/", "segdist/runs/"),
    "test_tutorials.py": ("docs/tutorials/", "configs/tutorials/", "tests/tutorials.py", "tests/tutorial_scenes.py"),
    "test_weights.py": ("segdist/models/weights.py",),
    "test_zero.py": ("segdist/step/",),
    "test_zoo.py": ("segdist/models/", "tests/zoo.py"),
}
COVERED_BY_ALL = ("constraints.txt", "pyproject.toml", "tests/conftest.py", "tests/forks.py", "tests/forked_python.py")


def changed_files() -> list[str]:
    """Return the changed paths relative to the project, committed or not."""

    def git(*words: str) -> list[str]:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.splitlines() if done.returncode == 0 else []

    try:
        head, base = git("rev-parse", "HEAD"), git("merge-base", "HEAD", "origin/main")
        new = git("ls-files", "--others", "--exclude-standard")
        return new + git("diff", "--name-only", *(base if base and base != head else ["HEAD~1"]))
    except OSError:
        return []


def covers(name: str, changed: list[str]) -> bool:
    """Return whether a test file covers one of these paths."""
    return any(path.startswith((f"tests/{name}", *COVERS.get(name, ()), *COVERED_BY_ALL)) for path in changed)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", choices=["no", "changed", "all"], default="no", help="which tests marked `long` to run (default: no)"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    which = config.getoption("--long")
    if which == "all" or "long" in config.option.markexpr.split():
        return
    changed = changed_files() if which == "changed" else []

    def runs(item: pytest.Item) -> bool:
        return item.get_closest_marker("long") is None or covers(item.path.name, changed)

    left_out = [item for item in items if not runs(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if runs(item)]
