"""From a model and a split to numbers: inference, confusion matrix, scores, intervals, reports, comparison, figures."""

__all__ = [
    "bootstrap",
    "compare",
    "confusion",
    "evaluate",
    "figures",
    "hf_mean_iou",
    "inference",
    "previews",
    "report",
    "scores",
    "self_test",
]
