"""Commands for training: train, and a look at its config."""

from __future__ import annotations

from typing import Annotated

import typer

from segdist.cli.app import (
    Json,
    app,
    config_app,
    config_of,
    machine,
)


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(help="A YAML config (path or URI); `segdist config show` explains its fields.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    json: Json = False,
) -> None:
    """Train, evaluate and checkpoint; the same command continues an interrupted run.

    Example: `segdist train configs/camvid_unet_r34.yaml data.uri=data/camvid train.num_steps=2000`

    Several ranks: `torchrun --nproc-per-node 4 -m segdist train CONFIG`, or by Ray, on the cluster at RAY_ADDRESS or on this
    machine: `segdist train CONFIG scale.launcher=ray scale.num_ranks=4`.

    Ctrl-C and SIGTERM commit a checkpoint and stop, with exit code 75: not finished, the same command goes on.
    """
    from segdist.launch import run

    summary, is_first = run(config_of(config, overrides))
    machine(json and is_first, summary)
    if summary["state"] != "SUCCEEDED":
        raise typer.Exit(75)  # EX_TEMPFAIL of sysexits.h: try again


@config_app.command("show")
def config_show(
    config: Annotated[str, typer.Argument(help="A YAML config.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    json: Json = False,
) -> None:
    """Print a config resolved: every field, its value and what it means. Fields marked * decide the weights.

    Example: `segdist config show configs/demo.yaml train.num_steps=50`
    """
    from segdist import config as configs
    from segdist.record import to_json

    cfg = config_of(config, overrides)
    print(to_json(configs.to_tree(cfg)) if json else configs.explain(cfg))
