"""What people look at of a sweep: its table, its picture, its files in configs/, and its best values in a training."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store as stores
from drawn_sweep import drawn, write
from PIL import Image
from rich.console import Console

from segdist import console, launch, storage
from segdist.cli import app, follow, status, status_tables
from segdist.config.reading import read_tree, validate
from segdist.config.sweep import Budget, Confirm, Dimension, Scheduler, Sweep
from segdist.errors import UserError
from segdist.runs import record
from segdist.sweep import plan, search
from segdist.sweep.axes import field_axes, varying_fields
from segdist.sweep.importance import importances
from segdist.sweep.ledger import FAILED, RUNNING, Trial
from segdist.sweep.plot import plot_png
from segdist.sweep.space import format_value

ROOT = Path(__file__).parents[1]
ORANGE = (213, 94, 0)  # of the best


def command(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def running(folder: Path, silent_seconds: float = 1.0) -> str:
    """A sweep at work: trial 0002 is at step 450 of 900 by its run's own record, and at 100 by the sweep's."""
    facts, trials = drawn(3, 2, state="RUNNING", heartbeat=time.time() - silent_seconds)
    trials[2].state, trials[2].reason, trials[2].scores = RUNNING, None, trials[2].scores[:1]
    uri = write(folder, facts, trials)
    record.save(f"{uri}/trials/0002", {"state": "RUNNING", "step": 450, "heartbeat": time.time()})
    return uri


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_sweeps_table_names_the_best_and_why_others_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, trials = drawn(12, 3, dollars_per_hour=3.6, num_ranks=2)
    command("status", write(tmp_path / "s", facts, trials))
    said = " ".join(capsys.readouterr().err.split())
    best = max((one for one in trials if one.state == "SUCCEEDED"), key=lambda one: one.best("miou") or 0)
    assert f"best: trial {best.id}, mIoU {best.best('miou'):.4f}: optim.lr" in said
    for part in ("0007, 0008, 0009: Training diverged", "SUCCEEDED", "crop_size", "12 of 12 trials"):
        assert part in said
    dollars = sum(one.seconds for one in trials) / 3600 * 3.6 * 2
    assert f"${dollars:.2f}" in said


def test_confirmations_stand_under_their_trial(tmp_path: Path) -> None:
    facts, trials = drawn(3, 2)
    trials.append(Trial("0001-seed-1", trials[1].values, "confirm/0001-seed-1", "SUCCEEDED", confirms="0001", seed=1))
    tree = status.read_status(write(tmp_path / "s", facts, trials))
    assert [row["trial"] for row in tree["trials"]] == ["0000", "0001", "0001-seed-1", "0002"]
    assert sum(tree["counts"].values()) == 3
    assert "  seed 1" in text_of(status_tables.render(tree))


def text_of(shown: Any, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_step_of_a_running_trial_is_that_of_its_run_and_looking_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = running(tmp_path / "s")
    before = files(tmp_path)
    command("status", uri, "--json")
    tree = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in tree["trials"] if row["trial"] == "0002"] == [450]
    assert tree["silent_seconds"] < 100
    assert files(tmp_path) == before


def test_a_continued_member_of_a_population_counts_the_steps_before(tmp_path: Path) -> None:
    facts, trials = drawn(1, 1, state="RUNNING", heartbeat=time.time())
    facts["exploits"] = [{"trial": "0000", "from": "0007", "step": 200}]
    trials[0].state, trials[0].offset, trials[0].scores = RUNNING, 200, []
    uri = write(tmp_path / "s", facts, trials)
    record.save(f"{uri}/trials/0000", {"state": "RUNNING", "step": 30, "heartbeat": time.time()})
    (row,) = status.read_status(uri)["trials"]
    assert (row["step"], row["reason"]) == (230, "continued from 0007 after step 200")


def test_a_long_silence_is_said(tmp_path: Path) -> None:
    assert "heartbeat: 1 s ago" in text_of(status_tables.render(status.read_status(running(tmp_path / "a"))))
    old = text_of(status_tables.render(status.read_status(running(tmp_path / "b", 600))))
    assert "none for 10 min" in old and "`segdist tune` to continue" in old


def test_the_table_of_many_trials_keeps_what_runs_and_the_best(tmp_path: Path) -> None:
    facts, trials = drawn(60, 2)
    trials[50].state, trials[50].scores = RUNNING, []
    tree = status.read_status(write(tmp_path / "s", facts, trials))
    some = text_of(status_tables.render(tree, most=6))
    assert "0050" in some and f"\n {tree['best']['trial']} " in some and "and 54 more" in some
    assert "more" not in text_of(status_tables.render(tree))


def test_a_sweep_that_runs_again_shows_the_best_so_far_and_a_finished_one_the_best_that_it_named(
    tmp_path: Path,
) -> None:
    named = {
        "trial": "0001",
        "values": {},
        "score": 0.5,
        "scores": [0.4, 0.6],
        "own": 0.7,
        "confirmed": True,
        "run": "trials/0001",
        "checkpoint": None,
    }
    ended = status.read_status(write(tmp_path / "a", *drawn(3, 2, best=named)))
    assert ended["best"] == named
    assert "trial 0001, mIoU 0.5000 over 2 other seeds (0.7000 with its own)" in text_of(status_tables.render(ended))
    again = status.read_status(write(tmp_path / "b", *drawn(3, 2, best=named, state="RUNNING", heartbeat=time.time())))
    assert again["best"]["trial"] == "0000"


def test_the_status_of_a_run_is_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {
        "state": "PREEMPTED", "step": 40, "num_steps": 100, "miou": 0.5, "best_step": 30, "attempt": 3, "heartbeat": 1.0,
        "goodput": {"share": 0.91, "lost_steps": 12}, "images_per_second": 12.3, "identity": {"optim.lr": 1e-3},
    }  # fmt: skip
    record.save(str(tmp_path / "run"), run)
    command("status", str(tmp_path / "run"), "--json")
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    for part in ("PREEMPTED", "40 of 100", "0.5000, after step 30", "attempt 3", "share 0.91, lost steps 12", "12.3"):
        assert part in said
    assert "optim.lr" not in said
    assert json.loads(captured.out)["identity"] == {"optim.lr": 1e-3}


def test_where_nothing_is_the_message_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run \(no run.json\) nor a sweep \(no sweep.json\). Give"):
        command("status", str(tmp_path))


def test_a_run_has_no_picture_of_a_sweep(tmp_path: Path) -> None:
    record.save(str(tmp_path), {"state": "FAILED", "step": 1, "num_steps": 2, "attempt": 1, "heartbeat": 1.0})
    with pytest.raises(UserError, match="segdist history"):
        command("status", str(tmp_path), "--plot", str(tmp_path / "a.png"))


def test_a_sweep_in_a_bucket_is_looked_at_alike(tmp_path: Path) -> None:
    local = running(tmp_path / "s")
    with stores.serving("looks"):
        stores.copy(local, "s3://looks/s")
        there, here = status.read_status("s3://looks/s"), status.read_status(local)
        command("status", "s3://looks/s", "--plot", "s3://looks/sweep.png")
        assert storage.read("s3://looks/sweep.png")[:4] == b"\x89PNG"
    rows = [[{**row, "run_uri": ""} for row in tree["trials"]] for tree in (there, here)]
    assert rows[0] == rows[1]


def test_following_without_a_terminal_tells_each_change_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = running(tmp_path / "s")
    facts, trials = drawn(3, 2)
    looks = iter([status.read_status(uri)] * 3 + [status.read_status(write(tmp_path / "s", facts, trials))])
    monkeypatch.setattr(status, "read_status", lambda uri: next(looks))
    assert follow.follow(uri, 0.0)["state"] == "SUCCEEDED"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(set(lines))
    assert sum(line.startswith("trial 0000") for line in lines) == 1
    assert [line.split(",")[0] for line in lines if line.startswith("trial 0002")] == [
        "trial 0002 RUNNING",
        f"trial 0002 {trials[2].state}",
    ]


def test_following_on_a_terminal_ends_with_the_last_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, height=30)
    monkeypatch.setattr(console, "console", screen)
    uri = running(tmp_path / "s")
    looks = iter([status.read_status(uri), status.read_status(write(tmp_path / "s", *drawn(3, 2)))])
    monkeypatch.setattr(status, "read_status", lambda uri: next(looks))
    follow.follow(uri, 0.0)
    assert "SUCCEEDED: 3 of 3 trials" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_ctrl_c_ends_the_looking_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow.time, "sleep", interrupted)
    assert follow.follow(running(tmp_path / "s"))["state"] == "RUNNING"


@pytest.mark.parametrize(
    ("num", "num_fields", "metric"), [(1, 8, "miou"), (3, 2, "miou"), (9, 1, "miou"), (30, 4, "loss"), (200, 8, "miou")]
)
def test_a_picture_shows_the_best_in_its_own_colour(num: int, num_fields: int, metric: str) -> None:
    shown = pixels(plot_png(*drawn(num, num_fields, metric, dollars_per_hour=2.0), "drawn"))
    assert 1100 < shown.shape[1] < 1300 and shown.shape[0] < 1000
    assert (shown == ORANGE).all(2).sum() > 500
    assert (shown[:, [0, -1]] == 255).all() and (shown[[0, -1]] == 255).all()  # nothing is cut off


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_sweep_without_a_score_has_a_picture_too() -> None:
    facts, trials = drawn(6, 3)
    for trial in trials:
        trial.state, trial.scores = FAILED, []
    assert not (pixels(plot_png(facts, trials)) == ORANGE).all(2).any()
    assert not (pixels(plot_png(facts, [])) == ORANGE).all(2).any()


def test_the_fields_that_decide_weigh_more_than_chance_and_idle_ones_do_not() -> None:
    facts, trials = drawn(120, 8)
    found = importances(field_axes(facts, trials), trials, "miou")
    assert list(found)[:2] == ["optim.lr", "data.crop_size"]
    assert sum(one.share for one in found.values()) == pytest.approx(1)
    for key in ("optim.lr", "data.crop_size"):
        assert found[key].share > found[key].chance
    for key in ("optim.weight_decay", "optim.warmup_steps"):
        assert found[key].share < found[key].chance


def test_few_trials_say_nothing_of_importance() -> None:
    facts, trials = drawn(9, 3)
    assert importances(field_axes(facts, trials), trials, "miou") == {}


def test_values_stand_on_an_axis_by_their_kind() -> None:
    facts, trials = drawn(30, 8)
    found = field_axes(facts, trials)
    assert found["optim.lr"].position(1e-3) == pytest.approx(0.5)
    assert found["data.crop_size"].position([384, 384]) == pytest.approx(0.5)
    assert found["optim.warmup_steps"].position(100) == pytest.approx(0.25)
    assert found["optim.lr"].position(1.0) == 1.0  # beyond the end


def test_a_choice_of_nothing_is_no_missing_field(tmp_path: Path) -> None:
    facts, trials = drawn(4, 1)
    facts["identity"]["space"]["optim.clip_grad_norm"] = {"choice": [None, 1.0, True]}
    for trial, value in zip(trials, (None, 1.0, None, True)):
        trial.values["optim.clip_grad_norm"] = value
    axis = field_axes(facts, trials)["optim.clip_grad_norm"]
    assert [axis.position(value) for value in (None, 1.0, True)] == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert [format_value(value) for value in axis.choices] == ["null", "1", "true"]
    shown = text_of(status_tables.render(status.read_status(write(tmp_path / "s", facts, trials))))
    assert "null" in shown and "true" in shown
    plot_png(facts, trials)


def test_only_fields_that_vary_are_shown() -> None:
    facts, trials = drawn(5, 3)
    for trial in trials:
        trial.values["data.crop_size"] = [256, 256]
    assert varying_fields(facts, trials) == ["optim.lr", "optim.name"]


def test_training_from_a_sweep_takes_its_best_values_and_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write(tmp_path / "s", *drawn(3, 2))
    text = (ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8").replace("lr: 5e-3", "lr: 7e-4")
    (tmp_path / "s" / "best.yaml").write_text(text, encoding="utf-8")
    given = []
    monkeypatch.setattr(launch, "run", lambda cfg: (given.append(cfg), ({"state": "SUCCEEDED"}, True))[1])
    command("train", "--from-sweep", uri, "train.num_steps=50", "run.uri=elsewhere")
    command("train", "--from-sweep", uri)
    assert [(cfg.optim.lr, cfg.train.num_steps, cfg.run.uri) for cfg in given] == [
        (7e-4, 50, "elsewhere"),
        (7e-4, 300, "demo-out/run"),
    ]
    with pytest.raises(UserError, match="give only one of them"):
        command("train", "configs/demo.yaml", "--from-sweep", uri)


def test_a_sweep_without_a_best_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is not finished"):
        status.find_best_config(running(tmp_path / "a"))
    facts, trials = drawn(3, 2, state="FAILED")
    for trial in trials:
        trial.state, trial.scores, trial.reason = FAILED, [], "out of memory"
    with pytest.raises(UserError, match="no trial has a score: out of memory"):
        status.find_best_config(write(tmp_path / "b", facts, trials))
    with pytest.raises(UserError, match="there is no sweep"):
        status.find_best_config(str(tmp_path / "c"))


def test_train_without_a_config_says_what_to_give() -> None:
    with pytest.raises(UserError, match="Give a config"):
        command("train")


SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_resolve_in_every_trial(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for heading in ("# Data:", "# Command:", "# Searches:", "# Claim:"):
        assert heading in text
    read = plan.read(os.path.relpath(path))
    points = search.points_to_check(read.sweep)
    assert len(points) >= 8
    for point in points:
        cfg = read.config(point, "runs/x")
        assert cfg.train.num_steps < read.full(point, "runs/x").train.num_steps
        assert cfg.train.num_steps % cfg.eval.every_steps == 0


def test_three_kinds_of_sweeps_are_shipped() -> None:
    read = [plan.read(str(path)).sweep for path in SWEEPS]
    assert {(one.searcher, one.scheduler.name) for one in read} == {
        ("tpe", "asha"),
        ("random", "none"),
        ("random", "pbt"),
    }
    assert any(dimension.when for one in read for dimension in one.space.values())


def test_the_page_about_sweeps_explains_every_field_and_its_file_is_one() -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    tree = read_tree(page.split("```yaml\n")[1].split("```")[0].encode(), "docs/sweeps.md")
    assert validate(Sweep, tree, "docs/sweeps.md").scheduler.name == "asha"
    fields = [name for kind in (Sweep, Scheduler, Budget, Confirm, Dimension) for name in kind.model_fields]
    assert not [name for name in fields if not re.search(rf"\b{name}\b", page)]
