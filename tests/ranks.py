"""Real gloo among forked ranks: plans of tests/ranks_program.py on so many of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import forks
import torch
from safetensors.torch import load_file

Outcome = tuple[dict[str, torch.Tensor], dict[str, Any]]


def launch(num_ranks: int, plan: list[dict[str, Any]], folder: Path, **environment: str) -> dict[str, Outcome]:
    """Trains the plan on so many ranks; (weights and buffers, what was found) by name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    program = [str(Path(__file__).with_name("ranks_program.py")), "runs", str(folder / "plan.json"), str(folder)]
    done = forks.ranks(num_ranks, program, env={**os.environ, **environment}, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        item["name"]: (
            load_file(folder / f"{item['name']}.safetensors"),
            json.loads((folder / f"{item['name']}.json").read_text(encoding="utf-8")),
        )
        for item in plan
    }
