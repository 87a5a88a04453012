"""The `segdist` command. Messages go to stderr. With --json, the last line on stdout is JSON.

An error that the user can fix is one readable message and exit code 2, or 75 if the same command can be run again. A command
imports the heavy libraries that it needs.
"""

from __future__ import annotations

import os
import sys

from segdist.cli import data, training  # isort: skip (importing adds the commands; --help keeps this order)
from segdist.cli import models  # isort: skip
from segdist.cli import hub  # isort: skip
from segdist.cli import cluster, kubernetes  # isort: skip
from segdist.cli.app import app
from segdist.errors import TRY_AGAIN, RanksError, SharedError, UserError, is_lost_rank

__all__ = ["app", "cluster", "data", "hub", "kubernetes", "main", "models", "training"]


def main() -> None:
    """Run the command, and turn errors into a message and an exit code."""
    from rich.markup import escape

    from segdist.console import console

    try:
        app(prog_name="segdist")
    except UserError as error:
        if not isinstance(error, SharedError):
            console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        _exit(error.exit_code)
    except RanksError as error:
        console.print(f"[bold red]error:[/bold red] {escape(str(error))}")
        _exit(error.exit_code)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        console.print(
            "[bold red]error:[/bold red] another rank has ended, so this one stopped too. See the error above or in the "
            "launcher's output. Run the same command to continue from the newest checkpoint"
        )
        _exit(TRY_AGAIN)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        _exit(end.code)


def _exit(code: int) -> None:
    """End the process. With several ranks, skip the interpreter's teardown.

    In the teardown, gloo's threads (torch 2.15) sometimes abort the process ("terminate called without an active exception"),
    and torchrun would report a successful run as failed. All our files are written and closed by now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
