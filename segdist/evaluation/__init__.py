"""From a model and a split to numbers: inference, confusion matrix, scores, intervals, reports, comparison, figures."""

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
