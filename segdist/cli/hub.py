"""The command that writes to the Hugging Face Hub: push."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segdist.cli.app import Json, app, print_json, say


@app.command()
def push(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A run, whose best checkpoint is used, one checkpoint, or a prepared dataset. A path or URI.",
        ),
    ],
    repo_id: Annotated[
        str,
        typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the Hugging Face Hub. Created if it does not exist."),
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Visibility of the repository if it is created now.")
    ] = True,
    samples: Annotated[
        bool | None,
        typer.Option(
            "--samples/--no-samples",
            help="Show validation images with mask and prediction in the card. [default: only if the repository is private]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the model of another run, or another dataset.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            help="Licence in the card, for example cc-by-4.0. [default: the licence of the initial weights, or of the dataset]"
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            help="Before pushing, load the model with its own library in another process, and compare the logits."
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Push a model or a dataset to the Hugging Face Hub.

    The repository gets a card that says how the model or dataset was made. It is private unless you give --public. The command
    needs a token with write access, in HF_TOKEN or from `hf auth login`.

    \b
    Example:
      segdist push runs/photos me/photos

    To push the best model during training, set hub.repo_id in the config.
    """
    from segdist import storage
    from segdist.data.index import NAME
    from segdist.launch.stop import terminable

    if storage.exists(storage.join(source, NAME)):
        from segdist.publish.push_data import push_data

        with terminable():
            summary = push_data(source, repo_id, private, overwrite, licence)
        say(f"{_done(summary)} {source}: {summary['url']}. To train on it: data.uri=hf://datasets/{repo_id}")
    else:
        from segdist.publish.push import push as run

        with terminable():
            summary = run(source, repo_id, private, samples, overwrite, verify, licence)
        say(f"{_done(summary)} {summary['checkpoint']}: {summary['url']}")
    print_json(json, summary)


def _done(summary: dict[str, Any]) -> str:
    return "pushed" if summary["changed"] else "unchanged on the Hub:"
