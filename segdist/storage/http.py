"""Web servers, to read from: http:// and https://.

A signed address carries its credential in the query, and an old-fashioned one in front of the host. So no message ever
names more of an address than `shown`. A body counts as read when it has the length that the server announced.
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
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from segdist.errors import MissingError, StorageError, UnavailableError
from segdist.storage.entry import Entry

T = TypeVar("T")
MAX_BYTES = 1 << 30  # of one answer: what is read here is a picture or a description, and ends up in memory
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 20.0  # the latter without a single byte
_BODY_SECONDS, _LEAST_RATE = 60.0, 100_000  # a body may take that long, and a second more for so many bytes
_TRIES, _HOPS, _CONNECTIONS = 5, 5, 32
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_CHUNK_BYTES = 1 << 20
_HEADERS = {"User-Agent": "segdist", "Accept-Encoding": "identity"}
_REDIRECTS = {301, 302, 303, 307, 308}


def shown(uri: str) -> str:
    """The address as people and logs may see it: without user, password, query and fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def read(uri: str) -> bytes:
    return _ask(uri, lambda answer: b"".join(_chunks(uri, answer)))


def read_range(uri: str, offset: int, length: int) -> bytes:
    def take(answer: Any) -> bytes:
        data = b"".join(_chunks(uri, answer))
        if answer.status == 200:  # the server knows no ranges
            return data[offset : offset + length]
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise StorageError(f"{shown(uri)}: the server sent another range than bytes {offset}-{offset + length - 1}")
        return data

    data = _ask(uri, take, {"Range": f"bytes={offset}-{offset + length - 1}"}, fine=(206,))
    if len(data) != length:
        raise StorageError(f"{shown(uri)}: truncated: {len(data)} of {length} bytes at offset {offset}")
    return data


def fetch(uri: str, path: Path) -> None:
    """Streams a file to a local path, atomically."""
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"

    def take(answer: Any) -> None:
        with temporary.open("wb") as file:
            for chunk in _chunks(uri, answer):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _ask(uri, take)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write ({error.strerror}); give a place you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    """By asking for one byte: an address that is signed for GET answers HEAD with 403."""
    try:
        _ask(uri, lambda answer: None, {"Range": "bytes=0-0"}, fine=(206, 416))  # 416: there, and empty
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
        f"{shown(uri)}: a web server does not tell which files it has; name one file, or give a local folder, s3:// or hf://"
    )


def _ask(uri: str, take: Callable[[Any], T], headers: dict[str, str] | None = None, fine: tuple[int, ...] = ()) -> T:
    """take(answer), with the errors of urllib3 told in our words; asked again, later and later, while it may help."""
    from urllib3.exceptions import HTTPError

    for i in range(_TRIES):
        answer = None
        least = 0.0
        try:
            answer = _follow(uri, headers or {})
            if answer.status != 200 and answer.status not in fine:
                least = _retry_after(answer)
                _refuse(uri, answer.status)
            return take(answer)
        except HTTPError as error:
            failure = _told(uri, error)
            if not isinstance(failure, UnavailableError) or i == _TRIES - 1:
                raise failure from None  # urllib3's own text may hold the whole address
        except UnavailableError:
            if i == _TRIES - 1:
                raise
        except ValueError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{shown(uri)}: not an address; write https://HOST/PATH") from None
        finally:
            if answer is not None:
                answer.close()
        pause = _PAUSE_SECONDS * 2**i * random.uniform(0.5, 1.5)  # many threads meet the same outage
        time.sleep(min(max(pause, least), _LONGEST_PAUSE_SECONDS))
    raise AssertionError("unreachable")


def _follow(uri: str, headers: dict[str, str]) -> Any:
    """The answer behind a few redirections, its body still unread."""
    at = uri
    for _ in range(_HOPS + 1):
        answer = _pool(at).request("GET", at, headers=_HEADERS | headers, redirect=False, preload_content=False)
        place = answer.headers.get("Location")
        if answer.status not in _REDIRECTS or not place:
            return answer
        answer.close()
        onwards = urljoin(at, place)
        allowed = ("https",) if urlsplit(at).scheme == "https" else ("http", "https")
        if urlsplit(onwards).scheme not in allowed:
            raise StorageError(f"{shown(uri)}: leads to {shown(onwards)}, which is not followed from there")
        at = onwards
    raise StorageError(f"{shown(uri)}: leads in a circle, or through more than {_HOPS} redirections")


