"""Publishing: exports, model cards, and repositories on the Hugging Face Hub."""

__all__ = ["export", "exported", "hub", "push", "push_data"]
