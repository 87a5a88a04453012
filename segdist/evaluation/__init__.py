"""Evaluation of models: inference, confusion matrices, scores, reports, comparisons and figures."""

__all__ = [
    "bootstrap",
    "compare",
    "confusion",
    "evaluate",
    "figures",
    "inference",
    "mean_iou",
    "previews",
    "report",
    "scores",
    "self_test",
]
