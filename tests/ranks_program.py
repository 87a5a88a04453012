"""What ranks of the tests run, under torchrun or alone. A plan is a JSON list; see each mode for its items."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from segdist import config, models
from segdist.config import Config
from segdist.data import index as indices
from segdist.distributed import World, join, leave
from segdist.evaluation.evaluate import evaluate
from segdist.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, Segmenter, Traits
from segdist.runs import record, segments
from segdist.step import exact, update
from segdist.step.ddp import Ddp
from segdist.step.loss import Criterion
from segdist.train.build import train_stream
from segdist.train.loop import fit


def runs(plan: str, folder: str) -> None:
    """Trains each {"name", "tree"}; rank 0 leaves NAME.safetensors (weights, buffers) and NAME.json (losses, pair table).

    "stop": steps of this attempt; "wrong": a mistake to make; "formula": five AdamW steps of a float64 model instead.
    """
    world = join("cpu")
    torch.set_num_threads(1)
    for item in json.loads(Path(plan).read_text(encoding="utf-8")):
        cfg = config.from_tree(item["tree"], item["name"])
        if item.get("formula"):
            model, found = formula(cfg, world, item["formula"] == "plain")
        else:
            with mistaken(item.get("wrong")):
                model, found = training(cfg, world, item.get("stop"))
        if world.is_first:
            out = Path(folder) / item["name"]
            save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, f"{out}.safetensors")
            out.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")
    leave(world)


def training(cfg: Config, world: World, stop: int | None) -> tuple[Segmenter, dict[str, Any]]:
    """One attempt at a run of `stop` steps at most; (its model, losses so far and pair table of the validation split)."""
    scored: list[Segmenter] = []
    whole = update.Step.eval_model
    update.Step.eval_model = lambda self: scored.append(whole(self)) or scored[-1]  # type: ignore[assignment, method-assign, func-returns-value]
    asked: list[None] = []
    fit(cfg, world, notice=lambda: asked.append(None) or ("stop" if len(asked) == stop else None))  # type: ignore[func-returns-value]
    update.Step.eval_model = whole  # type: ignore[method-assign]
    losses = [r["loss"] for r in segments.read_metrics(cfg.run.uri) if r["kind"] == "train"]
    if not scored:  # an attempt that was stopped before
        return models.build(cfg.model, indices.load(cfg.data.uri).labels.names), {"losses": losses}
    result = evaluate(
        scored[-1], cfg.data.uri, indices.load(cfg.data.uri), "val", None, cfg.io, cfg.eval.batch_size, world
    )
    return scored[-1], {"losses": losses, "table": result.table.flatten().tolist()}


@contextlib.contextmanager
def mistaken(wrong: str | None) -> Iterator[None]:
    """Gradients divided in a way that tutorials have, under DDP; the losses that are told stay the right ones."""
    right = Criterion.total, Criterion.divisors, Criterion.__call__, Ddp.backward
    seen: dict[str, Any] = {}

    def total(self: Criterion, counts: Any) -> torch.Tensor:
        seen["rank"] = right[0](self, counts)
        return seen["rank"]

    def divisors(self: Criterion, tallied: torch.Tensor) -> torch.Tensor:
        seen["batch"] = tallied
        return right[1](self, tallied)

    def call(self: Criterion, outputs: Any, masks: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen["group"] = right[0](self, [self.count(masks)])
        return right[2](self, outputs, masks, *rest)

    def backward(self: Ddp, loss: torch.Tensor) -> None:
        pixels = {name: int(counted[1]) for name, counted in seen.items()}
        factor = {
            "not times ranks": 1.0,
            "mean over ranks": pixels["batch"] / max(pixels["rank"], 1),
            "mean over groups": 2 * pixels["batch"] / max(pixels["group"], 1) / 3,  # on two ranks, of three groups
        }[str(wrong)]
        (loss * factor).backward()

    if wrong:
        Criterion.total, Criterion.divisors, Criterion.__call__ = total, divisors, call  # type: ignore[method-assign]
        Ddp.backward = backward  # type: ignore[method-assign]
    yield
    Criterion.total, Criterion.divisors, Criterion.__call__, Ddp.backward = right  # type: ignore[method-assign]


def formula(cfg: Config, world: World, plain: bool) -> tuple[Segmenter, dict[str, Any]]:
    """Five AdamW steps of a float64 model, added in plain float64; `plain`: of one without BatchNorm and dropout."""
    index = indices.load(cfg.data.uri)
    torch.manual_seed(0)
    if plain:
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, index.labels.num_classes, 1))
        traits = Traits(IMAGENET_MEAN, IMAGENET_STD, False, 2, 1, 1, "net.0")
        model = Segmenter(net, lambda net, x: net(x), traits, {})
    else:
        model = models.build(cfg.model, index.labels.names)
    optimizer = torch.optim.AdamW(model.double().train().parameters(), lr=1e-3)
    criterion = Criterion(cfg.loss, index.split("train").class_pixels)
    losses = []
    grid, to_input = exact.GRID, update.to_input
    exact.GRID, update.to_input = 0.0, lambda *a: to_input(*a).double()  # type: ignore[assignment]
    step = update.Step(model, optimizer, cfg.train, cfg.optim, criterion, world)
    stream = train_stream(cfg, index, world.share(cfg.train.num_micro_batches), world)
    with contextlib.closing(stream.steps(0, 5)) as batches:
        for number, batch in enumerate(batches):
            tally = world.sum(criterion.tally([group.masks for group in batch]))
            losses.append(step(number, batch, criterion.divisors(tally))[0].item())
    step.close()
    exact.GRID, update.to_input = grid, to_input
    return model, {"losses": losses}


def scores(plan: str, folder: str) -> None:
    """Evaluates finished runs in sliding windows: a plan of {"name", "run", "data", "split"}; rank 0 leaves NAME.json."""
    from segdist.evaluation.inference import InferenceSettings
    from segdist.evaluation.report import report
    from segdist.runs.restore import load_trained

    world = join("cpu")
    torch.set_num_threads(1)
    for item in json.loads(Path(plan).read_text(encoding="utf-8")):
        trained, index = load_trained(item["run"], world.device), indices.load(item["data"])
        result = evaluate(
            trained.model, item["data"], index, item["split"], None, trained.cfg.io, 2, world,
            settings=InferenceSettings((64, 64)), per_sample=True,
        )  # fmt: skip
        if world.is_first:
            tree = report(result, index.labels.names) | {"table": result.table.tolist()}
            (Path(folder) / f"{item['name']}.json").write_text(record.to_json(tree), encoding="utf-8")
    leave(world)


def late(data: str, out: str) -> None:
    """Evaluates with ranks that wait for one another for six seconds in a step, while rank 1 is eight seconds late."""
    import time
    from datetime import timedelta

    from segdist import distributed as worlds
    from segdist.config import Io
    from segdist.data.stream import EvalBatch

    worlds.TIMEOUT = timedelta(seconds=6)
    world = join("cpu")
    waits = [8.0] if world.rank == 1 else []

    def logits_of(batch: EvalBatch) -> torch.Tensor:
        time.sleep(waits.pop() if waits else 0)
        return torch.zeros(len(batch.masks), 3, 2, 2)

    result = evaluate(None, data, indices.load(data), "val", None, Io(), 2, world, logits_of=logits_of)
    if world.is_first:
        Path(out).write_text(str(result.num_samples), encoding="utf-8")
    leave(world)


if __name__ == "__main__":
    {"runs": runs, "scores": scores, "late": late}[sys.argv[1]](*sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # as the command does among several ranks: see segdist.cli._exit
