"""The command that writes to the Hugging Face Hub: push."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segdist.cli.app import Json, app, machine, say


@app.command()
def push(
    source: Annotated[
        str,
        typer.Argument(
            help="A run (its best checkpoint is taken), one checkpoint, or a prepared data set; a path or URI."
        ),
    ],
    repo_id: Annotated[
        str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub; created where it does not exist.")
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who sees a repository that is created now.")
    ] = True,
    samples: Annotated[
        bool | None,
        typer.Option(
            "--samples/--no-samples",
            help="Show validation images in the card, with truth and prediction. [default: where the repository is private]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the model of another run, or another data set.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            help="Licence that the card states, such as cc-by-4.0. [default: that of the weights it began from, or of the data]"
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="First have the model's library load it in another process, and compare its logits.")
    ] = True,
    json: Json = False,
) -> None:
    """Put a run's best model, or a data set, on the Hugging Face Hub, with a card that tells how it was made.

    Example: `segdist push runs/photos me/photos`, with a token that may write in HF_TOKEN, or given to `hf auth login`

    The repository is private unless you say `--public`. `hub.repo_id=me/photos` in a config does the same while a run trains.
    """
    from segdist import storage
    from segdist.data.index import NAME
    from segdist.launch.stop import terminable

    if storage.exists(storage.join(source, NAME)):
        from segdist.publish.push_data import push_data

        with terminable():
            summary = push_data(source, repo_id, private, overwrite, licence)
        say(f"{_done(summary)} {source}: {summary['url']}; to train on it: data.uri=hf://datasets/{repo_id}")
    else:
        from segdist.publish.push import push as run

        with terminable():
            summary = run(source, repo_id, private, samples, overwrite, verify, licence)
        say(f"{_done(summary)} {summary['checkpoint']}: {summary['url']}")
    machine(json, summary)


def _done(summary: dict[str, Any]) -> str:
    return "pushed" if summary["changed"] else "nothing changed: the Hub holds all of"
