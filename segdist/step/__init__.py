"""One optimizer update: the loss, the optimizer, and the reduction of gradients over ranks."""

__all__ = ["loss", "optim", "update"]
