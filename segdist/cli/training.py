"""Commands for training: train, what came of it, and a look at its config."""

from __future__ import annotations

from typing import Annotated

import typer

from segdist.cli import status
from segdist.cli.app import Json, app, check_file, check_png, config_app, config_of, machine, say
from segdist.errors import UserError


@app.command()
def train(
    config: Annotated[
        str | None, typer.Argument(help="A YAML config (path or URI); `segdist config show` explains its fields.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.field=value ...")] = None,
    from_sweep: Annotated[
        str | None, typer.Option("--from-sweep", help="Train the best values of this sweep, in the stead of a config.")
    ] = None,
    json: Json = False,
) -> None:
    """Train, evaluate and checkpoint; the same command continues an interrupted run.

    Example: `segdist train configs/camvid_unet_r34.yaml data.uri=data/camvid train.num_steps=2000`

    Several ranks: `torchrun --nproc-per-node 4 -m segdist train CONFIG`, or by Ray, on the cluster at RAY_ADDRESS or on this
    machine: `segdist train CONFIG scale.launcher=ray scale.num_ranks=4`.

    After a sweep: `segdist train --from-sweep runs/lr_and_crop run.uri=runs/photos`.

    Ctrl-C and SIGTERM commit a checkpoint and stop, with exit code 75: not finished, the same command goes on.
    """
    from segdist.launch import run

    if from_sweep is not None and config is not None and "=" not in config:
        raise UserError(f"{config} and --from-sweep {from_sweep}: give one of them, and fields as section.field=value")
    if from_sweep is not None:
        config, overrides = status.best_config(from_sweep), ([] if config is None else [config]) + (overrides or [])
    if config is None:
        raise UserError("give a config, such as configs/demo.yaml, or --from-sweep SWEEP")
    summary, is_first = run(config_of(config, overrides))
    machine(json and is_first, summary)
    if summary["state"] != "SUCCEEDED":
        raise typer.Exit(75)  # EX_TEMPFAIL of sysexits.h: try again


@app.command()
def tune(
    sweep: Annotated[str, typer.Argument(help="A sweep file (path or URI); examples are in configs/sweeps/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="budget.num_trials=50, set.train.num_steps=200 ...")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run trials that failed once more.")] = False,
    json: Json = False,
) -> None:
    """Try many values of a config's fields, and name the best; the same command continues an interrupted sweep.

    Example: `segdist tune configs/sweeps/lr_and_crop.yaml uri=runs/lr_and_crop set.data.uri=data/camvid`

    Trials share this machine, or the cluster at RAY_ADDRESS. Each is a run below the sweep's uri. The best values are in
    best.yaml there: `segdist train --from-sweep SWEEP` trains them at full length.

    Ctrl-C and SIGTERM let every trial commit, and stop, with exit code 75: not finished, the same command goes on.
    """
    from segdist.sweep.plan import read
    from segdist.sweep.tune import tune as run_sweep

    summary = run_sweep(read(sweep, overrides or []), retry_failed)
    machine(json, summary)
    if summary["state"] != "SUCCEEDED":
        raise typer.Exit(75)


@app.command("status")
def show_status(
    uri: Annotated[str, typer.Argument(help="A run or a sweep, at work or ended (path or URI).")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing it until it has ended, or Ctrl-C.")] = False,
    plot: Annotated[str | None, typer.Option(help="Draw a sweep into this PNG (path or URI).")] = None,
    json: Json = False,
) -> None:
    """Show how a run or a sweep stands: its trials, their scores, what failed and why, time and cost. It only reads.

    Example: `segdist status runs/lr_and_crop --follow --plot sweep.png`
    """
    from segdist.console import console

    if plot:
        check_png("--plot", plot)
        if status.look(uri)["kind"] == "run":
            raise UserError(f"--plot {plot}: {uri} is a run; its curves: `segdist history {uri} --plot {plot}`")
    if follow:
        tree = status.follow(uri)
    else:
        tree = status.look(uri)
        console.print(status.shown(tree))
    if plot:
        status.draw(uri, plot)
        say(f"written: {plot}")
    machine(json, tree)


@app.command()
def history(
    run: Annotated[str, typer.Argument(help="A run, finished or not (path or URI).")],
    every: Annotated[bool, typer.Option("--all", help="A row for every record, not only for evaluations.")] = False,
    out: Annotated[str | None, typer.Option(help="Also write the table to this .tsv, .csv or .json file.")] = None,
    plot: Annotated[str | None, typer.Option(help="Draw the learning curves into this PNG (path or URI).")] = None,
    json: Json = False,
) -> None:
    """Show a run's history: loss, accuracy, F1 (mean Dice), mIoU (mean Jaccard) and learning rate, over all its attempts.

    Example: `segdist history runs/photos --out history.tsv --plot curves.png`
    """
    from segdist import storage
    from segdist.cli import tables
    from segdist.console import console
    from segdist.evaluation import figures
    from segdist.runs import history as histories

    suffix = f".{out.lower().rpartition('.')[2]}" if out else ""
    if out and suffix not in histories.SUFFIXES:
        raise UserError(f"--out {out}: name it .tsv, .csv or .json")
    if plot:
        check_png("--plot", plot)
    if out:
        check_file(out)
    records = histories.records(run)
    table = histories.history(records, every)
    console.print(tables.history(run, table))
    if out:
        storage.write(out, histories.text(table, suffix).encode())
        say(f"written: {out}")
    if plot:
        storage.write(plot, figures.png(figures.learning_curve(records, run)))
        say(f"written: {plot}")
    machine(json, {"run_uri": run, "history": table})


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
    from segdist.runs.record import to_json

    cfg = config_of(config, overrides)
    print(to_json(configs.to_tree(cfg)) if json else configs.explain(cfg))
