"""Read-only access to web servers: http:// and https://.

A signed URL carries its credential in the query, and an old-style URL carries one before the host. Messages therefore
contain only what `redacted` returns. A body is complete when it has the length that the server announced.

The retry loop is not urllib3's `Retry`, which cannot retry a body that is streamed (`preload_content=False`). Streaming is
needed to limit a body's size and duration.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from segdist.errors import MissingError, StorageError, UnavailableError
from segdist.storage.entry import Entry

T = TypeVar("T")
MAX_BYTES = 1 << 30  # per response; every body ends up in memory
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 20.0  # _READ_SECONDS: without a single byte
_BODY_SECONDS, _MIN_BYTES_PER_SECOND = 60.0, 100_000  # a body may take _BODY_SECONDS plus its size at this rate
_TRIES, _MAX_REDIRECTS, _CONNECTIONS = 5, 5, 32
_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.5, 30.0
_CHUNK_BYTES = 1 << 20
_HEADERS = {"User-Agent": "segdist", "Accept-Encoding": "identity"}
_REDIRECTS = {301, 302, 303, 307, 308}


def redacted(uri: str) -> str:
    """Return the URL without user, password, query and fragment, for messages and logs."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read(uri: str) -> bytes:
    return _get(uri, lambda response: b"".join(_chunks(uri, response)))


def read_range(uri: str, offset: int, length: int) -> bytes:
    def take(response: Any) -> bytes:
        data = b"".join(_chunks(uri, response))
        if response.status == 200:  # the server ignores ranges
            return data[offset : offset + length]
        if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise StorageError(
                f"{redacted(uri)}: the server sent a different range than bytes {offset}-{offset + length - 1}. Download "
                "the file and use the local copy"
            )
        return data

    data = _get(uri, take, {"Range": f"bytes={offset}-{offset + length - 1}"}, accepted=(206,))
    if len(data) != length:
        raise StorageError(
            f"{redacted(uri)}: truncated: {len(data)} of {length} bytes at offset {offset}. Copy or prepare the data again"
        )
    return data


def fetch(uri: str, path: Path) -> None:
    """Stream a file to a local path, atomically."""
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"

    def take(response: Any) -> None:
        with temporary.open("wb") as file:
            for chunk in _chunks(uri, response):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _get(uri, take)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write ({error.strerror}). Choose a writable location") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    """Request one byte, because a URL that is signed for GET answers HEAD with 403."""
    try:
        _get(uri, lambda response: None, {"Range": "bytes=0-0"}, accepted=(206, 416))  # 416: exists, and is empty
    except MissingError:
        return False
    return True


def names(uri: str) -> list[str]:
    raise _no_listing(uri)


def sizes(uri: str) -> dict[str, int]:
    raise _no_listing(uri)


def walk(uri: str) -> Iterator[Entry]:
    raise _no_listing(uri)


def _no_listing(uri: str) -> StorageError:
    return StorageError(
        f"{redacted(uri)}: a web server does not list its files. Name a single file, or use a local folder, s3:// or hf://"
    )


def _get(
    uri: str, take: Callable[[Any], T], headers: dict[str, str] | None = None, accepted: tuple[int, ...] = ()
) -> T:
    """Return take(response), with retries and exponential backoff. Raises StorageError for urllib3's errors."""
    from urllib3.exceptions import HTTPError

    for attempt in range(1, _TRIES + 1):
        retry_after = 0.0
        try:
            with contextlib.closing(_follow(uri, headers or {})) as response:
                if response.status != 200 and response.status not in accepted:
                    retry_after = _retry_after(response)
                    raise _status_error(uri, response.status)
                return take(response)
        except (HTTPError, ValueError) as error:  # StorageError is a ValueError
            failure = error if isinstance(error, StorageError) else _storage_error(uri, error)
            if attempt == _TRIES or not isinstance(failure, UnavailableError):
                raise failure from None  # urllib3's own text may contain the whole URL
        pause = _PAUSE_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # many threads fail at the same time
        time.sleep(min(max(pause, retry_after), _MAX_PAUSE_SECONDS))
    raise AssertionError("unreachable")


