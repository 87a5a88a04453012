"""Samples: what their masks mean (labels), where they are stored (index, source), their order, and the stream."""

__all__ = [
    "augment",
    "cache",
    "class_weights",
    "codec",
    "health",
    "importers",
    "index",
    "labels",
    "order",
    "prepare",
    "source",
    "stats",
    "stream",
    "survey",
    "write",
]
