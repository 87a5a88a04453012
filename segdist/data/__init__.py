"""Prepared datasets: label contract, storage format, order of samples and streams, and preparation from other layouts."""

__all__ = [
    "augment",
    "cache",
    "class_weights",
    "codec",
    "health",
    "importers",
    "index",
    "label_options",
    "labels",
    "order",
    "prepare",
    "source",
    "stats",
    "stream",
    "survey",
    "write",
]
