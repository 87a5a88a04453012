"""Real torchrun, real gloo: plans of tests/ranks_program.py on so many ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Outcome = tuple[dict[str, torch.Tensor], dict[str, Any]]


def launch(num_ranks: int, plan: list[dict[str, Any]], folder: Path, **environment: str) -> dict[str, Outcome]:
    """Trains the plan on so many ranks; (weights and buffers, what was found) by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    program = [str(Path(__file__).with_name("ranks_program.py")), "runs", str(folder / "plan.json"), str(folder)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    done = subprocess.run(
        [sys.executable, *(torchrun if num_ranks > 1 else []), *program],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        item["name"]: (
            load_file(folder / f"{item['name']}.safetensors"),
            json.loads((folder / f"{item['name']}.json").read_text(encoding="utf-8")),
        )
        for item in plan
    }
