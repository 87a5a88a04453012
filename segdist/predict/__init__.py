"""Segment images that have no masks: find them, segment them, write the results."""

__all__ = ["files", "outputs"]
