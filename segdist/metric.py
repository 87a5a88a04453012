"""`MeanIoU`: the `mean_iou` metric of Hugging Face evaluate, exact and without network. See evaluation/mean_iou.py."""

from segdist.evaluation.mean_iou import MeanIoU

__all__ = ["MeanIoU"]
