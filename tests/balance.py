"""Distribute the tests to pytest-xdist's workers (`--dist loadfile`): file by file, the slowest first, so that no worker idles.

The tests of one file share trained models, so they run on one worker. The tests of the files in SPREAD share nothing
expensive, so they are distributed one by one. (The groups of xdist itself need pytest < 9.2.)
"""

from __future__ import annotations

from typing import Any

import pytest

FIRST = (
    "test_sweep_ray.py", "test_ray.py", "test_submit.py", "test_machines.py", "test_kube.py", "test_zero.py",
    "test_ranks.py", "test_export.py", "test_train.py", "test_commands.py", "test_evaluate.py", "test_push.py",
    "test_weights.py", "test_s3.py",
)  # fmt: skip
ON_A_HEAD = ("test_sweep_ray.py", "test_ray.py", "test_submit.py", "test_kube.py")  # use the fixture `head`
SPREAD = ("test_readme.py", "test_tutorials.py", "test_suite.py")


def group_of(nodeid: str) -> str:
    """Return the name of the group of a test. All tests of a group run on one worker."""
    file = nodeid.split("::")[0]
    return nodeid if file.rpartition("/")[2] in SPREAD else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: i for i, name in enumerate((*FIRST[:5], *SPREAD, *FIRST[5:]))}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)
