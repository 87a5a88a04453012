"""Files of web servers, and of those that misbehave."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from web_server import Answer, serving

from segdist import storage
from segdist.errors import MissingError, StorageError, UnavailableError
from segdist.storage import http

DATA = bytes(range(256)) * 40
SECRET = "?X-Amz-Signature=topsecret"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The pauses that were made, none of which takes time; and no proxy of this machine's."""
    made: list[float] = []
    monkeypatch.setattr(http.time, "sleep", made.append)
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    return made


def test_a_file_is_read_whole_and_in_ranges(tmp_path: Path) -> None:
    with serving({"/a": DATA, "/empty": b"", "/plain": Answer(DATA, ranges=False)}) as web:
        assert storage.read(f"{web.url}/a") == DATA
        assert storage.read(f"{web.url}/empty") == b""
        assert web.sent[0]["accept-encoding"] == "identity"
        for name in ("a", "plain"):
            assert storage.read_range(f"{web.url}/{name}", 300, 500) == DATA[300:800]
            with pytest.raises(StorageError, match="truncated"):
                storage.read_range(f"{web.url}/{name}", len(DATA) - 5, 6)
        assert storage.exists(f"{web.url}/a") and storage.exists(f"{web.url}/empty")
        assert not storage.exists(f"{web.url}/nothing")
        storage.fetch(f"{web.url}/a", tmp_path / "below" / "copy")
    storage.fetch(str(tmp_path / "below" / "copy"), tmp_path / "below" / "again")
    assert (tmp_path / "below" / "copy").read_bytes() == (tmp_path / "below" / "again").read_bytes() == DATA
    assert sorted(p.name for p in (tmp_path / "below").iterdir()) == ["again", "copy"]


def test_a_large_file_is_known_to_exist_without_reading_it() -> None:
    """A body that never ends would time out."""
    with serving({"/large": Answer(DATA, hang=True, ranges=False)}) as web:
        assert storage.exists(f"{web.url}/large")


def test_what_passes_is_waited_for(pauses: list[float]) -> None:
    answers = [Answer(status=503), Answer(status=503), DATA]
    with serving({"/a": answers}) as web:
        assert storage.read(f"{web.url}/a") == DATA
        assert len(web.asked) == 3
    assert len(pauses) == 2 and 0 < pauses[0] < 1 < 2 * pauses[1]


def test_the_server_says_how_long_to_wait(pauses: list[float]) -> None:
    answers = [
        Answer(status=429, headers={"Retry-After": "7"}),
        Answer(status=503, headers={"Retry-After": "99999"}),
        Answer(status=503, headers={"Retry-After": "nonsense"}),
        DATA,
    ]
    with serving({"/a": answers}) as web:
        assert storage.read(f"{web.url}/a") == DATA
    assert pauses[0] == 7.0
    assert pauses[1] == 30.0  # our own bound
    assert pauses[2] < 4


def test_a_server_that_stays_away_is_unavailable() -> None:
    with serving({"/a": Answer(status=500)}) as web:
        url = f"{web.url}/a{SECRET}"
        with pytest.raises(UnavailableError, match=r"/a: the server is unavailable \(500\)") as error:
            storage.read(url)
        assert len(web.asked) == 5
    assert "secret" not in str(error.value)
    with pytest.raises(UnavailableError, match="cannot reach the server") as error:
        storage.read(url)  # nobody listens there any more
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("cut", [Answer(DATA, announced=len(DATA) + 1), Answer(b"", announced=len(DATA))])
def test_a_body_that_was_cut_short_is_asked_for_again(cut: Answer, tmp_path: Path) -> None:
    with serving({"/a": [cut, DATA], "/b": [cut, cut, DATA], "/never": cut}) as web:
        assert storage.read(f"{web.url}/a") == DATA
        storage.fetch(f"{web.url}/b", tmp_path / "b")
        with pytest.raises(UnavailableError, match="closed before the whole body arrived"):
            storage.fetch(f"{web.url}/never", tmp_path / "never")
    assert (tmp_path / "b").read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_chunked_body_that_was_cut_short_is_noticed() -> None:
    chunked = {"Transfer-Encoding": "chunked"}
    with serving({"/a": [Answer(b"5\r\nhello\r\n", headers=chunked, announced=-1), b"hello you"]}) as web:
        assert storage.read(f"{web.url}/a") == b"hello you"


def test_a_length_that_says_too_little_does_not_spoil_the_next_answer() -> None:
    """What comes behind the announced length is not ours, and must not be taken for the next answer's head."""
    with serving({"/short": Answer(DATA, announced=100), "/a": DATA}) as web:
        assert storage.read(f"{web.url}/short") == DATA[:100]
        assert storage.read(f"{web.url}/a") == DATA


def test_silence_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(http, "_TRIES", 2)
    http._pool_of.cache_clear()
    try:
        with serving({"/a": Answer(DATA, hang=True)}) as web:
            with pytest.raises(UnavailableError, match=r"sent nothing for 0\.2 s"):
                storage.read(f"{web.url}/a")
            assert len(web.asked) == 2
    finally:
        http._pool_of.cache_clear()