def _chunks(uri: str, answer: Any) -> Iterator[bytes]:
    """The body in pieces, as they come. Raises StorageError when it is, or says it is, larger than MAX_BYTES.

    Raises UnavailableError when it comes too slowly: a server that sends a byte now and then would hold us for ever.
    """
    num = answer.length_remaining or 0
    if num <= MAX_BYTES:
        num, began = 0, time.monotonic()
        while chunk := answer.read1(_CHUNK_BYTES):
            num += len(chunk)
            if num > MAX_BYTES:
                break
            seconds = time.monotonic() - began
            if seconds > _BODY_SECONDS + num / _LEAST_RATE:
                raise UnavailableError(f"{shown(uri)}: the server is too slow: {num} bytes in {seconds:.0f} s")
            yield chunk
    if num > MAX_BYTES:
        raise StorageError(f"{shown(uri)}: more than {MAX_BYTES >> 20} MiB, which is more than is read from the web")


def _refuse(uri: str, status: int) -> NoReturn:
    name = shown(uri)
    if status in (404, 410):
        raise MissingError(f"{name}: nothing is there ({status})")
    if status in (401, 403):
        raise StorageError(
            f"{name}: the server refuses ({status}); an address that was signed may have expired: get it anew"
        )
    if status in (408, 425, 429) or status >= 500:
        raise UnavailableError(f"{name}: the server does not serve it now ({status})")
    raise StorageError(f"{name}: the server answers {status}")


def _told(uri: str, error: Exception) -> StorageError:
    """What went wrong, and the remedy."""
    import ssl

    from urllib3 import exceptions as web

    name = shown(uri)
    if isinstance(error, web.LocationValueError | web.URLSchemeUnknown):
        return StorageError(f"{name}: not an address; write https://HOST/PATH")
    if any(isinstance(e, ssl.SSLCertVerificationError) for e in (error, error.__cause__, *error.args)):
        return StorageError(
            f"{name}: the server's certificate is not trusted; if it is your own authority's, name its file in SSL_CERT_FILE"
        )
    if isinstance(error, web.DecodeError):
        return StorageError(f"{name}: the body is not compressed as the server says")
    if isinstance(error, web.ReadTimeoutError):
        return UnavailableError(f"{name}: the server sent nothing for {_READ_SECONDS:g} s")
    if isinstance(error, web.IncompleteRead | web.ProtocolError):
        return UnavailableError(f"{name}: the connection broke before all was there")
    return UnavailableError(
        f"{name}: the server cannot be reached ({type(error).__name__}); check the name and the network"
    )


def _retry_after(answer: Any) -> float:
    """The seconds for which the server asks not to be asked."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return float(Retry().get_retry_after(answer) or 0.0)
    except InvalidHeader:
        return 0.0


def _pool(uri: str) -> Any:
    """The connections to use for it: direct, or through the proxy that the environment names."""
    parts = urlsplit(uri)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return _pool_of(os.getpid(), "")
    return _pool_of(os.getpid(), proxy if "://" in proxy else f"http://{proxy}")


@functools.cache
def _pool_of(pid: int, proxy: str) -> Any:
    """A forked process must not share connections. Certificates are verified, which is urllib3's default."""
    import urllib3

    settings: dict[str, Any] = {
        "retries": False,  # ours know our errors
        "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
        "maxsize": _CONNECTIONS,
    }
    if not proxy:
        return urllib3.PoolManager(**settings)
    user = unquote(urlsplit(proxy).netloc.rpartition("@")[0])
    auth = urllib3.make_headers(proxy_basic_auth=user) if user else None
    return urllib3.ProxyManager(proxy, proxy_headers=auth, **settings)
