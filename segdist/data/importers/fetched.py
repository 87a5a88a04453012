"""Files that a source references by URI: fetched once, by several threads, into a folder that survives an interruption.

`prepare` reads every image up to three times, and a signed URI is different each time it is requested. So each file is stored
under a hash of its URI without signature, in a separate folder for each version of the source.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from segdist import console, storage
from segdist.data.importers.files import report_retry
from segdist.errors import DataError
from segdist.threads import map_ahead

_THREADS = 16  # they mostly wait for servers
_SCHEMES = {"http", "https", "s3"}  # a URI in somebody else's file must not read files of this machine
_SIGNATURE = {  # query fields with which AWS, CloudFront, Google and Azure sign URIs
    "awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy", "signature", "sig", "sv", "st", "se", "sp",
    "sr", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv",
}  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """A file at a URI, available at `path` once `fetch` has run."""

    uri: str = field(repr=False)  # may contain credentials
    path: Path
    of: str  # the sample it belongs to, for messages

    @property
    def name(self) -> str:
        return f"{self.of}: {storage.redacted(self.uri)}"

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def read(self) -> bytes:
        return self.path.read_bytes()

    def digest(self) -> str:
        """Return the sha256 of its bytes, which does not depend on the signature."""
        return hashlib.sha256(self.read()).hexdigest()


def locate(uri: str, folder: Path, of: str) -> Fetched:
    """Return the file of a URI, to be fetched into a folder. Raises DataError for other schemes than http, https and s3."""
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if scheme not in _SCHEMES:
        raise DataError(f"{of}: {storage.redacted(uri)!r} is not a URI that can be fetched. Use https:// or s3://")
    return Fetched(uri, folder / hashlib.sha256(unsigned(uri).encode()).hexdigest()[:40], of)


def unsigned(uri: str) -> str:
    """Return the URI without its signature. Other query fields may select the file, and are kept."""
    parts = urlsplit(uri)
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name.lower() not in _SIGNATURE and not name.lower().startswith(("x-amz-", "x-goog-"))
    ]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))


def folder_of(*identity: str) -> Path:
    """Return the folder for one version of a source, below $XDG_CACHE_HOME/segdist or ~/.cache/segdist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    readable = re.sub(r"[^\w-]+", "-", "-".join(part for part in identity if part))[:60]
    return cache / "segdist" / f"{readable}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"


def fetch(files: Iterable[Fetched]) -> None:
    """Fetch the files that are missing. If one fails, the files already fetched are kept and not fetched again."""
    wanted = {file.path: file for file in files}
    missing = [file for file in wanted.values() if not file.path.exists()]
    if not missing:
        return
    folder = missing[0].path.parent
    console.say(f"fetching {len(missing)} of {len(wanted)} files into {folder}; remove it once the dataset is prepared")
    progress, advance = console.bar("fetching", len(missing))
    with progress, ThreadPoolExecutor(_THREADS) as pool:
        for _ in map_ahead(pool, _fetch_one, missing, 4 * _THREADS):
            advance(1)


def _fetch_one(file: Fetched) -> None:
    storage.with_retries(lambda: storage.fetch(file.uri, file.path), report_retry)
