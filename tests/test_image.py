"""The image: what can be known of the Dockerfile without building it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def test_the_dockerfile_is_hadolint_clean() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_image_installs_what_is_pinned_and_runs_as_nobody_special() -> None:
    installs = [line for line in DOCKERFILE.splitlines() if "pip install" in line]
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in line or "--no-deps --root /code ." in line for line in installs)
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["1000"]


def test_every_stage_of_the_image_comes_from_the_base_that_is_given() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(stages) == len(re.findall(r"^FROM", DOCKERFILE, re.MULTILINE))
    for i, (start, _) in enumerate(stages):
        assert start == "${BASE}" or start in [name for _, name in stages[:i]]
    assert [name for _, name in stages[-2:]] == ["cpu", "cuda"]  # the last one is the default


def test_the_image_holds_all_that_segdist_needs_and_nothing_for_development(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = re.search(r"^RUN (python3 -c '.*?' > requirements\.txt)$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert command
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command[1]], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["onnx"]]
    assert (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines() == wanted


def test_a_build_is_sent_what_the_dockerfile_copies_and_nothing_else() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[0] == "*"
    copied = {name for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert [rule for rule in rules[1:] if not rule.startswith("!")] == ["**/__pycache__"]


def test_make_image_builds_a_target_of_the_dockerfile() -> None:
    for given, target in (([], "cuda"), (["TARGET=cpu"], "cpu")):
        command = ["make", "--dry-run", "image", "IMAGE=registry/segdist:1", "BUILD=--network=host", *given]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f" docker build --target {target} --build-arg BASE=python:3.11-slim " in said
        assert " --tag registry/segdist:1 --network=host ." in said
        assert f" AS {target}\n" in DOCKERFILE
