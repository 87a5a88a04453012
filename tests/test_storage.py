from __future__ import annotations

import threading
from pathlib import Path

import pytest

from segdist import storage
from segdist.errors import StorageError
from segdist.runs import record, segments
from segdist.runs.writer import BackgroundWriter


def test_racing_attempts_get_different_numbers(tmp_path: Path) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(record.claim_attempt(str(tmp_path)))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(numbers) == list(range(1, 9))


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/x"])
def test_no_path_escapes_its_folder(part: str) -> None:
    with pytest.raises(StorageError, match="would escape"):
        storage.join("runs/a", part)


def test_a_failed_write_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write(str(tmp_path / "x"), b"old")
    monkeypatch.setattr(
        "segdist.storage.local.os.replace", lambda *a: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(StorageError, match="Input/output error"):
        storage.write(str(tmp_path / "x"), b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert storage.read(str(tmp_path / "x")) == b"old"


def test_what_is_only_read_refuses_every_writer_and_says_where_to_write() -> None:
    for uri in ("hf://datasets/someone/streets", "https://host/a", "HTTP://host/a"):
        tries = [lambda uri=uri: storage.write(uri, b""), lambda uri=uri: storage.create(uri, b"")]
        tries += [
            lambda uri=uri, work=work: work(uri)
            for work in (storage.delete, storage.remove_stale, storage.check_writable)
        ]
        for attempt in tries:
            with pytest.raises(StorageError, match=f"{uri.partition(':')[0].lower()}:// is read-only. Write to a"):
                attempt()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="gopher:// is not supported"):
        storage.read("gopher://x/y")


def test_metrics_merge_and_the_last_attempt_wins_a_step(tmp_path: Path) -> None:
    run = str(tmp_path)
    segments.write_metrics(run, 1, 1, [{"step": s, "kind": "train", "loss": 1.0} for s in (1, 2, 3)])
    segments.write_metrics(run, 2, 1, [{"step": s, "kind": "train", "loss": 2.0} for s in (3, 4)])
    segments.write_metrics(run, 2, 2, [{"step": 4, "kind": "eval", "miou": float("nan")}])
    rows = segments.read_metrics(run)
    assert [(r["step"], r["kind"], r.get("loss")) for r in rows] == [
        (1, "train", 1.0), (2, "train", 1.0), (3, "train", 2.0), (4, "eval", None), (4, "train", 2.0),
    ]  # fmt: skip
    assert rows[3]["miou"] is None


def test_a_waiting_job_is_replaced_by_a_newer_one_of_its_name() -> None:
    gate, done = threading.Event(), []
    writer = BackgroundWriter(lambda text: None)
    writer.put("first", gate.wait)
    for i in range(5):
        writer.put("state", lambda i=i: done.append(i))
    writer.put("other", lambda: done.append("other"))
    gate.set()
    writer.close()
    assert done == [4, "other"]


def test_a_bug_in_a_job_is_reported_and_does_not_end_the_outbox() -> None:
    said: list[str] = []
    done: list[int] = []
    writer = BackgroundWriter(said.append)
    writer.put("bad", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    writer.put("good", lambda: done.append(1))
    writer.close()
    assert done == [1]
    assert "bad: failed: ZeroDivisionError" in said[0]


@pytest.mark.parametrize(
    ("state", "launch", "attempt", "is_ours"),
    [
        (record.RUNNING, "one", 1, True),
        (record.RUNNING, "another", 1, False),
        (record.SUCCEEDED, "one", 1, False),
        (record.FAILED, "one", 1, False),
        (record.RUNNING, "one", 0, False),  # attempt 1 is claimed, and has not written yet
    ],
)
def test_a_run_is_given_up_by_its_own_launch_alone(
    tmp_path: Path, state: str, launch: str, attempt: int, is_ours: bool
) -> None:
    run = str(tmp_path)
    record.claim_attempt(run)
    before = {"state": state, "launch": launch, "attempt": attempt, "step": 7, "heartbeat": 1.0}
    record.save(run, before)
    record.give_up(run, "one", 5, record.FAILED, "no room")
    assert record.load(run) == (before | {"state": record.FAILED, "error": "no room"} if is_ours else before)


def test_a_run_that_has_no_record_yet_is_not_given_up(tmp_path: Path) -> None:
    record.give_up(str(tmp_path), "one", 5, record.FAILED, "no room")
    assert record.load(str(tmp_path)) is None
