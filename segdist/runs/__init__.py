"""Everything that a run leaves behind. No other package knows the names of its files."""

__all__ = [
    "checkpoint_manager",
    "checkpoints",
    "history",
    "record",
    "restore",
    "run_log",
    "segments",
    "snapshot",
    "writer",
]
