"""The `segdist` command. Human output goes to stderr; with --json, one last line on stdout is for machines.

A user's mistake is one readable message and exit code 2. Heavy libraries are imported by the command that needs them.
"""

from __future__ import annotations

import os
import sys

from segdist.cli import data, training  # isort: skip (each adds its commands, and --help keeps this order)
from segdist.cli import models  # isort: skip
from segdist.cli import hub  # isort: skip
from segdist.cli import cluster, kubernetes  # isort: skip
from segdist.cli.app import app
from segdist.errors import RanksError, UserError, is_lost_rank

__all__ = ["app", "cluster", "data", "hub", "kubernetes", "main", "models", "training"]


def main() -> None:
    """Entry point of the command."""
    from rich.markup import escape

    from segdist.console import console

    try:
        app()
    except UserError as error:
        if type(error).__name__ != "SharedError":  # rank 0 has said it
            console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        _exit(error.exit_code)
    except RanksError as error:
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        _exit(error.exit_code)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        console.print(
            "[bold red]error:[/bold red] another rank has ended, and this one cannot go on alone; why, is said above or by "
            "its launcher. The same command goes on from the newest checkpoint"
        )
        _exit(75)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        _exit(end.code)


def _exit(code: int) -> None:
    """Ends the process. Among several ranks at once, without the interpreter's teardown.

    There gloo's threads (torch 2.15) now and then abort the process, "terminate called without an active exception", and
    torchrun would call a run failed that ended well. Everything of ours is written and closed by now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
