"""The command itself, and what its parts share: options, and how they speak to people and machines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from segdist.errors import UserError

app = typer.Typer(
    help="Fine-tune semantic segmentation models on your own images, and get a number you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at a config.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def _tell_version(wanted: bool) -> None:
    if wanted:
        from segdist import __version__

        print(f"segdist {__version__}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    pass


Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout at the end.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto: CUDA when there is one.")]
RunOrCheckpoint = Annotated[
    str, typer.Argument(help="A run (its best checkpoint is taken) or one checkpoint folder; a path or URI.")
]
Raw = Annotated[
    bool,
    typer.Option(
        "--raw", help="Take the weights that train on, where a run averages and scores others (optim.ema_decay)."
    ),
]


def config_of(uri: str, overrides: list[str] | None) -> Any:
    """The config at a path or URI."""
    from segdist import config as configs

    if "://" not in uri:
        return configs.load(uri, overrides or [])
    from segdist import storage

    return configs.loads(storage.read(uri), uri, overrides or [])


def check_file(uri: str) -> None:
    """Raises StorageError unless a file can be written there; what is there already stays as it is."""
    from segdist import storage

    storage.check_writable(uri.rpartition("/")[0] or ".")


def check_png(option: str, uri: str) -> None:
    """Raises UserError unless the option's value can be the name of a PNG that can be written."""
    if not uri.lower().endswith(".png"):
        raise UserError(f"{option} {uri}: it will be a PNG; name it so")
    check_file(uri)


def say(text: str) -> None:
    from segdist.console import say

    say(text)


def machine(wanted: bool, tree: Any) -> None:
    from segdist.runs.record import to_json

    if wanted:
        print(to_json(tree), flush=True)


def numbers(
    option: str, text: str | None, between: str, kind: type, example: str, num: int | None = None
) -> list[Any] | None:
    """The numbers in an option's text, `num` of them where that is fixed."""
    try:
        found = None if text is None else [kind(part) for part in text.lower().split(between)]
    except ValueError:
        raise UserError(f"{option} {text!r}: give numbers such as {example}") from None
    if found is not None and num is not None and len(found) != num:
        raise UserError(f"{option} {text!r}: give {num} numbers, such as {example}")
    return found


def mask_values(text: str | None) -> list[int | tuple[int, int, int]] | None:
    """The mask values, or colours, of a comma list."""
    from segdist.data.labels import color_of

    if text is None:
        return None
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not all(p.isdigit() or p.startswith("#") for p in parts):
        raise UserError(f"--void {text!r}: give mask values, for example --void 11,255, or colours as #rrggbb")
    return [color_of(p) if p.startswith("#") else int(p) for p in parts]
