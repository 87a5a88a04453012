"""The Typer app, and the options and functions that several commands share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from segdist.errors import UserError

app = typer.Typer(
    help="Fine-tune semantic segmentation models on your own images, and score them exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Inspect configs.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        from segdist import __version__

        print(f"segdist {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON on stdout.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Device for the model. auto uses CUDA if there is a GPU.")
]
RunOrCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A run, whose best checkpoint is used, or one checkpoint. A path or URI."
    ),
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Use the raw weights instead of the EMA weights. Matters only if the run sets optim.ema_decay."
    ),
]


def config_of(uri: str, overrides: list[str] | None) -> Any:
    """Load the config at a path or URI."""
    from segdist import config as configs

    if "://" not in uri:
        return configs.load(uri, overrides or [])
    from segdist import storage

    return configs.loads(storage.read(uri), uri, overrides or [])


def check_file(uri: str) -> None:
    """Raise StorageError if a file cannot be written at this path or URI. An existing file is not changed."""
    from segdist import storage

    storage.check_writable(uri.rpartition("/")[0] or ".")


def check_png(option: str, uri: str) -> None:
    """Raise UserError if the option's value does not end in .png, StorageError if it cannot be written."""
    if not uri.lower().endswith(".png"):
        raise UserError(f"{option} {uri}: this file will be a PNG. Give it a name that ends in .png")
    check_file(uri)


def say(text: str) -> None:
    """Print a message for people."""
    from segdist.console import say

    say(text)


def print_json(wanted: bool, tree: Any) -> None:
    """Print `tree` as one line of JSON on stdout if it is wanted."""
    from segdist.runs.record import to_json

    if wanted:
        print(to_json(tree), flush=True)


def numbers(
    option: str, text: str | None, between: str, kind: type, example: str, num: int | None = None
) -> list[Any] | None:
    """Parse an option's numbers. Raise UserError if they are no numbers, or not `num` of them."""
    try:
        found = None if text is None else [kind(part) for part in text.lower().split(between)]
    except ValueError:
        raise UserError(f"{option} {text!r}: not a list of numbers. For example: {example}") from None
    if found is not None and num is not None and len(found) != num:
        raise UserError(f"{option} {text!r}: {num} numbers are needed. For example: {example}")
    return found


def mask_values(text: str | None) -> list[int | tuple[int, int, int]] | None:
    """Parse a comma-separated list of mask values or #rrggbb colours."""
    from segdist.data.labels import color_of

    if text is None:
        return None
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdigit() or p.startswith("#") for p in parts):
        raise UserError(
            f"--void {text!r}: not a list of mask values. For example: --void 11,255. Write colours as #rrggbb"
        )
    return [color_of(p) if p.startswith("#") else int(p) for p in parts]
