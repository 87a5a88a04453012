"""Commands for training: train, tune, status, history, config show."""

from __future__ import annotations

from typing import Annotated

import typer

from segdist.cli import follow as follower
from segdist.cli import status, status_tables
from segdist.cli.app import Json, app, check_file, check_png, config_app, config_of, print_json, say
from segdist.errors import TRY_AGAIN, UserError
from segdist.runs import record

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDES", help="Fields to change, as section.field=value. Example: train.num_steps=2000"),
]


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="A YAML config (path or URI). `segdist config show CONFIG` explains its fields."
        ),
    ] = None,
    overrides: Overrides = None,
    from_sweep: Annotated[
        str | None,
        typer.Option("--from-sweep", help="Train the best values of this sweep (path or URI). Replaces CONFIG."),
    ] = None,
    json: Json = False,
) -> None:
    """Train a model, or continue an interrupted run.

    The run is evaluated and checkpointed as its config says. If it is interrupted, run the same command again: it continues
    from the newest checkpoint.

    \b
    Example:
      segdist train configs/camvid_unet_r34.yaml data.uri=data/camvid

    \b
    On 4 GPUs, with torchrun or with Ray:
      torchrun --nproc-per-node 4 -m segdist train CONFIG
      segdist train CONFIG scale.launcher=ray scale.num_ranks=4

    Ray uses the cluster at RAY_ADDRESS if it is set, otherwise this machine.

    \b
    With the best values of a sweep:
      segdist train --from-sweep runs/lr_and_crop run.uri=runs/photos

    Without run.uri, that run goes to `best/` in the sweep's uri.

    Ctrl-C and SIGTERM save a checkpoint before the command ends. Exit code 75 means that the run is not finished.
    """
    from segdist.launch import run

    if from_sweep is not None and config is not None and "=" not in config:
        raise UserError(f"{config} and --from-sweep {from_sweep}: give only one of them")
    if from_sweep is not None:
        config, overrides = (
            status.find_best_config(from_sweep),
            ([] if config is None else [config]) + (overrides or []),
        )
    if config is None:
        raise UserError("no config was given. Give a config such as configs/demo.yaml, or --from-sweep SWEEP")
    summary, is_first = run(config_of(config, overrides))
    print_json(json and is_first, summary)
    if summary["state"] != record.SUCCEEDED:
        raise typer.Exit(TRY_AGAIN)


@app.command()
def tune(
    sweep: Annotated[
        str, typer.Argument(metavar="SWEEP", help="A sweep file (path or URI). Examples are in configs/sweeps/.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OVERRIDES",
            help="Fields of the sweep file to change. Example: budget.num_trials=50 set.train.num_steps=200",
        ),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    json: Json = False,
) -> None:
    """Search for the best values of a config's fields.

    Each trial is a run below the sweep's uri. Trials run on the cluster at RAY_ADDRESS if it is set, otherwise on this machine.
    The best values are written to best.yaml in the sweep's uri. If the sweep is interrupted, run the same command again.

    \b
    Example:
      segdist tune configs/sweeps/lr_and_crop.yaml uri=runs/lr_and_crop \\
        set.data.uri=data/camvid

    \b
    Then train the best values at full length:
      segdist train --from-sweep runs/lr_and_crop

    On Ctrl-C and SIGTERM, every trial saves a checkpoint before the command ends. Exit code 75 means that the sweep is not
    finished.
    """
    from segdist.sweep.plan import read
    from segdist.sweep.tune import tune as run_sweep

    summary = run_sweep(read(sweep, overrides or []), retry_failed)
    print_json(json, summary)
    if summary["state"] != record.SUCCEEDED:
        raise typer.Exit(TRY_AGAIN)


@app.command("status")
def show_status(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A run or a sweep, running or ended (path or URI).")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Update the display until the run or sweep ends, or until Ctrl-C.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(help="Plot a sweep into this PNG file (path or URI). For a run, use `segdist history --plot`."),
    ] = None,
    json: Json = False,
) -> None:
    """Show the state of a run or a sweep.

    For a run: its step, best mIoU, checkpoint and heartbeat. For a sweep: its trials with their scores, the reasons for
    failures, time and cost. The command only reads, so it is safe at any time.

    \b
    Example:
      segdist status runs/lr_and_crop --follow --plot sweep.png
    """
    from segdist.console import console

    if plot:
        check_png("--plot", plot)
        if status.read_status(uri)["kind"] == "run":
            raise UserError(
                f"--plot {plot}: {uri} is a run, not a sweep. Plot its curves with `segdist history {uri} --plot {plot}`"
            )
    if follow:
        tree = follower.follow(uri)
    else:
        tree = status.read_status(uri)
        console.print(status_tables.render(tree))
    if plot:
        status.write_plot(uri, plot)
        say(f"written: {plot}")
    print_json(json, tree)


@app.command()
def history(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, finished or not (path or URI).")],
    every: Annotated[
        bool, typer.Option("--all", help="Show a row for every record. By default, only evaluations are shown.")
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="Also write the table to this file (path or URI) ending in .tsv, .csv or .json.")
    ] = None,
    plot: Annotated[str | None, typer.Option(help="Plot the learning curves into this PNG file (path or URI).")] = None,
    json: Json = False,
) -> None:
    """Show the scores of a run over time.

    The table has loss, accuracy, F1 (mean Dice), mIoU (mean Jaccard) and learning rate, over all attempts of the run.

    \b
    Example:
      segdist history runs/photos --out history.tsv --plot curves.png
    """
    from segdist import storage
    from segdist.cli import tables
    from segdist.console import console
    from segdist.evaluation import figures
    from segdist.runs import history as histories

    suffix = f".{out.lower().rpartition('.')[2]}" if out else ""
    if out and suffix not in histories.SUFFIXES:
        raise UserError(f"--out {out}: unknown file type. Give a name that ends in .tsv, .csv or .json")
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
    print_json(json, {"run_uri": run, "history": table})


@config_app.command("show")
def config_show(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML config (path or URI).")],
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Show every field of a config, its value and its meaning.

    Fields marked * decide the weights: a run cannot be continued with another value of them.

    \b
    Example:
      segdist config show configs/demo.yaml train.num_steps=50
    """
    from segdist import config as configs
    from segdist.runs.record import to_json

    cfg = config_of(config, overrides)
    print(to_json(configs.to_tree(cfg)) if json else configs.explain(cfg))
