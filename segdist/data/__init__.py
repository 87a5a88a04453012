"""Samples: what they mean (labels), where they lie (index, source), in what order they come (order), and the stream."""
