"""One optimizer update: the loss, the optimizer, and how gradients are reduced over ranks."""

__all__ = ["loss", "optim", "update"]
