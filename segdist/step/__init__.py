"""One optimizer update: loss, optimizer, EMA weights, BatchNorm, precision, and the strategies (exact, DDP, ZeRO)."""

__all__ = ["loss", "optim", "update"]
