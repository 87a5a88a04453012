"""Disk cache of row groups of remote datasets, keyed by the sha256 of their bytes.

All runs and trials of a user on one machine share it. A disk error never stops the stream: it then reads from storage.
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

_EVICT_TO = 0.9  # share of the limit that eviction leaves
_SCANS = 20  # the folder is scanned each time that 1/20 of the limit was written


class Cache:
    """Least-recently-used cache of files by digest, up to `max_bytes` in total. Safe for threads and processes."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._bytes_since_scan = max_bytes  # the first write scans
        self._warned = False

    def get(self, digest: str) -> bytes | None:
        """Return the bytes with this sha256, or None if they are not cached. Deletes a damaged file."""
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
        """Store these bytes, whose sha256 is `digest`."""
        path = self._path(digest)
        temporary = path.with_name(f".{digest}-{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
            self._evict(len(data))
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if not self._warned:
                self._warned = True
                console.say(
                    f"warning: cannot write to the data cache {self._folder} ({error}). Continuing without the cache"
                )

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _evict(self, num_written: int) -> None:
        """Delete the least recently used files if the cache exceeds its limit."""
        with self._lock:
            self._bytes_since_scan += num_written
            if self._bytes_since_scan < self._max_bytes / _SCANS:
                return
            self._bytes_since_scan = 0
            files = []
            for path in self._folder.glob("??/*"):
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    files.append((stat.st_mtime, stat.st_size, path))
            excess = sum(size for _, size, _ in files) - _EVICT_TO * self._max_bytes
            if excess <= (1 - _EVICT_TO) * self._max_bytes:
                return
            for _, size, path in sorted(files):
                if excess <= 0:
                    return
                with contextlib.suppress(OSError):
                    path.unlink()
                    excess -= size


def open_cache(uri: str, io: Io) -> Cache | None:
    """Return the cache for a dataset, or None if the dataset is local or the cache is off (io.cache_gb=0)."""
    if io.cache_gb == 0 or storage.is_local(uri):
        return None
    return Cache(Path(io.cache_dir).expanduser(), int(io.cache_gb * 1e9))
