"""A Hub of our own on loopback: enough of it for the real huggingface_hub, transformers and smp to read models and data.

Serves FOLDER/OWNER/NAME/FILE as the model OWNER/NAME, and FOLDER/datasets/OWNER/NAME/FILE as a data set, at revision main
and at any commit; FOLDER/datasets/OWNER/NAME@REVISION, with _ for /, at another revision and its own commit. A file GATED in
a repository holds the status that everybody gets. `with serving(folder) as (url, asked):`, where asked.num_bytes counts
what was sent of files.
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
_VERBS = "revision|tree|paths-info|refs"
_FILE = re.compile(r"/(?P<repo>(datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_API = re.compile(
    rf"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    rf"(/(?P<verb>{_VERBS})(/(?P<revision>[^/]+)(/(?P<below>.*))?)?)?"
)


class Asked(list[str]):
    """Paths asked for so far."""

    num_bytes = 0  # of files, sent so far


def commit_of(repo: Path) -> str:
    """The newest commit of a repository at a revision."""
    return hashlib.sha1(repo.name.encode()).hexdigest() if "@" in repo.name else COMMIT


def at_revision(repo: Path, revision: str | None) -> Path | None:
    """Where a repository lies at a revision or commit; None when it has none such."""
    if not repo.is_dir() or revision in (None, "main", COMMIT):
        return repo
    others = [other for other in repo.parent.glob(f"{repo.name}@*") if revision == commit_of(other)]
    named = repo.with_name(f"{repo.name}@{unquote(revision or '').replace('/', '_')}")
    return named if named.is_dir() else others[0] if others else repo if len(revision or "") == 40 else None


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Asked]]:
    """(address, what was asked for)."""
    asked = Asked()

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
            path = urlsplit(self.path).path
            file, api = _FILE.fullmatch(path), _API.fullmatch(path)
            if not (file or api):
                self._missing("RepoNotFound")
                return
            repo = folder / ("datasets" if api and api["kind"] == "datasets" else "") / (file or api)["repo"]
            place = at_revision(repo, (file or api)["revision"])
            if not repo.is_dir():
                self._missing("RepoNotFound")
            elif place is None:
                self._missing("RevisionNotFound")
            elif (place / "GATED").is_file() and (file or api["verb"]):
                self._missing("GatedRepo", int((place / "GATED").read_text()))
            elif file:
                self._file(place, unquote(file["path"]), with_body)
            else:
                deep = "recursive=true" in urlsplit(self.path).query.lower()
                self._json(_about(place, api["repo"], api["verb"], unquote(api["below"] or ""), body, deep))

        def _file(self, repo: Path, name: str, with_body: bool) -> None:
            path = repo / name
            if not path.is_file():
                self._missing("EntryNotFound")
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

        def _json(self, tree: Any) -> None:
            data = json.dumps(tree).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _missing(self, code: str, status: int = 404) -> None:
            self.send_response(status)
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


def _about(repo: Path, name: str, verb: str | None, below: str, body: bytes, deep: bool) -> Any:
    """What the API says of a repository, of a folder in it, or of some paths."""
    if verb == "tree":
        found = sorted((repo / below).rglob("*") if deep else (repo / below).glob("*"))
        return [_entry(repo, path) for path in found]
    if verb == "paths-info":
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        return [_entry(repo, repo / path) for path in paths if (repo / path).exists()]
    if verb == "refs":
        converts = [
            {"name": "parquet", "ref": "refs/convert/parquet", "targetCommit": commit_of(p)}
            for p in repo.parent.glob(f"{repo.name}@*")
            if p.name.endswith("@refs_convert_parquet")
        ]
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}]
        return {"branches": branches, "converts": converts, "tags": []}
    gated = "manual" if (repo / "GATED").is_file() else False
    facts = {
        "id": name,
        "sha": commit_of(repo),
        "siblings": [],
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }
    return facts | {"gated": gated}


def _entry(repo: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    data = path.read_bytes()
    return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
