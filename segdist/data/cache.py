"""Row groups of remote data sets on this machine's disk, by the sha256 of their bytes.

All runs and trials of a user on a machine share it: what one has fetched, the others need not, and a digest cannot mean two
things. A cache is a convenience: whatever the disk does, the stream goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from pathlib import Path

from segdist import console, storage
from segdist.config import Io

_ROOM = 0.9  # of the limit, after the oldest have gone
_SURVEYS = 20  # the folder is surveyed each time that a part of the limit, so small, was written


class Cache:
    """Files by digest, `most_bytes` in all, the ones used longest ago deleted first. Safe for threads and processes."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most = folder, most_bytes
        self._lock = threading.Lock()
        self._fresh = most_bytes  # bytes written since the last survey; surveyed at the first
        self._warned = False

    def get(self, digest: str) -> bytes | None:
        """The bytes of that sha256; None where they are not here. A damaged file is deleted."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == digest:
                os.utime(path)
                return data
            path.unlink()
        except OSError:
            pass
        return None

    def put(self, digest: str, data: bytes) -> None:
        """Keeps these bytes, whose sha256 is the digest."""
        path = self._path(digest)
        temporary = path.with_name(f".{digest}-{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
            self._count(len(data))
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if not self._warned:
                self._warned = True
                console.say(
                    f"warning: the data cache {self._folder} takes nothing ({error}); the data is streamed without it"
                )

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._fresh += num_bytes
            if self._fresh < self._most / _SURVEYS:
                return
            self._fresh = 0
            found = []
            for path in self._folder.glob("??/*"):
                with contextlib.suppress(OSError):
                    about = path.stat()
                    found.append((about.st_mtime, about.st_size, path))
            excess = sum(size for _, size, _ in found) - _ROOM * self._most
            if excess <= (1 - _ROOM) * self._most:
                return
            for _, size, path in sorted(found):
                if excess <= 0:
                    return
                with contextlib.suppress(OSError):
                    path.unlink()
                    excess -= size


def cache_of(uri: str, io: Io) -> Cache | None:
    """The cache for a data set; None where it lies on a disk already, or none is wanted."""
    if io.cache_gb == 0 or storage.is_local(uri):
        return None
    return Cache(Path(io.cache_dir).expanduser(), int(io.cache_gb * 1e9))
