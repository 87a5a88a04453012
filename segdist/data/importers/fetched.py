"""Files that a source names by address: fetched once, by several threads, into a folder that outlives an interruption.

`prepare` reads every image up to three times, and a signed address is another one each time it is asked for. So a file
is kept under the digest of its address without signature, in a folder of its own for each version of the source.
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
from segdist.data.importers.files import waiting
from segdist.errors import DataError
from segdist.threads import ahead

_THREADS = 16  # they wait for servers
_SCHEMES = {"http", "https", "s3"}  # an address in somebody's file must not read this machine's
_SIGNATURE = {  # what AWS, CloudFront, Google and Azure add to an address to let it be read for a while
    "awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy", "signature", "sig", "sv", "st", "se", "sp",
    "sr", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv",
}  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """A file at an address, once `fetch` has put it at `path`."""

    uri: str = field(repr=False)  # may hold a credential
    path: Path
    of: str  # what it belongs to, for messages

    @property
    def name(self) -> str:
        return f"{self.of}: {storage.redacted(self.uri)}"

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size

    def read(self) -> bytes:
        return self.path.read_bytes()

    def digest(self) -> str:
        """The sha256 of its bytes: it stays when the file is fetched again under another signature."""
        return hashlib.sha256(self.read()).hexdigest()


def at(uri: str, folder: Path, of: str) -> Fetched:
    """The file of an address, to be fetched into a folder. Raises DataError for what is no address of the web or a bucket."""
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if scheme not in _SCHEMES:
        raise DataError(f"{of}: {storage.redacted(uri)!r} is no address that is fetched; https:// and s3:// are")
    return Fetched(uri, folder / hashlib.sha256(unsigned(uri).encode()).hexdigest()[:40], of)


def unsigned(uri: str) -> str:
    """The address without what signs it; what else its query says may choose the file, and stays."""
    parts = urlsplit(uri)
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if name.lower() not in _SIGNATURE and not name.lower().startswith(("x-amz-", "x-goog-"))
    ]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))


def folder_of(*identity: str) -> Path:
    """Where the files of one version of a source are kept: below $XDG_CACHE_HOME/segdist, or ~/.cache/segdist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    readable = re.sub(r"[^\w-]+", "-", "-".join(part for part in identity if part))[:60]
    return cache / "segdist" / f"{readable}-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"


def fetch(files: Iterable[Fetched]) -> None:
    """Fetches what is not there yet. What was fetched stays when one fails, and is not fetched again."""
    wanted = {file.path: file for file in files}
    missing = [file for file in wanted.values() if not file.path.exists()]
    if not missing:
        return
    folder = missing[0].path.parent
    console.say(f"fetching {len(missing)} of {len(wanted)} files into {folder}; remove it once the data are prepared")
    progress, advance = console.bar("fetching", len(missing))
    with progress, ThreadPoolExecutor(_THREADS) as pool:
        for _ in ahead(pool, _fetch_one, missing, 4 * _THREADS):
            advance(1)


def _fetch_one(file: Fetched) -> None:
    storage.with_retries(lambda: storage.fetch(file.uri, file.path), waiting)
