"""Mistakes that the user can mend. The command line prints their message and exits with their code; anything else is our bug.

Every message names the thing (file, key, value) and the remedy.
"""


class UserError(ValueError):
    """The request, the data or the machine is at fault, and the message says how to mend it.

    `exit_code` is 75 where the same command goes on, once something around it is mended.
    """

    exit_code = 2


class RanksError(Exception):
    """The ranks of a run ended, more often than it allows; `exit_code` is 75 where the same command may do better."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class ConfigError(UserError):
    """A config is unreadable, unknown, of the wrong type, or contradicts itself or its run."""


class LabelError(UserError):
    """A mask holds a value that the label contract does not name, or the contract itself is wrong."""


class DataError(UserError):
    """A data set is missing, malformed, truncated or too small for what was asked."""


class StorageError(UserError):
    """A place cannot be read or written."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to something else."""


class MissingError(StorageError):
    """There is nothing at that URI."""


class UnavailableError(StorageError):
    """Storage does not answer, or not now; the same request may succeed later."""


class UnwrittenError(StorageError):
    """A run reached its end, and storage has not taken all of it."""

    exit_code = 75


class DeviceMemoryError(UserError):
    """The device's memory does not suffice."""


_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Read error [", "Write error [", "Timed out waiting",  # gloo's
    "Application timeout caused pair closure", "Connection was likely closed",  # and its store's
    "Connection closed by remote peer", "ncclRemoteError", "Watchdog caught collective operation timeout",  # NCCL's
)  # fmt: skip


def is_lost_rank(error: BaseException) -> bool:
    """Whether this rank talked to one that has ended: gloo and NCCL say so in words alone."""
    return not isinstance(error, UserError) and any(words in str(error) for words in _LOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch had no memory left, on a GPU or (where it raises a plain RuntimeError) in the machine itself."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
