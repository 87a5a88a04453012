"""Errors that the user can fix. The command line prints their message and exits with their exit code.

Any other exception is a bug in segdist. Every message names the file, key or value at fault and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence

TRY_AGAIN = 75  # exit code: the same command may succeed later, or continues what it began (EX_TEMPFAIL of sysexits.h)


def first_few(items: Sequence[object], most: int = 5) -> str:
    """Return the first `most` items joined by commas, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def last_line(error: BaseException | str) -> str:
    """Return the last line of an error's message, which in a remote traceback is the one that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else repr(error)


class UserError(ValueError):
    """The request, the data or the machine is at fault. The message says how to fix it.

    `exit_code` is TRY_AGAIN if the same command can be run again once the cause is fixed.
    """

    exit_code = 2


class RanksError(Exception):
    """The ranks of a run failed more often than allowed. `exit_code` may be TRY_AGAIN."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class ConfigError(UserError):
    """A config is unreadable, has an unknown key or a wrong type, or contradicts itself or its run."""


class LabelError(UserError):
    """A mask holds a value that the label contract does not name, or the label contract is invalid."""


class DataError(UserError):
    """A dataset is missing, malformed, truncated or too small."""


class StorageError(UserError):
    """A URI cannot be read or written."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model."""


class MissingError(StorageError):
    """Nothing exists at the URI."""


class UnavailableError(StorageError):
    """Storage does not answer. The same request may succeed later."""


class UnwrittenError(StorageError):
    """A run is complete, but storage has not accepted all of its files."""

    exit_code = TRY_AGAIN


class SharedError(UserError):
    """Another rank failed and reports the error; this rank only stops."""


class DeviceMemoryError(UserError):
    """The device is out of memory."""


_LOST_RANK = (
    "Connection closed by peer", "Connection reset by peer", "Read error [", "Write error [", "Timed out waiting",  # gloo
    "Application timeout caused pair closure", "Connection was likely closed",  # gloo's store
    "Connection closed by remote peer", "ncclRemoteError", "Watchdog caught collective operation timeout",  # NCCL
)  # fmt: skip


def is_lost_rank(error: BaseException) -> bool:
    """Return whether a collective failed because another rank ended. gloo and NCCL report it only in the message."""
    return not isinstance(error, UserError) and any(text in str(error) for text in _LOST_RANK)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch ran out of memory, on a GPU or on the CPU, where torch raises a plain RuntimeError."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
