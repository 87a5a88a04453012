"""A Hub of our own on loopback: enough of it for the real huggingface_hub, transformers, datasets and smp.

Serves the repositories below a folder, as `hub_repos` says. `with serving(folder) as (url, asked):`, where asked.num_bytes
counts what was sent of files. With `tokens` it can be written to, and what is private needs one.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_repos import COMMIT, Writes, about, at_revision, commit_of, front_matter, history

__all__ = ["COMMIT", "Asked", "commit_of", "history", "serving"]

_FILE = re.compile(r"/(?P<repo>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    r"(/(?P<verb>revision|tree|paths-info|refs|preupload|commit)(/(?P<revision>[^/]+)(/(?P<below>.*))?)?)?"
)
_LFS = re.compile(r"/(?P<repo>(datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch")


class Asked(list[str]):
    """Paths asked for so far."""

    num_bytes = 0  # of files, sent so far


@contextmanager
def serving(folder: Path, tokens: dict[str, dict[str, Any]] | None = None) -> Iterator[tuple[str, Asked]]:
    """(address, what was asked for). `tokens`: {token: {"name": ..., "orgs": [...], "role": "write" or "read"}}."""
    asked, writes = Asked(), Writes(folder, tokens or {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            self._answer(with_body=True)

        def do_PUT(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            if answer := self._changed(path, body):
                self._json(answer[1], answer[0])
                return
            file, api = _FILE.fullmatch(path), _API.fullmatch(path)
            if not (file or api):
                self._missing("RepoNotFound")
                return
            repo = folder / ("datasets" if api and api["kind"] == "datasets" else "") / (file or api)["repo"]
            place = at_revision(repo, (file or api)["revision"])
            if not repo.is_dir() or (history(repo)["private"] and self._token() not in writes.tokens):
                self._missing("RepoNotFound")
            elif place is None:
                self._missing("RevisionNotFound")
            elif (place / "GATED").is_file() and (file or api["verb"]):
                self._missing("GatedRepo", int((place / "GATED").read_text()))
            elif file:
                self._file(place, unquote(file["path"]), with_body)
            else:
                deep = "recursive=true" in urlsplit(self.path).query.lower()
                self._json(about(place, api["repo"], api["verb"], unquote(api["below"] or ""), body, deep))

        def _token(self) -> str:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

        def _url(self) -> str:
            return f"http://{self.headers['Host']}"

        def _changed(self, path: str, body: bytes) -> tuple[int, Any] | None:
            """What a request that changes things is answered; None when it is another one."""
            if path == "/api/whoami-v2":
                return writes.whoami(self._token())
            if path == "/api/validate-yaml":
                try:
                    front_matter(json.loads(body)["content"])
                except ValueError as error:
                    return 400, {"errors": [{"message": str(error)}], "warnings": []}
                return 200, {"errors": [], "warnings": []}
            if path == "/api/repos/create":
                return writes.create(self._token(), json.loads(body), self._url())
            if path.startswith("/lfs/"):
                return writes.put(path.removeprefix("/lfs/"), body)
            if path == "/lfs-verify":
                return 200, {}
            lfs, api = _LFS.fullmatch(path), _API.fullmatch(path)
            if not lfs and not (api and api["verb"] in ("preupload", "commit")):
                return None
            place = folder / lfs["repo"] if lfs else writes.place(api["kind"], api["repo"])
            if self._token() not in writes.tokens:
                return 401, {"error": "Invalid username or password."}
            if not place.is_dir():
                return 404, {"error": "Repository not found"}
            if not writes.may_write(self._token(), place.parent.name):
                return 403, {"error": "Forbidden: you don't have the rights to write to this repository"}
            if lfs:
                return writes.batch(json.loads(body), self._url())
            if api["verb"] == "preupload":
                return writes.preupload(place, json.loads(body))
            page = f"{self._url()}/{api['repo']}"
            return writes.commit(place, [json.loads(line) for line in body.splitlines()], page)

        def _file(self, repo: Path, name: str, with_body: bool) -> None:
            path = repo / name
            if not path.is_file():
                self._missing("EntryNotFound", commit=commit_of(repo))
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            part = data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else data
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit_of(repo))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if with_body:
                asked.num_bytes += len(part)
                self.wfile.write(part)

        def _json(self, tree: Any, status: int = 200) -> None:
            data = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _missing(self, code: str, status: int = 404, commit: str = COMMIT) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
