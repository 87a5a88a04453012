"""A reverse proxy on loopback that spoils chosen requests on their way to a real S3 server. `with spoiling(address, *faults):`

It keeps the Host header, which the client has signed.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import ClientSession, DummyCookieJar, web

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>spoiled by a test</Message></Error>'


@dataclass
class Fault:
    """What happens to requests of `method` whose path and query match `path`: to the `times` that follow the first `skip`.

    do: a status with an error code ("503 SlowDown"); "cut" sends half of the body, "lost" drops the answer of a request that
    was carried out, "reset" that of one that was not, "change" turns over a bit of the body that is sent up, "etag" answers
    with another ETag, "unconditional" forgets If-None-Match, "wait" holds the request back until `go` is set.
    """

    method: str
    path: str
    do: str
    times: int = 10**9
    skip: int = 0
    met: int = field(default=0, init=False)
    go: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        known = ("cut", "lost", "reset", "change", "etag", "unconditional", "wait")
        assert self.do[:1].isdigit() or self.do in known, self.do

    def meets(self, request: web.Request) -> bool:
        if request.method != self.method or not re.search(self.path, request.path_qs):
            return False
        self.met += 1
        return self.skip < self.met <= self.skip + self.times


async def _handle(request: web.Request, target: str, session: ClientSession, faults: list[Fault]) -> web.StreamResponse:
    body = await request.read()
    fault = next((f for f in faults if f.meets(request)), None)
    do = fault.do if fault else ""
    if do[:1].isdigit():
        status, code = do.split()
        return web.Response(status=int(status), text=ERROR.format(code=code), content_type="application/xml")
    while fault and do == "wait" and not fault.go.is_set():
        await asyncio.sleep(0.05)
    if do == "reset":
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    if do == "change":
        body = bytes([body[0] ^ 1]) + body[1:]
    headers = {k: v for k, v in request.headers.items() if k.lower() not in ("content-length", "transfer-encoding")}
    if do == "unconditional":
        headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
    async with session.request(request.method, target + request.path_qs, headers=headers, data=body) as answer:
        data = await answer.read()
        back = {
            k: v for k, v in answer.headers.items() if k.lower() not in ("transfer-encoding", "connection", "server")
        }
    back["Content-Length"] = answer.headers.get("Content-Length", str(len(data)))
    if do == "etag":
        back["ETag"] = '"0123-not-an-md5"'
    if do == "lost":
        assert request.transport is not None
        request.transport.abort()
    response = web.StreamResponse(status=answer.status, headers=back)
    await response.prepare(request)
    await response.write(data[: len(data) // 2] if do == "cut" else data)
    if do == "cut":
        assert request.transport is not None
        request.transport.close()
    return response


@contextmanager
def spoiling(target: str, *faults: Fault) -> Iterator[str]:
    """The address of the proxy."""
    loop = asyncio.new_event_loop()
    started: dict[str, str] = {}
    ready = threading.Event()
    ended = asyncio.Event()

    async def serve() -> None:
        async with ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar()) as session:

            async def handle(request: web.Request) -> web.StreamResponse:
                return await _handle(request, target, session, list(faults))

            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            started["address"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await ended.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield started["address"]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(20)
        loop.close()
