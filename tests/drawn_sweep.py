"""A sweep that nobody made: its record, with scores by a formula, for tests and for the picture in docs/.

`python tests/drawn_sweep.py docs/sweep.png` draws that picture.
"""

from __future__ import annotations

import io
import itertools
import math
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from segdist.config import to_tree
from segdist.config.reading import validate
from segdist.config.sweep import Sweep
from segdist.runs import record
from segdist.sweep.ledger import FAILED, STOPPED, SUCCEEDED, Trial
from segdist.sweep.plot import plot_png
from segdist.sweep.space import Point, points

BEGAN = 1_750_000_000.0
SPACE: dict[str, Any] = {
    "optim.lr": {"loguniform": [1e-5, 1e-1]},
    "data.crop_size": {"choice": [[256, 256], [384, 384], [512, 512]]},
    "optim.name": {"choice": ["adamw", "sgd"]},
    "optim.momentum": {"uniform": [0.8, 0.99], "when": {"optim.name": ["sgd"]}},
    "optim.weight_decay": {"loguniform": [1e-4, 1e-1]},
    "data.brightness": {"uniform": [0, 0.5]},
    "optim.warmup_steps": {"quniform": [0, 400, 50]},
    "loss.dice": {"choice": [0, 0.5, 1]},
}


def drawn(num: int, num_fields: int = 8, metric: str = "miou", **more: Any) -> tuple[dict[str, Any], list[Trial]]:
    """(the facts, the trials) of a finished sweep under ASHA, as `ledger.read` gives them; `more` replaces facts."""
    space = dict(list(SPACE.items())[:num_fields])
    tree = {"uri": "sweeps/drawn", "config": "c.yaml", "space": space, "metric": metric, "scheduler": {"name": "asha"}}
    plan = to_tree(validate(Sweep, tree, "drawn"))
    rng, now, trials = random.Random(1), BEGAN, []
    made = points(validate(Sweep, tree, "drawn").space, 0)
    for number, point in enumerate(itertools.islice(made, num)):
        now += rng.uniform(200, 500)
        trials.append(_trial(number, point, now, rng))
    identity = {key: plan[key] for key in ("space", "metric", "searcher", "scheduler", "seed")}
    identity["config"] = {"train": {"num_steps": 900}}
    facts = {
        "version": 1, "identity": identity, "metric": metric, "began": BEGAN, "seconds": now + 400 - BEGAN, "best": None,
        "state": "SUCCEEDED", "reason": None, "num_trials": num, "dollars_per_hour": None, "scheduler": "asha", "attempt": 1,
        "heartbeat": now, "exploits": [], "num_ranks": 1, "data": {},
    }  # fmt: skip
    return facts | more, trials


def _trial(number: int, point: Point, begins: float, rng: random.Random) -> Trial:
    lr = math.log10(point["optim.lr"])
    id = f"{number:04d}"
    trial = Trial(id, point, f"trials/{id}")
    if lr > -1.5:
        trial.state, trial.reason, trial.seconds = (
            FAILED,
            "Training diverged at step 12: loss nan, gradient norm nan",
            40,
        )
        return trial
    reach = 0.78 - 0.05 * (lr + 3 - 0.4 * (point.get("optim.name") == "sgd")) ** 2 + rng.gauss(0, 0.012)
    reach += 0.03 * ([256, 256], [384, 384], [512, 512]).index(list(point.get("data.crop_size", [256, 256])))
    reach += 0.02 * (point.get("loss.dice", 0) > 0)
    reach = max(0.05, reach)
    ends = 900 if reach > 0.76 or number < 2 else 300 if reach > 0.7 else 100
    for step in range(100, ends + 1, 100):
        miou = reach * (1 - math.exp(-step / 220)) + rng.gauss(0, 0.003)
        trial.add_score(step, miou, 2.2 * (1 - miou) ** 1.5)
        trial.scores[-1].time = begins + step
    trial.seconds = float(ends)
    trial.state = SUCCEEDED if ends == 900 else STOPPED
    trial.reason = None if ends == 900 else f"by asha, after step {ends}"
    return trial


def write(folder: Path, facts: dict[str, Any], trials: list[Trial]) -> str:
    """The sweep's record in a folder; its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    text = record.to_json({**facts, "trials": [asdict(trial) for trial in trials]})
    (folder / "sweep.json").write_text(text, encoding="utf-8")
    return str(folder)


if __name__ == "__main__":
    shown = Image.open(io.BytesIO(plot_png(*drawn(60, 6, dollars_per_hour=2.5), "a synthetic sweep")))
    shown.convert("RGB").quantize(64).save(sys.argv[1], optimize=True)  # a smaller file
