"""Mistakes that the user can mend. The command line prints their message and exits with 2; anything else is our bug.

Every message names the thing (file, key, value) and the remedy.
"""


class UserError(ValueError):
    """The request, the data or the machine is at fault, and the message says how to mend it."""


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