def _follow(uri: str, headers: dict[str, str]) -> Any:
    """Return the response at the end of at most _MAX_REDIRECTS redirects, with its body unread.

    urllib3 would follow a redirect from https to http, and would keep the first hop's proxy.
    """
    url = uri
    for _ in range(_MAX_REDIRECTS + 1):
        response = _pool(url).request("GET", url, headers=_HEADERS | headers, redirect=False, preload_content=False)
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or not location:
            return response
        response.close()
        target = urljoin(url, location)
        allowed = ("https",) if urlsplit(url).scheme == "https" else ("http", "https")
        if urlsplit(target).scheme not in allowed:
            raise StorageError(
                f"{redacted(uri)}: redirects to {redacted(target)}, which is not followed. Use the final URL"
            )
        url = target
    raise StorageError(f"{redacted(uri)}: redirects in a circle or more than {_MAX_REDIRECTS} times. Use the final URL")


def _chunks(uri: str, response: Any) -> Iterator[bytes]:
    """Yield the body in pieces. Raises StorageError if its real or announced length exceeds MAX_BYTES.

    Raises UnavailableError if the body is too slow: a server that sends a byte now and then never hits the read timeout.
    """
    num_bytes = response.length_remaining or 0
    if num_bytes <= MAX_BYTES:
        num_bytes, start = 0, time.monotonic()
        while chunk := response.read1(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > MAX_BYTES:
                break
            seconds = time.monotonic() - start
            if seconds > _BODY_SECONDS + num_bytes / _MIN_BYTES_PER_SECOND:
                raise UnavailableError(
                    f"{redacted(uri)}: the server is too slow: {num_bytes} bytes in {seconds:.0f} s. Try again later"
                )
            yield chunk
    if num_bytes > MAX_BYTES:
        raise StorageError(
            f"{redacted(uri)}: larger than {MAX_BYTES >> 20} MiB, the limit for files read from the web. Download the file "
            "and use the local copy"
        )


def _status_error(uri: str, status: int) -> StorageError:
    url = redacted(uri)
    if status in (404, 410):
        return MissingError(f"{url}: not found ({status}). Check the URL")
    if status in (401, 403):
        return StorageError(
            f"{url}: access denied ({status}). If the URL is signed, it may have expired: get a new one"
        )
    if status in (408, 425, 429) or status >= 500:
        return UnavailableError(f"{url}: the server is unavailable ({status}). Try again later")
    return StorageError(f"{url}: the server answered with status {status}. Check the URL")


def _storage_error(uri: str, error: Exception) -> StorageError:
    """Return the StorageError, with a remedy, for an error of urllib3 or urllib."""
    import ssl

    from urllib3 import exceptions

    url = redacted(uri)
    if isinstance(error, ValueError | exceptions.LocationValueError | exceptions.URLSchemeUnknown):
        return StorageError(f"{url}: not a valid URL. Write https://HOST/PATH")
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in (error, error.__cause__, *error.args)):
        return StorageError(
            f"{url}: the server's certificate is not trusted. For a private certificate authority, set SSL_CERT_FILE to its "
            "certificate file"
        )
    if isinstance(error, exceptions.DecodeError):
        return StorageError(
            f"{url}: the body does not match its Content-Encoding. Download the file and use the local copy"
        )
    if isinstance(error, exceptions.ReadTimeoutError):
        return UnavailableError(f"{url}: the server sent nothing for {_READ_SECONDS:g} s. Try again later")
    if isinstance(error, exceptions.IncompleteRead | exceptions.ProtocolError):
        return UnavailableError(f"{url}: the connection closed before the whole body arrived. Try again later")
    return UnavailableError(f"{url}: cannot reach the server ({type(error).__name__}). Check the URL and the network")


def _retry_after(response: Any) -> float:
    """Return the seconds of the Retry-After header; 0 if it is missing or invalid."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return float(Retry().get_retry_after(response) or 0.0)
    except InvalidHeader:
        return 0.0


def _pool(url: str) -> Any:
    """Return the connection pool for a URL: direct, or through the proxy that the environment names."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return _pool_of(os.getpid(), "")
    return _pool_of(os.getpid(), proxy if "://" in proxy else f"http://{proxy}")


@functools.cache
def _pool_of(pid: int, proxy: str) -> Any:
    """Return a connection pool. A forked process gets its own. urllib3 verifies certificates by default."""
    import urllib3

    settings: dict[str, Any] = {
        "retries": False,  # see _get
        "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        "maxsize": _CONNECTIONS,
    }
    if not proxy:
        return urllib3.PoolManager(**settings)
    user = unquote(urlsplit(proxy).netloc.rpartition("@")[0])
    auth = urllib3.make_headers(proxy_basic_auth=user) if user else None
    return urllib3.ProxyManager(proxy, proxy_headers=auth, **settings)
