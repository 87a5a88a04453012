"""What a sweep costs and finds: a trial against the same run alone, trials per hour against plain Ray Tune, ASHA against all.

Everything trains the same tiny SegFormer on drawn streets, on this machine alone. Contenders take turns, `--rounds` times, and
medians are told. `python benchmarks/sweep.py overhead|rate|asha [--rounds 3]`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "demo"))

BASE: dict[str, Any] = {
    "run": {"uri": "unused"},
    "data": {"crop_size": [64, 96]},
    "model": {"name": "segformer", "size": "tiny"},
    "train": {"num_steps": 60, "global_batch_size": 4, "micro_batch_size": 2},
    "optim": {"lr": 1e-3},
    "eval": {"every_steps": 20, "num_previews": 0},
    "checkpoint": {"every_steps": 20},
    "scale": {"device": "cpu", "cpu_threads": 1},
}
PLAIN = """
import sys, time
from segdist.launch.ray_cluster import connect
connect()
import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from segdist import config

def loop(values):
    import torch
    from segdist import config
    from segdist.train import fit
    from segdist.distributed import World
    import ray.train
    torch.set_num_threads(1)
    cfg = config.load(values["base"], [f"optim.lr={values['lr']}", f"run.uri={values['run']}"])
    fit(cfg, World(0, 1, torch.device("cpu")), lambda metrics: ray.train.report(metrics))

def trial(values):
    name = tune.get_context().get_trial_id()
    from ray.tune.integration.ray_train import TuneReportCallback
    TorchTrainer(loop, train_loop_config={**values, "run": f"{values['folder']}/{name}"},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name=name, storage_path=values["folder"] + "/ray", callbacks=[TuneReportCallback()])).fit()

folder, base, *rates = sys.argv[1:]
found = tune.Tuner(tune.with_resources(trial, {"node:__internal_head__": 0.001}),
    param_space={"folder": folder, "base": base, "lr": tune.grid_search([float(rate) for rate in rates])},
    tune_config=tune.TuneConfig(metric="miou", mode="max", max_concurrent_trials=2),
    run_config=tune.RunConfig(name="sweep", storage_path=folder + "/tune", verbose=0)).fit()
assert not found.errors, found.errors
"""


def write(folder: Path, rates: list[float], num_steps: int = 60, **fields: Any) -> Path:
    """The file of a sweep over these learning rates."""
    base = {**BASE, "train": {**BASE["train"], "num_steps": num_steps}, "data": {**BASE["data"], "uri": str(DATA)}}
    (folder / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    asked = {"uri": str(folder / "sweep"), "config": "base.yaml", "space": {"optim.lr": {"grid": rates}}}
    (folder / "sweep.yaml").write_text(
        yaml.safe_dump({**asked, "confirm": {"num_best": 0}, **fields}), encoding="utf-8"
    )
    return folder / "sweep.yaml"


def seconds(*command: str) -> float:
    began = time.monotonic()
    with tempfile.TemporaryFile() as said:
        code = subprocess.run(command, stdout=said, stderr=said, check=False).returncode
        said.seek(0)
        assert code == 0, said.read().decode()[-3000:]
    return time.monotonic() - began


def segdist(*arguments: object) -> float:
    return seconds(sys.executable, "-m", "segdist", *map(str, arguments))


def in_turn(rounds: int, contenders: dict[str, Callable[[Path], float]]) -> dict[str, Any]:
    """Median and all seconds of each, in a fresh folder each time."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(Path(folder)))
            print(f"round {number}: {name}: {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return {name: {"median": statistics.median(s), "all": [round(one, 1) for one in s]} for name, s in found.items()}


def overhead(rounds: int) -> dict[str, Any]:
    """Seconds of the run alone, and of sweeps of one and of three such trials, one at a time."""

    def alone(folder: Path) -> float:
        write(folder, [1e-3])
        return segdist("train", folder / "base.yaml", f"run.uri={folder / 'run'}")

    def trials(num: int) -> Callable[[Path], float]:
        rates = [1e-3 * (1 + n / 10) for n in range(num)]
        return lambda folder: segdist("tune", write(folder, rates, max_concurrent=1))

    found = in_turn(rounds, {"alone": alone, "sweep of 1": trials(1), "sweep of 3": trials(3)})
    more = (found["sweep of 3"]["median"] - found["sweep of 1"]["median"]) / 2
    return found | {"one more trial": more, "of the run alone": more / found["alone"]["median"]}


def rate(rounds: int, num: int = 6) -> dict[str, Any]:
    """Trials per hour, two at a time, of ours and of a Ray Tune function that builds a TorchTrainer around the same `fit`."""
    rates = [1e-3 * (1 + n / 10) for n in range(num)]

    def plain(folder: Path) -> float:
        write(folder, rates)
        (folder / "plain.py").write_text(PLAIN, encoding="utf-8")
        return seconds(
            sys.executable, str(folder / "plain.py"), str(folder), str(folder / "base.yaml"), *map(str, rates)
        )

    found = in_turn(
        rounds, {"segdist": lambda folder: segdist("tune", write(folder, rates, max_concurrent=2)), "plain": plain}
    )
    return found | {f"{name} trials/h": 3600 * num / found[name]["median"] for name in ("segdist", "plain")}


def asha(rounds: int) -> dict[str, Any]:
    """What ASHA picks of nine learning rates over eight decades, against all of them trained in full."""
    rates, found = [10.0**-n for n in range(9)], dict[str, Any]()
    for name in ("none", "asha"):
        with tempfile.TemporaryDirectory() as folder:
            file = write(
                Path(folder), rates, 180, scheduler={"name": name}, max_concurrent=2, set={"eval": {"every_steps": 20}}
            )
            passed = segdist("tune", file)
            tree = json.loads((Path(folder) / "sweep" / "sweep.json").read_text())
        scores = {t["values"]["optim.lr"]: max((s["miou"] for s in t["scores"]), default=None) for t in tree["trials"]}
        steps = sum(t["scores"][-1]["step"] for t in tree["trials"] if t["scores"])
        found[name] = {"seconds": passed, "steps": steps, "pick": tree["best"]["values"], "miou": scores}
    return found


def main() -> None:
    global DATA
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["overhead", "rate", "asha"])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory() as folder:
        import streets

        streets.draw_folder(Path(folder, "photos"), 40, 96, 64, seed=1)
        DATA = Path(folder, "data")
        segdist("prepare", Path(folder, "photos"), DATA)
        found = {"overhead": overhead, "rate": rate, "asha": asha}[given.what](given.rounds)
    from segdist.runs.record import versions

    print(json.dumps({given.what: found, "cpus": os.cpu_count(), "versions": versions()}, indent=1))


DATA = Path()
if __name__ == "__main__":
    main()
