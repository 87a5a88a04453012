"""A web server on loopback that answers as it is told, badly too. `with serving({"/a.png": data}) as web: web.url`

A path's answers are given one after the other, the last one for ever; bytes stand for a good answer. Every answer knows ranges.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer; `announced` is a Content-Length that may lie, None for the true one, -1 for none at all."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    announced: int | None = None
    ranges: bool = True
    hang: bool = False  # sends half the body, and then nothing until the server ends
    drip: bool = False  # sends a byte every 20 ms


@dataclass
class Web:
    url: str
    answers: dict[str, list[Answer]]
    asked: list[str] = field(default_factory=list)  # path and query of every request
    sent: list[dict[str, str]] = field(default_factory=list)  # and its headers, their names in small letters
    most_at_once: int = 0


def answers_of(value: bytes | Answer | list[bytes | Answer]) -> list[Answer]:
    return [v if isinstance(v, Answer) else Answer(v) for v in (value if isinstance(value, list) else [value])]


@contextmanager
def serving(
    files: Mapping[str, bytes | Answer | list[bytes | Answer]], tls: ssl.SSLContext | None = None
) -> Iterator[Web]:
    web = Web("", {path: answers_of(value) for path, value in files.items()})
    lock, ended = threading.Lock(), threading.Event()
    busy = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            nonlocal busy
            with lock:
                web.asked.append(self.path)
                web.sent.append({name.lower(): value for name, value in self.headers.items()})
                known = web.answers.get(self.path.partition("?")[0], [Answer(status=404)])
                answer = known.pop(0) if len(known) > 1 else known[0]
                busy += 1
                web.most_at_once = max(web.most_at_once, busy)
            try:
                self._send(answer)
            finally:
                with lock:
                    busy -= 1

        def _send(self, answer: Answer) -> None:
            body, status, headers = answer.body, answer.status, dict(answer.headers)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if answer.ranges else None
            if wanted and status == 200:
                first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
                status = 206 if first < len(body) else 416
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                body = body[first : last + 1]
            announced = len(body) if answer.announced is None else answer.announced
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if announced >= 0:
                self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.close_connection = answer.announced is not None or answer.hang
            for i in range(len(body) if answer.drip else 0):
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
                ended.wait(0.02)
            self.wfile.write(b"" if answer.drip else body[: len(body) // 2] if answer.hang else body)
            self.wfile.flush()
            if answer.hang:
                ended.wait(60)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that goes away is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    web.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
