"""One file of a listing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file below a URI. `name` is relative to that URI; `tag` changes with the content, None if the store has no such tag."""

    name: str
    num_bytes: int
    tag: str | None = None