def test_a_server_that_drips_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never silent for long; DATA would take minutes."""
    monkeypatch.setattr(http, "_BODY_SECONDS", 0.2)
    monkeypatch.setattr(http, "_TRIES", 2)
    with serving({"/a": Answer(DATA, drip=True), "/b": [Answer(DATA, drip=True), DATA]}) as web:
        with pytest.raises(UnavailableError, match=r"/a: the server is too slow: [0-9]+ bytes in 0 s"):
            storage.read(f"{web.url}/a{SECRET}")
        assert storage.read(f"{web.url}/b") == DATA


def test_refusals_are_told_at_once_and_without_the_credential() -> None:
    with serving({"/a": Answer(status=403), "/gone": Answer(status=410), "/odd": Answer(status=418)}) as web:
        with pytest.raises(StorageError, match=r"/a: access denied \(403\).* expired") as error:
            storage.read(f"{web.url.replace('://', '://user:topsecret@')}/a{SECRET}")
        assert not isinstance(error.value, UnavailableError)
        assert "secret" not in str(error.value)
        for name in ("gone", "nothing"):
            with pytest.raises(MissingError, match="not found"):
                storage.read(f"{web.url}/{name}")
        with pytest.raises(StorageError, match="status 418"):
            storage.read(f"{web.url}/odd")
        assert len(web.asked) == 4


def test_redirections_are_followed_a_few_times_and_to_the_web_only() -> None:
    def to(place: str) -> Answer:
        return Answer(status=302, headers={"Location": place})

    hops = {f"/hop{i}": to(f"hop{i + 1}?a=1") for i in range(5)}
    files = {**hops, "/hop5": DATA, "/hop": to("/hop0"), "/circle": to("/circle"), "/file": to("file:///etc/passwd")}
    with serving({**files, "/ftp": to("ftp://host/x" + SECRET)}) as web:
        assert storage.read(f"{web.url}/hop0") == DATA
        for name in ("circle", "hop"):
            with pytest.raises(StorageError, match="redirects in a circle or more than 5"):
                storage.read(f"{web.url}/{name}")
        for name in ("file", "ftp"):
            with pytest.raises(StorageError, match="which is not followed") as error:
                storage.read(f"{web.url}/{name}")
            assert "secret" not in str(error.value)


def test_no_more_is_read_than_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Announced or not; and compressed bytes count as what they unfold to."""
    import gzip

    monkeypatch.setattr(http, "MAX_BYTES", len(DATA) - 1)
    monkeypatch.setattr(http, "_CHUNK_BYTES", 1024)
    bomb = Answer(gzip.compress(bytes(len(DATA))), headers={"Content-Encoding": "gzip"})
    with serving({"/a": DATA, "/b": Answer(DATA, announced=-1), "/c": bomb, "/fits": DATA[1:]}) as web:
        for name in "abc":
            with pytest.raises(StorageError, match="the limit for files read from the web"):
                storage.read(f"{web.url}/{name}")
            with pytest.raises(StorageError, match="the limit for files read from the web"):
                storage.fetch(f"{web.url}/{name}", tmp_path / name)
        assert storage.read(f"{web.url}/fits") == DATA[1:]
    assert not list(tmp_path.iterdir())


def test_a_server_without_a_trusted_certificate_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    draft = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    draft = draft.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    certificate = draft.add_extension(host, False).sign(key, hashes.SHA256())
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "both.pem").write_bytes(private + pem)
    (tmp_path / "cert.pem").write_bytes(pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "both.pem")
    with serving({"/a": DATA, "/down": Answer(status=302, headers={"Location": "http://127.0.0.1:9/a"})}, tls) as web:
        with pytest.raises(StorageError, match="certificate is not trusted") as error:
            storage.read(f"{web.url}/a{SECRET}")
        assert not isinstance(error.value, UnavailableError)
        assert "secret" not in str(error.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        http._pool_of.cache_clear()
        assert storage.read(f"{web.url}/a") == DATA
        with pytest.raises(StorageError, match="which is not followed"):  # out of TLS
            storage.read(f"{web.url}/down")
    http._pool_of.cache_clear()


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is asked for the whole address."""
    with serving({"http://far.invalid/a": DATA}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://me:pa%20ss@"))
        monkeypatch.setenv("no_proxy", "near.invalid")
        assert storage.read("http://far.invalid/a") == DATA
        assert proxy.sent[0]["proxy-authorization"] == "Basic bWU6cGEgc3M="
        with pytest.raises(UnavailableError):
            storage.read("http://near.invalid/a")
    assert len(proxy.asked) == 1


def test_many_threads_read_at_once() -> None:
    files = {f"/{i}": bytes([i]) * 1000 for i in range(64)}
    with serving(files) as web, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda path: storage.read(web.url + path), files)) == list(files.values())


def test_nothing_is_listed_or_written_there() -> None:
    url = f"https://user:topsecret@host/a{SECRET}"
    for work in (storage.names, storage.sizes, storage.walk):
        with pytest.raises(StorageError, match="does not list its files") as error:
            work(url)
        assert "secret" not in str(error.value)
    tries = [lambda: storage.write(url, b""), lambda: storage.create(url, b"")]
    tries += [lambda: storage.delete(url), lambda: storage.remove_stale(url), lambda: storage.check_writable(url)]
    for attempt in tries:
        with pytest.raises(StorageError, match="is read-only") as error:
            attempt()
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("uri", ["https://", "http://[::1/a", "http://a b/c", "https://host:99999/a"])
def test_what_is_no_address_is_told(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_TRIES", 1)
    with pytest.raises(StorageError):
        storage.read(uri + SECRET)


def test_an_address_is_shown_without_its_credentials() -> None:
    assert storage.redacted(f"HTTPS://me:pw@host:8/a%20b{SECRET}#x") == "https://host:8/a%20b"
    assert storage.redacted("s3://bucket/a?b") == "s3://bucket/a?b"
