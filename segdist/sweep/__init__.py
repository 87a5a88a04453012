"""Many runs that differ in a few fields of one config: which are worth their time, and which values are best.

Every trial is an ordinary run below the sweep's URI, and sweep.json there is the truth. Ray Tune judges and places trials; it
remembers nothing for us.
"""

__all__ = ["axes", "best", "ledger", "picture", "plan", "search", "tune"]
