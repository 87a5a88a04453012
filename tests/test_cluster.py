"""The files that make clusters: what can be known of them without one."""

from __future__ import annotations

import copy
import re

import pytest
import yaml
from conftest import ROOT

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.mark.ray
def test_ray_accepts_the_cluster_and_adds_no_command_of_its_own() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(full)
    assert full["setup_commands"] == CLUSTER["setup_commands"]  # the defaults would install a nightly
    assert full["worker_setup_commands"] == CLUSTER["setup_commands"]
    assert full["head_start_ray_commands"] == CLUSTER["head_start_ray_commands"]


def test_the_cluster_wants_the_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned
    assert f"== '{pinned[1]}'" in CLUSTER["setup_commands"][0]


def test_every_node_gets_the_token() -> None:
    assert "/home/segdist/.ray/auth_token" in CLUSTER["file_mounts"]
    assert "--env=RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]


def test_the_image_installs_what_is_pinned_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in lines
    assert lines.index("USER segdist") > lines.rindex("pip install")
