"""What a listing tells of a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file below some URI: its name relative to it, its bytes, and what changes with its content where a store tells."""

    name: str
    num_bytes: int
    tag: str | None = None
