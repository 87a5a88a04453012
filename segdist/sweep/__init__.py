"""Sweeps: many runs that differ in a few fields of one config, searched and scheduled to find the best values.

Every trial is an ordinary run below the sweep's URI. sweep.json is the only state: Ray Tune places and schedules the trials,
but nothing is read back from its files.
"""

__all__ = ["axes", "best", "ledger", "plan", "plot", "search", "space", "tune"]
