"""Whole runs in one process: they continue, refuse, stop, survive SIGKILL, and always say why."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
import yaml
from conftest import SEGFORMER, UNET, tree
from ranks import launch

from segdist import config, models, storage
from segdist.config import Config
from segdist.distributed import World
from segdist.errors import CheckpointError, ConfigError, DataError, StorageError, UserError
from segdist.runs import checkpoint_manager, checkpoints, record, segments, snapshot
from segdist.runs.writer import BackgroundWriter
from segdist.train import validation
from segdist.train.loop import fit
from segdist.train.setup import inspect_run

Make = Callable[..., Config]
ALONE = World(0, 1, torch.device("cpu"))


def weights(cfg: Config) -> dict[str, torch.Tensor]:
    newest = checkpoints.newest(cfg.run.uri, print)
    assert newest is not None
    return snapshot.load_model(newest)


def losses(cfg: Config) -> list[float]:
    return [r["loss"] for r in segments.read_metrics(cfg.run.uri) if r["kind"] == "train"]


def test_a_run_leaves_what_the_design_says(make_config: Make) -> None:
    cfg = make_config()
    told: list[dict[str, Any]] = []
    summary = fit(cfg, ALONE, told.append)
    run = Path(cfg.run.uri)
    assert {"run.json", "config.yaml", "metrics", "checkpoints", "best.json", "attempts"} <= {
        p.name for p in run.iterdir()
    }
    assert config.load(run / "config.yaml") == config.update_section(cfg, "train", {"precision": "fp32"})
    state = record.load(cfg.run.uri)
    assert state is not None
    assert state["state"] == summary["state"] == "SUCCEEDED"
    assert state["step"] == summary["step"] == 4
    assert [t["step"] for t in told] == [2, 4]
    assert summary["miou"] == max(t["miou"] for t in told)
    assert summary["best_checkpoint"] == checkpoints.resolve(cfg.run.uri)
    assert summary["restarts"] == 0
    assert summary["images_per_second"] > 0
    assert 0 <= summary["wait_share"] <= 1
    assert len(losses(cfg)) == 4


def test_a_finished_run_is_left_alone(make_config: Make) -> None:
    cfg = make_config()
    first = fit(cfg, ALONE)
    before = {p: p.stat().st_mtime_ns for p in Path(cfg.run.uri).rglob("*") if p.is_file()}
    assert fit(cfg, ALONE) == first
    assert {p: p.stat().st_mtime_ns for p in Path(cfg.run.uri).rglob("*") if p.is_file()} == before


def test_a_checkpoint_that_is_asked_for_is_committed_and_the_run_goes_on(make_config: Make) -> None:
    rare = {"every_steps": 100}
    cfg = make_config(checkpoint=rare, eval=rare, train={"num_steps": 5})
    notices = iter([None, "checkpoint"])
    assert fit(cfg, ALONE, notice=lambda: next(notices, None))["step"] == 5
    steps = [checkpoints.step_of(uri) for uri in checkpoints.committed(cfg.run.uri)]
    assert steps[0] == 5 and len(steps) == 2 and steps[1] in (2, 3)


RECIPES: dict[str, dict[str, Any]] = {
    "segformer": {},
    "unet": {"model": UNET},
    "averaged, aux head, dice": {
        "optim": {"ema_decay": 0.9},
        "model": {**UNET, "aux_head": True},
        "loss": {"dice": 1.0},
    },
    "frozen until step 5": {"optim": {"freeze_encoder_steps": 5, "schedule": "cosine"}},
    "frozen until step 7, averaged": {"optim": {"freeze_encoder_steps": 7, "ema_decay": 0.9}, "model": UNET},
    "sgd by layers, under ddp": {"optim": {"name": "sgd", "layer_decay": 0.8}, "train": {"strategy": "ddp"}},
    "fp16": {"train": {"strategy": "ddp", "precision": "fp16"}},
    "recomputed, lovasz": {"train": {"activation_checkpointing": True}, "loss": {"lovasz": 1.0}},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_ten_steps_are_five_and_a_stop_and_five(make_config: Make, tmp_path: Path, recipe: str) -> None:
    fields = {
        **RECIPES[recipe],
        "train": {"num_steps": 10, **RECIPES[recipe].get("train", {})},
        "eval": {"every_steps": 10},
        "checkpoint": {"every_steps": 5},
    }
    straight = make_config(**fields, run={"uri": str(tmp_path / "straight")})
    broken = make_config(**fields, run={"uri": str(tmp_path / "broken")})
    fit(straight, ALONE)
    wishes = iter([None, None, None, None, "stop"])
    halfway = fit(broken, ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    assert (halfway["state"], halfway["step"]) == ("PREEMPTED", 5)
    torch.manual_seed(12345)  # nothing may come from the process's own generator
    ended = fit(broken, ALONE)
    assert (ended["state"], ended["step"], ended["restarts"]) == ("SUCCEEDED", 10, 1)
    expected = weights(straight)
    for name, value in weights(broken).items():
        assert torch.equal(value, expected[name]), name
    assert losses(straight) == losses(broken)


def kill_at_commit(process: forks.Process, run_uri: str, step: int) -> None:
    """SIGKILL as soon as a checkpoint of this step or a later one is committed."""
    deadline = time.monotonic() + 120
    while not any((checkpoints.step_of(u) or 0) >= step for u in checkpoints.committed(run_uri)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("model", [SEGFORMER, pytest.param(UNET, marks=pytest.mark.long)], ids=["segformer", "unet"])
def test_ten_steps_are_five_and_sigkill_and_the_rest(street_data: str, tmp_path: Path, model: dict[str, Any]) -> None:
    """The process dies without a word at some moment after the fifth commit; the same command goes on, bit for bit."""
    path, uris = tmp_path / "run.yaml", [str(tmp_path / n) for n in ("straight", "broken")]
    every = 5 if model is UNET else 1
    fields = {
        "model": model,
        "train": {"num_steps": 10},
        "eval": {"every_steps": 5},
        "checkpoint": {"every_steps": every},
    }
    path.write_text(yaml.safe_dump(tree(street_data, "-", **fields)), encoding="utf-8")
    command = ["-m", "segdist", "train", str(path)]
    forks.run([*command, f"run.uri={uris[0]}"], check=True)
    for _ in range(4):  # a process that ends before it is hit proves nothing: then again
        storage.delete(uris[1])
        kill_at_commit(forks.Process([*command, f"run.uri={uris[1]}"]), uris[1], 5)
        state = record.load(uris[1])
        if state is None or state["state"] != "SUCCEEDED":
            break
    else:
        pytest.fail("the process always ended before it could be killed")
    forks.run([*command, f"run.uri={uris[1]}"], check=True)
    ended = record.load(uris[1])
    assert ended is not None
    assert (ended["state"], ended["attempt"]) == ("SUCCEEDED", 2)
    newest = [snapshot.load_model(str(checkpoints.newest(u, print))) for u in uris]
    for name in newest[0]:
        assert torch.equal(newest[0][name], newest[1][name]), name
    rows = [[(r["step"], r["loss"]) for r in segments.read_metrics(u) if r["kind"] == "train"] for u in uris]
    assert set(rows[1]) <= set(rows[0])  # rows after the last commit may be missing; nothing differs


@pytest.mark.slow
def test_sigterm_commits_and_says_how_to_go_on(street_data: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    fields = {"train": {"num_steps": 5000}, "checkpoint": {"every_steps": 5000}, "eval": {"every_steps": 5000}}
    path.write_text(yaml.safe_dump(tree(street_data, str(tmp_path / "run"), **fields)), encoding="utf-8")
    with forks.killed_at_the_end(forks.Process(["-m", "segdist", "train", str(path), "--json"])) as process:
        while "step 20/" not in process.err:
            assert process.poll() is None, process.err
            time.sleep(0.01)
        process.terminate()
        process.wait(60)
    out, err = process.out, process.err
    summary = json.loads(out.splitlines()[-1])
    assert process.returncode == 75
    assert summary["state"] == "PREEMPTED"
    assert 20 <= summary["step"] < 5000
    assert checkpoints.step_of(checkpoints.newest(str(tmp_path / "run"), print)) == summary["step"]
    assert "run the same command to continue" in err


def test_a_newer_attempt_takes_the_run_over(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An attempt that finds itself outdated stops, and neither its checkpoints nor its record disturb the newer one."""
    cfg = make_config(train={"num_steps": 60}, eval={"every_steps": 60}, checkpoint={"every_steps": 60})
    monkeypatch.setattr("segdist.runs.run_log._HEARTBEAT_SECONDS", 0.0)
    claimed: list[int] = []

    def notice() -> None:
        if not claimed:
            claimed.append(record.claim_attempt(cfg.run.uri))
        time.sleep(0.01)

    summary = fit(cfg, ALONE, notice=notice)
    assert summary["step"] < 60
    assert "a newer attempt owns this run now" in capfd.readouterr().err
    assert checkpoints.committed(cfg.run.uri) == []
    state = record.load(cfg.run.uri)
    assert state is None or state["state"] == "RUNNING"
    assert claimed == [2]


