"""Fused operations: what would otherwise hold a (B, K, H, W) tensor, or touch every pixel more than once."""

IGNORE = 255  # the class of void pixels behind the label contract: they count in no loss and no metric
