"""Every command of the README works, as written, in a copy of the project (`make test` itself is what runs this)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import forks
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the commands use, sharing the virtual environment of this test run."""
    place = tmp_path_factory.mktemp("project")
    for name in ("demo", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, place / name)
    (place / ".venv").symlink_to(ROOT / ".venv")
    (place / ".ready").touch()  # installed already: installing is what brought us here
    return place


def run(block: str, project: Path, forked: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the commands with bash. With `forked`, `python` and `segdist` are those of tests/forks.py."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}  # as many threads as a user has
    if forked:
        environment["PATH"] = f"{Path(forks.python()).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=project, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
    return done


def test_the_readme_has_its_two_set_up_commands() -> None:
    assert BLOCKS[:2] == ["make demo", "make test"]
    assert len(BLOCKS) == 5


@pytest.mark.long
def test_make_demo_does_the_main_job(project: Path) -> None:
    done = run("make --silent demo", project)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["miou"] >= 0.80
    assert result["num_samples"] == 53
    for line in ("checkpoint", "table", "export", "overlay"):
        paths = re.findall(rf"^{line} +(\S+)", done.stderr, re.MULTILINE)  # the last one is the demo's own
        assert paths, line
        assert (project / paths[-1]).exists(), line
    assert "make demo DATA=FOLDER" in done.stderr
    assert re.search(r"^rank 0 +\(process \d+\) was killed, and nothing was lost", done.stderr, re.MULTILINE)
    assert "attempt 2: steps" in done.stderr
    state = json.loads((project / "demo-out" / "streets" / "bucket" / "run" / "run.json").read_text(encoding="utf-8"))
    assert (state["state"], state["attempt"], state["step"]) == ("SUCCEEDED", 2, 300)


def test_the_demo_has_a_form_without_s3_and_ray(project: Path, tmp_path: Path) -> None:
    assert "demo/demo.py --local" in (project / "Makefile").read_text(encoding="utf-8")
    few = "train.num_steps=4 optim.warmup_steps=2 eval.every_steps=4"
    done = run(f"python demo/demo.py --local --out {tmp_path}/out {few}", project, forked=True)
    assert "starting Ray" not in done.stderr and "s3://" not in done.stderr
    assert (tmp_path / "out" / "run" / "run.json").exists()
    assert (tmp_path / "out" / "export" / "config.json").exists()


@pytest.mark.long
def test_the_demo_of_a_sweep_leaves_a_picture_and_the_best_values(project: Path, tmp_path: Path) -> None:
    assert "demo/sweep.py" in (project / "Makefile").read_text(encoding="utf-8")
    few = "budget.num_trials=2 confirm.num_best=0 set.train.num_steps=30 set.eval.every_steps=15"
    done = run(f".venv/bin/python demo/sweep.py --out {tmp_path}/out {few}", project)
    status = json.loads(done.stdout.splitlines()[-1])
    assert (status["state"], len(status["trials"])) == ("SUCCEEDED", 2)
    for line in ("plot", "config"):
        (path,) = re.findall(rf"^{line} +(\S+)", done.stderr, re.MULTILINE)
        assert Path(path).is_file(), line


@pytest.mark.parametrize(
    "block",
    BLOCKS[3:],
    ids=["config-show", "models"],
)
def test_the_other_commands_work_as_written(project: Path, block: str) -> None:
    run(block, project, forked=True)


@pytest.mark.long
def test_step_by_step_as_written(project: Path) -> None:
    run(BLOCKS[2], project)


def test_step_by_step_a_shorter_training_goes_the_whole_way(tmp_path: Path) -> None:
    """The same commands, forked one by one, with four steps in the stead of sixty."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    _, draw, *commands = BLOCKS[2].splitlines()
    forks.run([ROOT / "demo" / "streets.py", *draw.split()[2:]], cwd=tmp_path, check=True)
    assert len(commands) == 6 and "train.num_steps=60 eval.every_steps=30" in commands[2]
    for line in commands:
        words = (
            line.replace("num_steps=60", "num_steps=4")
            .replace("every_steps=30", "every_steps=4 optim.warmup_steps=2")
            .split()
        )
        done = forks.run(["-m", *words], cwd=tmp_path)
        assert words[0] == "segdist" and done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
    assert len(list((tmp_path / "predictions").glob("*_overlay.png"))) == 2


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    links = [(page, to) for page in pages for to in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))]
    local = [(page, to) for page, to in links if "://" not in to]
    assert len(local) > 20
    assert [f"{page.relative_to(ROOT)}: {to}" for page, to in local if not (page.parent / to).exists()] == []
