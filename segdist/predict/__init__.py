"""Prediction for images without masks: find the images, predict their classes, write the results."""

__all__ = ["batches", "files", "outputs"]
