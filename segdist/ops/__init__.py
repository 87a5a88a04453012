"""The tensor arithmetic below loss, metric and data: none of it holds a (B, K, H, W) tensor."""

__all__ = ["IGNORE", "boundary", "hard_pixels", "overlap", "pixels", "resize", "tf32", "windows"]

IGNORE = 255  # class of void pixels once the label contract is applied; void counts in no loss and no metric
