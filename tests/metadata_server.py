"""A stand-in for EC2's instance metadata service, version 2, on loopback: `with serving() as machine:`"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Machine:
    """What the service tells of the machine, and `asked`: (method, path) of every request."""

    life_cycle: str = "spot"
    action: str | None = None  # the JSON of a notice
    address: str = ""
    failing: int = 0  # requests to be answered 503
    asked: list[tuple[str, str]] = field(default_factory=list)
    token: str = ""

    def take_away(self, seconds: float, action: str = "terminate") -> None:
        when = datetime.now(UTC) + timedelta(seconds=seconds)
        self.action = json.dumps({"action": action, "time": when.strftime("%Y-%m-%dT%H:%M:%SZ")})


@contextmanager
def serving() -> Iterator[Machine]:
    machine = Machine()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            machine.asked.append(("PUT", self.path))
            if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                return self.answer(400)
            machine.token = secrets.token_hex(8)
            return self.answer(200, machine.token)

        def do_GET(self) -> None:
            machine.asked.append(("GET", self.path))
            if machine.failing:
                machine.failing -= 1
                return self.answer(503)
            if not machine.token or self.headers.get("X-aws-ec2-metadata-token") != machine.token:
                return self.answer(401)
            found = {
                "/latest/meta-data/instance-life-cycle": machine.life_cycle,
                "/latest/meta-data/spot/instance-action": machine.action,
            }.get(self.path)
            return self.answer(404) if found is None else self.answer(200, found)

        def answer(self, code: int, text: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    machine.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield machine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
