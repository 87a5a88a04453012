"""Fused operations: what would otherwise hold a (B, K, H, W) tensor, or touch every pixel more than once."""

__all__ = ["IGNORE", "boundary", "hard", "overlap", "pixels", "resize", "tf32"]

IGNORE = 255  # the class of void pixels behind the label contract: they count in no loss and no metric
