"""Write the confusion matrix of a run's best checkpoint, computed by NUM Ray ranks: `ray_table.py RUN DATA SPLIT NUM OUT`."""

from __future__ import annotations

import json
import sys
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from segdist import storage
from segdist.data import index as indices
from segdist.distributed import join
from segdist.evaluation.evaluate import evaluate
from segdist.launch.ray_cluster import connect
from segdist.runs.restore import load_trained


def rank_main(job: dict[str, Any]) -> None:
    world = join("cpu")
    torch.set_num_threads(1)
    trained, index = load_trained(job["run"], world.device), indices.load(job["data"])
    result = evaluate(trained.model, job["data"], index, job["split"], None, trained.cfg.io, 3, world)
    if world.is_first:
        storage.write(job["out"], json.dumps([world.num_ranks, result.table.flatten().tolist()]).encode())


if __name__ == "__main__":
    run, data, split, num, out = sys.argv[1:]
    connect()
    TorchTrainer(
        rank_main,
        train_loop_config={"run": run, "data": data, "split": split, "out": out},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=int(num)),
        run_config=ray.train.RunConfig(name=f"table-{num}", storage_path="s3://tests/ray"),
    ).fit()
