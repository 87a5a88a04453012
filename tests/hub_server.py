"""A Hub of our own on loopback: enough of it for the real huggingface_hub, transformers and smp to read models and data.

Serves FOLDER/OWNER/NAME/FILE as the model OWNER/NAME, and FOLDER/datasets/OWNER/NAME/FILE as a data set, at revision main
and at any commit. `with serving(folder) as (url, asked):`
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
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILE = re.compile(r"/(?P<repo>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/(?P<verb>revision|tree|paths-info)/(?P<rest>.*))?"
)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(address, paths asked for so far)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlsplit(self.path).path)
            file, api = _FILE.fullmatch(path), _API.fullmatch(path)
            repo = folder / ("datasets" if api and api["kind"] == "datasets" else "") / (api["repo"] if api else "")
            if file:
                self._file(folder / file["repo"], file["revision"], file["path"], with_body)
            elif api and repo.is_dir():
                self._json(_about(repo, api["repo"], api["verb"], api["rest"] or "", body))
            else:
                self._missing("RepoNotFound")

        def _file(self, repo: Path, revision: str, name: str, with_body: bool) -> None:
            path = repo / name
            if not path.is_file() or (revision != "main" and len(revision) != 40):
                self._missing("EntryNotFound" if repo.is_dir() else "RepoNotFound")
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            part = data[int(wanted[1]) : int(wanted[2]) + 1] if wanted else data
            self.send_response(206 if wanted else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if with_body:
                self.wfile.write(part)

        def _json(self, tree: Any) -> None:
            data = json.dumps(tree).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _missing(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def _about(repo: Path, name: str, verb: str | None, rest: str, body: bytes) -> Any:
    """What the API says of a repository, of a folder in it, or of some paths."""
    if verb == "tree":
        below = rest.partition("/")[2]  # behind the revision
        found = sorted((repo / below).iterdir()) if (repo / below).is_dir() else []
        return [_entry(repo, path) for path in found]
    if verb == "paths-info":
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        return [_entry(repo, repo / path) for path in paths if (repo / path).exists()]
    return {"id": name, "sha": COMMIT, "siblings": [], "private": False, "tags": [], "downloads": 0, "likes": 0}


def _entry(repo: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    data = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
