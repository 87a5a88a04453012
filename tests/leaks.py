"""Fail tests that leave global state changed: torch's flags, environment variables, the working directory, signal handlers.

The state is restored. Otherwise the result of a test would depend on the tests before it in the same process. For the same
reason every test starts with the same random seeds. A fixture of a module or session may change state until its own end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Variables that segdist or a library sets on first use, on purpose, to the same value in every test.
_ONCE = (
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS", "CUBLAS_WORKSPACE_CONFIG", "DS_ACCELERATOR", "KMP_", "PYTEST_", "RAY_",
    "TORCHINDUCTOR_", "TUNE_", "SEGDIST_TESTS_",
)  # fmt: skip
_VARIABLE = "environment variable "
State = tuple[Callable[[], Any], Callable[[Any], Any]]  # (read it, restore it)


def _attribute(owner: Any, name: str) -> State:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _states() -> dict[str, State]:
    """Return the checked states by name, without the environment. Those of a library are included only if it is imported."""
    found: dict[str, State] = {
        "the current folder": (os.getcwd, os.chdir),
        "the umask": (lambda: (mask := os.umask(0o22), os.umask(mask))[0], os.umask),
    }
    for number in (signal.SIGTERM, signal.SIGINT):
        found[number.name] = (lambda n=number: signal.getsignal(n), lambda handler, n=number: signal.signal(n, handler))  # type: ignore[misc]
    torch = sys.modules.get("torch")
    if torch is not None:
        backends, fills = torch.backends, torch.utils.deterministic
        found |= {
            "torch's threads": (torch.get_num_threads, torch.set_num_threads),
            "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
            "torch's default device": (torch.get_default_device, torch.set_default_device),
            "torch's gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
            "torch's anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
            "torch's determinism": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
            "torch's filling of memory": _attribute(fills, "fill_uninitialized_memory"),
            "torch's process group": (torch.distributed.is_initialized, lambda _: torch.distributed.destroy_process_group()),
            "TF32 of products": _attribute(backends.cuda.matmul, "fp32_precision"),
            "TF32 of convolutions": _attribute(backends.cudnn.conv, "fp32_precision"),
            "TF32 of recurrences": _attribute(backends.cudnn.rnn, "fp32_precision"),
            "cuDNN's benchmark": _attribute(backends.cudnn, "benchmark"),
            "cuDNN's determinism": _attribute(backends.cudnn, "deterministic"),
            "oneDNN": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        }  # fmt: skip
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:
        found |= {f"the Hub's {name}": _attribute(hub, name) for name in ("ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    return found


def _seed() -> None:
    """Seed the global random generators of the imported libraries."""
    random.seed(0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def snapshot() -> dict[str, Any]:
    """Return the current value of every checked state."""
    variables = {_VARIABLE + name: value for name, value in os.environ.items() if not name.startswith(_ONCE)}
    return {name: read() for name, (read, _) in _states().items()} | variables


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> (old value, new value) of the states that differ. None: the environment variable is not set."""
    both = {name for name in before | after if name.startswith(_VARIABLE) or (name in before and name in after)}
    names = [name for name in before | after if name in both and before.get(name) != after.get(name)]
    return {name: (before.get(name), after.get(name)) for name in names}


def undo(before: dict[str, Any]) -> list[str]:
    """Restore the values in `before`, and return a description of each one that had changed."""
    found = changes(before, snapshot())
    states = _states()
    for name, (old, _) in found.items():
        if not name.startswith(_VARIABLE):
            states[name][1](old)
        elif old is None:
            del os.environ[name.removeprefix(_VARIABLE)]
        else:
            os.environ[name.removeprefix(_VARIABLE)] = old
    return [
        name if name.startswith(_VARIABLE) else f"{name}: {old} -> {new}" for name, (old, new) in found.items()
    ]  # no values of variables, which may be secrets


_expected: dict[str, Any] = {}  # what the current test must leave
_changed: dict[int, dict[str, tuple[Any, Any]]] = {}  # id of a module's or session's fixture -> what it has changed


def _expect(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is None and name.startswith(_VARIABLE):
            _expected.pop(name, None)
        else:
            _expected[name] = value


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _expected.clear()
    _expected.update(snapshot())
    _seed()
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    before = snapshot()
    yield
    if fixturedef.scope != "function":
        _changed[id(fixturedef)] = found = changes(before, snapshot())
        _expect({name: new for name, (_, new) in found.items()})


def pytest_fixture_post_finalizer(fixturedef: Any) -> None:
    _expect({name: old for name, (old, _) in _changed.pop(id(fixturedef), {}).items()})


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    left = undo(_expected)
    if left and outcome.excinfo is None:
        outcome.force_exception(AssertionError(f"this test leaves global state changed: {'; '.join(left)}"))
