"""The files that a run writes: checkpoints, record, metrics, log. No other package knows how its files are named."""

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