@pytest.mark.parametrize("field", ["optim", "data", "train"])
def test_a_changed_identity_is_refused_with_the_difference(make_config: Make, field: str) -> None:
    fit(make_config(), ALONE)
    change, line = {
        "optim": ({"lr": 5e-3}, "optim.lr: 0.001 -> 0.005"),
        "data": ({"crop_size": [32, 32]}, "data.crop_size: [32, 48] -> [32, 32]"),
        "train": ({"num_steps": 9}, "train.num_steps: 4 -> 9"),
    }[field]
    cfg = make_config(**{field: change})  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as error:
        fit(cfg, ALONE)
    assert line in str(error.value)
    assert f"train.init_from={cfg.run.uri}" in str(error.value)


def test_a_changed_free_field_continues(make_config: Make) -> None:
    wishes = iter(["stop"])
    fit(make_config(), ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    summary = fit(make_config(io={"loader_threads": 1}, eval={"every_steps": 3}, log={"every_steps": 2}), ALONE)
    assert summary["state"] == "SUCCEEDED"


def test_a_new_run_may_begin_from_an_old_ones_weights(make_config: Make, tmp_path: Path) -> None:
    old = make_config()
    fit(old, ALONE)
    new = make_config(
        run={"uri": str(tmp_path / "new")},
        train={"init_from": old.run.uri, "num_steps": 1},
        optim={"lr": 1e-12, "warmup_steps": 0},
    )
    fit(new, ALONE)
    state = record.load(new.run.uri)
    assert state is not None
    assert state["parent"] == checkpoints.resolve(old.run.uri)
    parent = snapshot.load_model(state["parent"])
    for name, value in weights(new).items():
        if "batch_norm" not in name and value.is_floating_point():
            assert torch.allclose(value, parent[name], atol=1e-9), name


def test_a_crash_is_recorded_and_the_run_goes_on(make_config: Make) -> None:
    cfg = make_config()

    def crash(metrics: dict[str, Any]) -> None:
        raise RuntimeError("the bystander broke")

    with pytest.raises(RuntimeError):
        fit(cfg, ALONE, tell=crash)
    state = record.load(cfg.run.uri)
    assert state is not None
    assert state["state"] == "FAILED"
    assert "the bystander broke" in state["error"]
    assert fit(cfg, ALONE)["state"] == "SUCCEEDED"


def test_a_storage_fault_never_stops_a_run_that_recovers(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, real, left = make_config(train={"num_steps": 6}), storage.write, [6]

    def flaky(uri: str, data: bytes) -> None:
        if "/checkpoints/" in uri and left[0] > 0:
            left[0] -= 1
            raise StorageError(f"{uri}: cannot write (503)")
        real(uri, data)

    monkeypatch.setattr(storage, "write", flaky)
    monkeypatch.setattr(BackgroundWriter.__init__, "__defaults__", ((0.01,) * 8,))
    assert fit(cfg, ALONE)["state"] == "SUCCEEDED"
    assert left == [0]


def test_a_run_whose_last_checkpoint_cannot_be_written_does_not_end_well(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, real = make_config(), storage.write

    def broken(uri: str, data: bytes) -> None:
        if "/checkpoints/step-00000004" in uri:
            raise StorageError(f"{uri}: cannot write (No space left on device)")
        real(uri, data)

    monkeypatch.setattr(storage, "write", broken)
    monkeypatch.setattr(BackgroundWriter.__init__, "__defaults__", ((0.01,),))
    with pytest.raises(StorageError, match="Training reached step 4, but its checkpoint could not be written"):
        fit(cfg, ALONE)
    state = record.load(cfg.run.uri)
    assert state is not None
    assert state["state"] == "FAILED"
    monkeypatch.setattr(storage, "write", real)
    assert fit(cfg, ALONE)["state"] == "SUCCEEDED"


def test_weights_are_committed_before_they_are_scored(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation that fails, or is killed, costs no training."""
    cfg = make_config(checkpoint={"every_steps": 100})

    def fails(*_: Any) -> None:
        raise DataError("rotten validation row")

    monkeypatch.setattr("segdist.train.validation.validate", fails)
    with pytest.raises(DataError):
        fit(cfg, ALONE)
    assert checkpoints.step_of(checkpoints.newest(cfg.run.uri, print)) == 2


@pytest.mark.parametrize("at", [2, 4], ids=["in the middle", "at the end"])
def test_an_evaluation_that_was_cut_off_is_made_up_for(make_config: Make, tmp_path: Path, at: int) -> None:
    """Killed while it validates, a run goes on with that very evaluation: the scores are those of a run left alone."""
    cfg, whole = make_config(), make_config(run={"uri": str(tmp_path / "whole")})
    expected = fit(whole, ALONE)
    with pytest.MonkeyPatch.context() as patch:
        real = validation.validate

        def killed(*a: Any) -> Any:
            if checkpoints.step_of(checkpoints.newest(cfg.run.uri, print)) == at:
                raise KeyboardInterrupt
            return real(*a)

        patch.setattr(validation, "validate", killed)
        put = checkpoint_manager.CheckpointManager.put

        def at_once(self: Any, taken: Any) -> None:
            put(self, taken)
            self._writer.flush()

        patch.setattr(checkpoint_manager.CheckpointManager, "put", at_once)
        with pytest.raises(KeyboardInterrupt):
            fit(cfg, ALONE)
    ended = fit(cfg, ALONE)
    assert (ended["state"], ended["miou"], ended["best_step"]) == ("SUCCEEDED", expected["miou"], expected["best_step"])
    rows = [
        [(r["step"], r["miou"]) for r in segments.read_metrics(c.run.uri) if r["kind"] == "eval"] for c in (whole, cfg)
    ]
    assert rows[0] == rows[1]


def test_a_run_falls_back_behind_damage_and_its_new_checkpoints_are_the_newest(make_config: Make) -> None:
    """The newest, and best, checkpoint rots; the run goes on from the one before, and nothing it writes is pruned away."""
    cfg = make_config(train={"num_steps": 8}, eval={"every_steps": 8}, checkpoint={"every_steps": 1, "keep_last": 2})
    wishes = iter([None, None, None, None, "stop"])
    fit(cfg, ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    rotten = checkpoints.committed(cfg.run.uri)[0]
    (Path(rotten) / "model.safetensors").write_bytes(b"rot")
    wishes = iter([None, "stop"])
    again = fit(cfg, ALONE, notice=lambda: next(wishes, None))  # type: ignore[arg-type, return-value]
    assert (again["step"], again["restarts"]) == (6, 1)
    assert [checkpoints.step_of(u) for u in checkpoints.committed(cfg.run.uri)] == [6, 5]
    ended = fit(cfg, ALONE)
    assert ended["state"] == "SUCCEEDED"
    assert ended["best_checkpoint"] == checkpoints.resolve(cfg.run.uri)


def test_a_rotten_best_checkpoint_is_best_no_more(make_config: Make) -> None:
    cfg = make_config()
    summary = fit(cfg, ALONE)
    (Path(summary["best_checkpoint"]) / "model.safetensors").write_bytes(b"rot")
    assert checkpoints.read_best(cfg.run.uri) is None
    assert checkpoints.resolve(cfg.run.uri) != summary["best_checkpoint"]


def test_scores_on_other_validation_data_do_not_compete(make_config: Make) -> None:
    cfg = make_config()
    fit(cfg, ALONE)
    best = checkpoints.read_best(cfg.run.uri)
    assert best is not None
    assert checkpoints.read_best(cfg.run.uri, best["scored_on"]) == best
    assert checkpoints.read_best(cfg.run.uri, "another split") is None


def test_weights_of_another_architecture_are_no_start(make_config: Make, tmp_path: Path) -> None:
    old = make_config()
    fit(old, ALONE)
    new = make_config(run={"uri": str(tmp_path / "new")}, model=UNET, train={"init_from": old.run.uri})
    with pytest.raises(CheckpointError, match="with another encoder or normalisation"):
        fit(new, ALONE)


@pytest.mark.slow
def test_an_encoder_with_unused_parameters_trains_under_ddp_and_continues(street_data: str, tmp_path: Path) -> None:
    """On two ranks: alone there is no DDP, which refuses a parameter that gets no gradient."""
    model = {"name": "unet", "encoder": "efficientnet-b0", "options": {"decoder_channels": [32, 16, 16, 8, 8]}}
    fields = {"train": {"strategy": "ddp", "num_steps": 3}, "checkpoint": {"every_steps": 3}}
    run = tree(street_data, str(tmp_path / "run"), model=model, eval={"every_steps": 3}, **fields)
    net = models.build(config.from_tree(run, "test").model, ["a", "b"])
    assert [name for name, p in net.named_parameters() if not p.requires_grad]  # the encoder's last layers
    launch(2, [{"name": "run", "tree": run, "stop": 1}], tmp_path / "before")
    launch(2, [{"name": "run", "tree": run}], tmp_path / "after")
    state = record.load(str(tmp_path / "run"))
    assert state is not None and (state["state"], state["step"], state["attempt"]) == ("SUCCEEDED", 3, 2)


# -- mistakes, each before the first step ------------------------------------------------------------------------------


def mistaken(cfg: Config, world: World = ALONE) -> str:
    with pytest.raises(UserError) as error:
        fit(cfg, world)
    assert not checkpoints.committed(cfg.run.uri)
    return str(error.value)


def test_a_run_uri_that_cannot_be_written_is_found_before_the_first_step(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    message = mistaken(make_config(run={"uri": str(tmp_path / "file" / "run")}))
    assert "cannot write" in message
    assert str(tmp_path / "file") in message


def test_data_that_is_not_prepared_names_the_command(make_config: Make, tmp_path: Path) -> None:
    assert f"segdist prepare SOURCE {tmp_path}" in mistaken(make_config(data={"uri": str(tmp_path)}))


def test_a_missing_validation_split_is_named(make_config: Make) -> None:
    assert "no split 'valid', only train, val. Did you mean 'val'?" in mistaken(
        make_config(data={"val_split": "valid"})
    )


def test_a_truncated_shard_is_found_before_the_first_step(make_config: Make, street_data: str, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(street_data, tmp_path / "copy"))
    shard = next((copy / "val").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:1000])
    assert f"{shard.name}: this shard is truncated" in mistaken(make_config(data={"uri": str(copy)}))


def test_a_batch_larger_than_the_split_is_refused(make_config: Make) -> None:
    message = mistaken(make_config(train={"global_batch_size": 16}))
    assert "15 samples, but train.global_batch_size=16 needs at least 16" in message and "to 15 or less" in message


def test_more_ranks_than_groups_are_refused(make_config: Make) -> None:
    with pytest.raises(ConfigError, match="3 ranks cannot share 2 micro-batches per step"):
        inspect_run(make_config(), 3)


def test_a_parent_that_is_none_is_refused(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist.*Give the run\.uri"):
        fit(make_config(train={"init_from": str(tmp_path / "nothing")}), ALONE)


def test_a_diverged_run_stops_and_names_remedies(make_config: Make) -> None:
    cfg = make_config(optim={"lr": 1e12, "clip_grad_norm": None}, train={"num_steps": 30}, eval={"every_steps": 30})
    with pytest.raises(UserError, match=r"Training diverged.*Lower optim\.lr"):
        fit(cfg, ALONE)


def test_a_row_that_rots_at_rest_stops_the_run_with_its_shard(
    make_config: Make, street_data: str, tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(street_data, tmp_path / "copy"))
    shard = next((copy / "train").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[200] ^= 255
    shard.write_bytes(data)
    with pytest.raises(
        DataError, match=rf"{shard.name}: row group \d+ has changed since it was written \(sha256 differs\)"
    ):
        fit(make_config(data={"uri": str(copy)}, train={"num_steps": 8}), ALONE)
