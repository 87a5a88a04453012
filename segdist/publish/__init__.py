"""Exports, cards and repositories on the Hugging Face Hub: written here, and read back for prediction (`exported`)."""

__all__ = ["export", "exported", "hub", "push", "push_data"]
