"""`MeanIoU`: the `mean_iou` metric of Hugging Face evaluate, exact and without network. See evaluation/hf_mean_iou.py."""

from segdist.evaluation.hf_mean_iou import MeanIoU

__all__ = ["MeanIoU"]
