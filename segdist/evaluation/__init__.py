"""From a checkpoint and a split to a number: inference, the confusion matrix, scores, reports, comparisons and figures."""

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
