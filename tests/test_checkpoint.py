"""What is committed is whole; what is not committed does not exist; nothing newer is ever lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from segdist import storage
from segdist.errors import CheckpointError, StorageError
from segdist.runs import checkpoints, record
from segdist.runs.checkpoint_manager import CheckpointManager
from segdist.runs.checkpoints import newest, prune, resolve, verify
from segdist.runs.snapshot import Snapshot, commit, load
from segdist.runs.writer import BackgroundWriter
from segdist.step import optim


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        model(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Snapshot:
    return Snapshot(model.state_dict(), optim.tensors(model, optimizer), None, {"step": step}).copied()


def taken(step: int, seed: int = 0) -> Snapshot:
    return snapshot(*trained(seed), step)


def run_of(tmp_path: Path, *steps: int, attempt: int = 1) -> str:
    for step in steps:
        commit(str(tmp_path / "run"), attempt, taken(step, seed=step))
    return str(tmp_path / "run")


def ignore(text: str) -> None:
    pass


def test_a_checkpoint_comes_back_from_another_seed_and_trains_on_alike(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    uri = commit(str(tmp_path / "run"), 1, snapshot(model, optimizer, 7))
    other, other_optimizer = trained(99)
    stored = load(uri)
    other.load_state_dict(stored.model)
    optim.load_tensors(other, other_optimizer, stored.optimizer)
    assert stored.state == {"step": 7}
    for m, o in ((model, optimizer), (other, other_optimizer)):
        torch.manual_seed(5)
        m(torch.randn(2, 3, 5, 5)).square().sum().backward()
        o.step()
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), name


def test_a_snapshot_does_not_change_when_training_goes_on() -> None:
    model, optimizer = trained()
    copy = snapshot(model, optimizer, 1)
    before = {k: v.clone() for k, v in copy.model.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert all(torch.equal(before[k], copy.model[k]) for k in before)


@pytest.mark.parametrize("lost", ["COMMITTED", "model.safetensors", "optimizer.safetensors", "state.json"])
def test_restore_falls_back_when_the_newest_is_not_whole(tmp_path: Path, lost: str) -> None:
    run = run_of(tmp_path, 1, 2)
    warnings: list[str] = []
    newest_uri = newest(run, warnings.append)
    assert newest_uri is not None
    assert newest_uri.endswith("step-00000002-0001")
    (Path(newest_uri) / lost).unlink()
    assert str(newest(run, warnings.append)).endswith("step-00000001-0001")
    assert len(warnings) == (lost != "COMMITTED")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1)
    path = Path(run) / "checkpoints" / "step-00000001-0001" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .* differs from what was committed"):
        verify(str(path.parent))
    assert newest(run, ignore) is None


def test_an_upload_killed_before_committed_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = storage.write

    def dies(uri: str, data: bytes) -> None:
        if uri.endswith("COMMITTED"):
            raise StorageError("killed")
        real(uri, data)

    monkeypatch.setattr(storage, "write", dies)
    with pytest.raises(StorageError):
        run_of(tmp_path, 1)
    assert checkpoints.committed(str(tmp_path / "run")) == []


def test_the_status_of_a_run_names_the_newest_committed_checkpoint_and_needs_no_torch_for_it(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path, 4, 6)
    storage.write(f"{run}/checkpoints/step-00000008-0001/{checkpoints.STATE}", b"{}")
    record.save(run, {"state": "RUNNING", "step": 9, "num_steps": 20, "attempt": 1, "heartbeat": time.time()})
    command = [sys.executable, "-X", "importtime", "-m", "segdist", "status", run]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"newest checkpoint +after step 6\n", done.stderr.replace(" \n", "\n")), done.stderr[-800:]
    assert not re.search(r"\| +(torch|ray|transformers)$", done.stderr, re.M)


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, 2, 3, 4, 5)
    prune(run, 1, keep_last=2, best="checkpoints/step-00000002-0001")
    assert [checkpoints.step_of(u) for u in checkpoints.committed(run)] == [5, 4, 2]


def test_an_outdated_attempt_deletes_nothing_of_a_newer_one(tmp_path: Path) -> None:
    run_of(tmp_path, 1, 2)
    run = run_of(tmp_path, 1, 2, 3, attempt=2)
    prune(run, attempt=1, keep_last=1, best=None)
    assert [u[-4:] for u in checkpoints.committed(run)] == ["0002"] * 3


def test_the_newest_attempt_is_the_newest_though_its_steps_be_lower(tmp_path: Path) -> None:
    run_of(tmp_path, 5, 6)
    run = run_of(tmp_path, 3, attempt=2)
    assert [u.rsplit("/", 1)[1] for u in checkpoints.committed(run)] == [
        "step-00000003-0002",
        "step-00000006-0001",
        "step-00000005-0001",
    ]
    prune(run, attempt=2, keep_last=1, best=None)
    assert storage.names(f"{run}/checkpoints") == ["step-00000003-0002"]


def test_resolve_prefers_the_best_and_explains_what_it_cannot_find(tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, 2)
    assert resolve(run).endswith("step-00000002-0001")
    storage.write(
        f"{run}/best.json",
        json.dumps({"step": 1, "miou": 0.5, "checkpoint": "checkpoints/step-00000001-0001"}).encode(),
    )
    assert resolve(run).endswith("step-00000001-0001")
    assert resolve(f"{run}/checkpoints/step-00000002-0001").endswith("step-00000002-0001")
    with pytest.raises(CheckpointError, match=r"does not exist.*Give the run\.uri"):
        resolve(str(tmp_path / "nowhere"))


def keeper(
    run: str, attempt: int, warn: Callable[[str], None] = ignore, pauses: tuple[float, ...] = ()
) -> tuple[CheckpointManager, BackgroundWriter]:
    writer = BackgroundWriter(warn, pauses)
    return CheckpointManager(run, attempt, 1, writer, lambda: record.newest_attempt(run) <= attempt, None, None), writer


def test_a_keeper_commits_in_the_background_and_knows_the_best(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    kept, writer = keeper(run, 1)
    for step, miou in ((1, 0.3), (2, 0.5), (3, None), (4, None)):
        kept.put(taken(step))
        if miou:
            kept.mark_scored(step, {"miou": miou}, "val")
        writer.flush()
    writer.close()
    assert checkpoints.step_of(kept.newest) == 4
    expected = {"step": 2, "miou": 0.5, "checkpoint": "checkpoints/step-00000002-0001", "scored_on": "val"}
    assert checkpoints.read_best(run) == kept.best == expected
    assert [checkpoints.step_of(u) for u in checkpoints.committed(run)] == [4, 2]


def test_what_was_never_committed_is_not_the_best(tmp_path: Path) -> None:
    kept, writer = keeper(str(tmp_path / "run"), 1)
    kept.mark_scored(5, {"miou": 0.9}, "val")
    writer.close()
    assert kept.best is None


def test_a_keeper_of_an_outdated_attempt_writes_nothing(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert (record.claim_attempt(run), record.claim_attempt(run)) == (1, 2)
    (tmp_path / "run" / "attempts" / ".DS_Store").write_text("somebody looked", encoding="utf-8")
    kept, writer = keeper(run, 1)
    kept.put(taken(9))
    kept.mark_scored(9, {"miou": 0.9}, "val")
    writer.close()
    assert checkpoints.committed(run) == []
    assert checkpoints.read_best(run) is None


def test_a_full_disk_loses_nothing_that_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, 1)
    warnings: list[str] = []
    kept, writer = keeper(run, 1, warnings.append, pauses=(0.01, 0.01))
    monkeypatch.setattr(
        storage.local.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    kept.put(taken(2))
    writer.close()
    assert len(warnings) == 3
    assert "No space left on device" in warnings[0]
    assert "gave up after 3 attempts" in warnings[-1]
    assert [checkpoints.step_of(u) for u in checkpoints.committed(run)] == [1]
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_a_fault_that_passes_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, faults, real = str(tmp_path / "run"), [StorageError("503"), StorageError("503")], storage.write

    def flaky(uri: str, data: bytes) -> None:
        if faults:
            raise faults.pop()
        real(uri, data)

    monkeypatch.setattr(storage, "write", flaky)
    kept, writer = keeper(run, 1, pauses=(0.01, 0.01, 0.01))
    kept.put(taken(3))
    writer.close()
    assert checkpoints.step_of(kept.newest) == 3
