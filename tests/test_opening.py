"""What is settled before the first step: `auto`, once for the whole life of a run, and averaged weights on their way out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segdist import config, storage
from segdist.config import Config
from segdist.data import index as indices
from segdist.distributed import World
from segdist.errors import ConfigError, UserError
from segdist.evaluation.report import evaluate_checkpoint
from segdist.publish.export import export
from segdist.runs import checkpoints, record, snapshot
from segdist.runs.restore import load_trained
from segdist.step.loss import Criterion
from segdist.train import auto_batch, setup
from segdist.train.loop import fit
from segdist.train.setup import check_identity

Make = Callable[..., Config]
ALONE = World(0, 1, torch.device("cpu"))
GPU = World(0, 1, torch.device("cuda"))  # never spoken to
AUTO = {"num_steps": 4, "global_batch_size": 12, "micro_batch_size": "auto"}


def stopped(step: int) -> Callable[[], Any]:
    wishes = iter([None] * (step - 1) + ["stop"])
    return lambda: next(wishes, None)


@pytest.mark.parametrize(
    ("room", "elsewhere", "num_ranks", "size"),
    [(100, 100, 1, 12), (5, 100, 1, 4), (100, 100, 2, 6), (100, 3, 2, 3), (100, 100, 5, 2), (1, 1, 12, 1)],
)
def test_auto_takes_the_largest_group_that_fits_on_all_and_leaves_none_without(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, room: int, elsewhere: int, num_ranks: int, size: int
) -> None:
    """`elsewhere` is what another rank's device has room for."""
    cfg = make_config(train=AUTO)
    tried: list[tuple[int, int]] = []
    monkeypatch.setattr(
        auto_batch, "fits", lambda cfg, index, size, num, device: tried.append((size, num)) or size <= room
    )
    monkeypatch.setattr(World, "sum_long_timeout", lambda self, misfits: misfits + (tried[-1][0] > elsewhere))
    assert auto_batch.micro_batch_size(cfg, indices.load(cfg.data.uri), replace(GPU, num_ranks=num_ranks)) == size
    assert [s for s, _ in tried] == [s for s in (12, 6, 4, 3, 2, 1) if size <= s <= 12 // num_ranks]
    assert 12 // size >= num_ranks
    assert all(num == min(2, math.ceil(12 // s / num_ranks)) for s, num in tried)  # gradients lie beside activations


@pytest.mark.parametrize(("batch", "size"), [(8, 4), (6, 3), (14, 2), (7, 7)])
def test_a_model_that_needs_pairs_never_gets_single_images(make_config: Make, batch: int, size: int) -> None:
    model = {"name": "deeplabv3", "encoder": "resnet18"}
    cfg = make_config(model=model, train={**AUTO, "global_batch_size": batch})
    assert auto_batch.micro_batch_size(cfg, indices.load(cfg.data.uri), ALONE) == size
    with pytest.raises(UserError, match=r"of at least 2 images, because of model\.name=deeplabv3\. Set it to \d+"):
        auto_batch.micro_batch_size(cfg, indices.load(cfg.data.uri), replace(ALONE, num_ranks=batch))


def test_auto_names_remedies_where_one_image_does_not_fit(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_config(train=AUTO)
    monkeypatch.setattr(auto_batch, "fits", lambda *a: False)
    with pytest.raises(
        UserError, match=r"training on one image of \[32, 48\] px does not fit .* Lower data\.crop_size"
    ):
        auto_batch.micro_batch_size(cfg, indices.load(cfg.data.uri), GPU)


@pytest.mark.parametrize("strategy", ["exact", "ddp", "deepspeed"])
def test_a_try_is_two_updates_of_the_runs_own_recipe(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    cfg = make_config(train={**AUTO, "strategy": strategy}, loss={"dice": 1.0})
    index, honest, seen = indices.load(cfg.data.uri), Criterion.__call__, []

    def counted(self: Criterion, outputs: Any, masks: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(tuple(masks.shape))
        return honest(self, outputs, masks, *rest)

    monkeypatch.setattr(Criterion, "__call__", counted)
    assert auto_batch.fits(cfg, index, 3, 2, torch.device("cpu"))
    assert seen == [(3, 32, 48)] * 4

    def full(*rest: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Criterion, "__call__", full)
    assert not auto_batch.fits(cfg, index, 3, 1, torch.device("cpu"))
    monkeypatch.setattr(auto_batch.optim, "build", full)  # the states of the optimizer may be what does not fit
    assert not auto_batch.fits(cfg, index, 3, 1, torch.device("cpu"))


@pytest.mark.parametrize("lost", [False, True], ids=["", "without run.json"])
def test_auto_is_settled_once(make_config: Make, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    """A run that began on one machine goes on with the same groups on another, where more or less would fit."""
    cfg = make_config(train=AUTO)
    fit(cfg, ALONE, notice=stopped(2))  # type: ignore[arg-type]
    run = Path(cfg.run.uri)
    assert config.load(run / "config.yaml").train.micro_batch_size == 4
    if lost:
        (run / "run.json").unlink()
    monkeypatch.setattr(auto_batch, "micro_batch_size", lambda *a: pytest.fail("it was settled before"))
    monkeypatch.setattr(setup, "precision_of", lambda *a: "bf16")
    with pytest.raises(ConfigError, match=r"train\.micro_batch_size: 4 -> 2"):
        fit(make_config(train={**AUTO, "micro_batch_size": 2}), ALONE)
    assert fit(cfg, ALONE)["state"] == "SUCCEEDED"
    identity = (record.load(cfg.run.uri) or {})["identity"]
    assert (identity["train.micro_batch_size"], identity["train.precision"]) == (4, "fp32")


def test_averaged_weights_are_what_is_scored_exported_and_begun_from(make_config: Make, tmp_path: Path) -> None:
    cfg = make_config(optim={"ema_decay": 0.9}, train={"num_steps": 6}, eval={"every_steps": 6})
    told: list[dict[str, Any]] = []
    fit(cfg, ALONE, told.append, notice=stopped(3))  # type: ignore[arg-type]
    fit(cfg, ALONE, told.append)
    uri = checkpoints.resolve(cfg.run.uri)
    average, trained = snapshot.load_model(uri), snapshot.load_model(uri, raw=True)
    assert not torch.equal(average["net.decode_head.classifier.weight"], trained["net.decode_head.classifier.weight"])
    scored = evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu")
    raw = evaluate_checkpoint(cfg.run.uri, None, "val", None, "cpu", raw=True)
    assert (scored["weights"], raw["weights"]) == ("averaged", "raw")
    assert scored["miou"] == told[-1]["miou"] and scored["loss"] == told[-1]["loss"] != raw["loss"]
    for weights, is_raw in ((average, False), (trained, True)):
        out = str(tmp_path / f"export {is_raw}")
        export(load_trained(cfg.run.uri, ALONE.device, is_raw), out)
        stored = snapshot.load_tensors(storage.read(f"{out}/model.safetensors"))
        name = "decode_head.classifier.weight"
        assert torch.equal(stored[name], weights[f"net.{name}"])
        about = json.loads(storage.read(f"{out}/segdist.json"))
        assert (about["metrics"] is None) == is_raw  # nobody has scored the raw ones
    child = make_config(
        run={"uri": str(tmp_path / "child")}, train={"init_from": cfg.run.uri, "num_steps": 2}, optim={"lr": 1e-12}
    )
    fit(child, ALONE)
    begun = snapshot.load_model(checkpoints.resolve(child.run.uri))
    assert torch.allclose(begun["net.decode_head.classifier.weight"], average["net.decode_head.classifier.weight"])


def test_raw_means_nothing_where_nothing_is_averaged(make_config: Make) -> None:
    cfg = make_config()
    fit(cfg, ALONE)
    assert load_trained(cfg.run.uri, ALONE.device, raw=True).weights == "trained"


def test_a_run_with_a_field_that_is_gone_is_told_that_it_cannot_be_continued() -> None:
    with pytest.raises(
        ConfigError, match=r"lanes_per_slot: 4 -> None \(this version has no such key\)\nStart a new run"
    ):
        check_identity("runs/x", {"data.lanes_per_slot": 4, "optim.lr": 1}, {"optim.lr": 1})
    with pytest.raises(
        ConfigError, match=r"optim.lr: 2 -> 1\nUndo these changes to continue the run. Or start a new run"
    ):
        check_identity("runs/x", {"optim.lr": 2}, {"optim.lr": 1})
