"""What every rank of tests/test_ranks.py runs, under torchrun or alone: runs named in a JSON plan, one after the other.

A plan is a list of {"name", "tree", "float64"}; rank 0 leaves NAME.safetensors (weights and buffers), and NAME.json (losses
and the pair table of the validation split) in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from segdist import config, models, record, strategy
from segdist.data import index as indices
from segdist.evaluate import evaluate
from segdist.models.segmenter import Segmenter
from segdist.train import fit
from segdist.world import join, leave


def in_float64() -> None:
    """Makes models and their input float64, so that formulas can be told from rounding."""
    build, to_input = models.build, strategy.to_input
    models.build = lambda cfg, names: build(cfg, names).double()  # type: ignore[assignment]
    strategy.to_input = lambda *a: to_input(*a).double()  # type: ignore[assignment]


def main(plan: str, folder: str) -> None:
    world = join("cpu")
    torch.set_num_threads(1)
    for item in json.loads(Path(plan).read_text(encoding="utf-8")):
        cfg = config.from_tree(item["tree"], item["name"])
        kept: list[Segmenter] = []
        build = models.build
        models.build = lambda *a, build=build, kept=kept: kept.append(build(*a)) or kept[-1]  # type: ignore[assignment, func-returns-value]
        fit(cfg, world)
        models.build = build
        model = kept[0]
        index = indices.load(cfg.data.uri)
        result = evaluate(model, cfg.data.uri, index, "val", None, cfg.io, cfg.eval.batch_size, world)
        if world.is_first:
            out = Path(folder) / item["name"]
            save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, f"{out}.safetensors")
            losses = [r["loss"] for r in record.read_metrics(cfg.run.uri) if r["kind"] == "train"]
            table = result.table.flatten().tolist()
            out.with_suffix(".json").write_text(json.dumps({"losses": losses, "table": table}), encoding="utf-8")
    leave(world)


def formula(plan: str, folder: str) -> None:
    """As main, but the runs are not `fit`: five AdamW steps of a float64 model, without rounding to the grid."""
    from segdist import loss
    from segdist.data.stream import TrainStream
    from segdist.train import train_stream

    world = join("cpu")
    torch.set_num_threads(1)
    strategy._GRID = 0.0  # addition in plain float64
    in_float64()
    for item in json.loads(Path(plan).read_text(encoding="utf-8")):
        cfg = config.from_tree(item["tree"], item["name"])
        index = indices.load(cfg.data.uri)
        torch.manual_seed(0)
        model = models.build(cfg.model, index.labels.names).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        criterion = loss.Criterion(cfg.loss, index.split(cfg.data.train_split).class_pixels)
        step = strategy.Step(model, optimizer, cfg.train, None, criterion, world)
        stream: TrainStream = train_stream(cfg, index, world.share(cfg.train.num_groups), world)
        losses = []
        for number, batch in enumerate(stream.steps(0, 5)):
            tally = world.sum(criterion.tally([group.masks for group in batch]))
            losses.append(step(number, batch, criterion.divisors(tally))[0].item())
        if world.is_first:
            out = Path(folder) / item["name"]
            save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, f"{out}.safetensors")
            out.with_suffix(".json").write_text(json.dumps({"losses": losses}), encoding="utf-8")
    leave(world)


def scores(plan: str, folder: str) -> None:
    """Evaluates finished runs in sliding windows: a plan of {"name", "run", "data", "split"}; rank 0 leaves NAME.json."""
    from segdist.checkpoint import load_trained
    from segdist.evaluate import report
    from segdist.inference import Recipe

    world = join("cpu")
    torch.set_num_threads(1)
    for item in json.loads(Path(plan).read_text(encoding="utf-8")):
        trained, index = load_trained(item["run"], world.device), indices.load(item["data"])
        result = evaluate(
            trained.model, item["data"], index, item["split"], None, trained.cfg.io, 2, world,
            how=Recipe((64, 64)), pictures=True,
        )  # fmt: skip
        if world.is_first:
            tree = report(result, index.labels.names) | {"table": result.table.tolist()}
            (Path(folder) / f"{item['name']}.json").write_text(record.to_json(tree), encoding="utf-8")
    leave(world)


def late(data: str, out: str) -> None:
    """Evaluates with ranks that wait for one another for six seconds in a step, while rank 1 is eight seconds late."""
    import time
    from datetime import timedelta

    from segdist import world as worlds
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
    {"main": main, "formula": formula, "scores": scores, "late": late}[sys.argv[1]](*sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # as the command does among several ranks: see segdist.cli._exit
