"""Repositories of `hub_server` as folders: what they hold, who may see them, and commits to them.

FOLDER/OWNER/NAME is a model, FOLDER/datasets/OWNER/NAME a data set, at revision main and at any commit;
FOLDER/datasets/OWNER/NAME@REVISION, with _ for /, is another revision with its own commit. Beside what a repository holds
lie two files that nobody is shown: GATED with the status that everybody gets, and HISTORY, JSON of its commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_HIDDEN = {"GATED", "HISTORY"}
_BINARY = {".safetensors", ".parquet", ".png", ".jpg", ".onnx", ".pt2", ".bin"}


def commit_of(repo: Path) -> str:
    """The newest commit of a repository at a revision."""
    if (repo / "HISTORY").is_file():
        return history(repo)["commits"][-1]["id"]
    return hashlib.sha1(repo.name.encode()).hexdigest() if "@" in repo.name else COMMIT


def history(repo: Path) -> dict[str, Any]:
    """{"private": bool, "commits": [{"id", "title"}, ...]} of a repository, oldest first."""
    if (repo / "HISTORY").is_file():
        return json.loads((repo / "HISTORY").read_text(encoding="utf-8"))
    return {"private": False, "commits": [{"id": COMMIT, "title": "initial commit"}]}


def at_revision(repo: Path, revision: str | None) -> Path | None:
    """Where a repository lies at a revision or commit; None when it has none such."""
    if not repo.is_dir() or revision in (None, "main", commit_of(repo)):
        return repo
    others = [other for other in repo.parent.glob(f"{repo.name}@*") if revision == commit_of(other)]
    named = repo.with_name(f"{repo.name}@{unquote(revision or '').replace('/', '_')}")
    return named if named.is_dir() else others[0] if others else repo if len(revision or "") == 40 else None


def files(repo: Path, below: str = "", deep: bool = True) -> list[Path]:
    """Files and folders of a repository, sorted."""
    found = (repo / below).rglob("*") if deep else (repo / below).glob("*")
    return sorted(path for path in found if path.name not in _HIDDEN)


def about(repo: Path, name: str, verb: str | None, below: str, body: bytes, deep: bool) -> Any:
    """What the API says of a repository, of a folder in it, or of some paths."""
    if verb == "tree":
        return [entry(repo, path) for path in files(repo, below, deep)]
    if verb == "paths-info":
        text = body.decode()
        paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        return [entry(repo, repo / path) for path in paths if (repo / path).exists()]
    if verb == "refs":
        converts = [
            {"name": "parquet", "ref": "refs/convert/parquet", "targetCommit": commit_of(p)}
            for p in repo.parent.glob(f"{repo.name}@*")
            if p.name.endswith("@refs_convert_parquet")
        ]
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit_of(repo)}]
        return {"branches": branches, "converts": converts, "tags": []}
    card = repo / "README.md"
    return {
        "id": name,
        "sha": commit_of(repo),
        "siblings": [{"rfilename": p.relative_to(repo).as_posix()} for p in files(repo) if p.is_file()],
        "private": history(repo)["private"],
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "gated": "manual" if (repo / "GATED").is_file() else False,
        "cardData": front_matter(card.read_text(encoding="utf-8")) if card.is_file() else {},
    }


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the first two `---` of a card. Raises ValueError when it is none."""
    if not text.startswith("---\n"):
        return {}
    try:
        return yaml.safe_load(text.split("---\n", 2)[1]) or {}
    except (yaml.YAMLError, IndexError) as error:
        raise ValueError(str(error)) from None


def entry(repo: Path, path: Path) -> dict[str, Any]:
    """A file or folder as the API lists it."""
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    data = path.read_bytes()
    told: dict[str, Any] = {"type": "file", "path": name, "oid": blob(data), "size": len(data)}
    if path.suffix in _BINARY:
        told["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return told


def blob(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Writes:
    """The half of the API that changes repositories below `folder`; answers are (status, JSON)."""

    folder: Path
    tokens: dict[str, dict[str, Any]]  # token: {"name", "orgs", "role"}
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    lock: threading.Lock = field(default_factory=threading.Lock)

    def place(self, kind: str, repo: str) -> Path:
        return self.folder / ("datasets" if kind.startswith("dataset") else "") / repo

    def may_write(self, token: str, owner: str) -> bool:
        who = self.tokens.get(token)
        return who is not None and who.get("role", "write") == "write" and owner in [who["name"], *who.get("orgs", [])]

    def whoami(self, token: str) -> tuple[int, Any]:
        who = self.tokens.get(token)
        if who is None:
            return 401, {"error": "Invalid username or password."}
        orgs = [{"type": "org", "name": name} for name in who.get("orgs", [])]
        access = {"displayName": "test", "role": who.get("role", "write")}
        return 200, {"type": "user", "name": who["name"], "orgs": orgs, "auth": {"accessToken": access}}

    def create(self, token: str, asked: dict[str, Any], url: str) -> tuple[int, Any]:
        if token not in self.tokens:
            return 401, {"error": "Invalid username or password."}
        owner, kind = asked.get("organization") or self.tokens[token]["name"], asked.get("type") or "model"
        if not self.may_write(token, owner):
            return 403, {"error": f"You don't have the rights to create a {kind} under the namespace {owner!r}"}
        place, page = self.place(kind, f"{owner}/{asked['name']}"), f"{url}/{owner}/{asked['name']}"
        if place.is_dir():
            return 409, {"error": f"You already created this {kind} repo: {owner}/{asked['name']}", "url": page}
        place.mkdir(parents=True)
        (place / ".gitattributes").write_text("*.safetensors filter=lfs\n", encoding="utf-8")
        self._record(place, "initial commit", private=asked.get("visibility") == "private")
        return 200, {"url": page, "name": f"{owner}/{asked['name']}"}

    def preupload(self, place: Path, asked: dict[str, Any]) -> tuple[int, Any]:
        def plan(file: dict[str, Any]) -> dict[str, Any]:
            path, large = place / file["path"], Path(file["path"]).suffix in _BINARY
            data = path.read_bytes() if path.is_file() else None
            oid = None if data is None else hashlib.sha256(data).hexdigest() if large else blob(data)
            return {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }

        return 200, {"files": [plan(file) for file in asked["files"]]}

    def batch(self, asked: dict[str, Any], url: str) -> tuple[int, Any]:
        def plan(item: dict[str, Any]) -> dict[str, Any]:
            if item["oid"] in self.objects:
                return item
            upload = {"href": f"{url}/lfs/{item['oid']}", "header": {}}
            return item | {"actions": {"upload": upload, "verify": {"href": f"{url}/lfs-verify", "header": {}}}}

        return 200, {"transfer": "basic", "objects": [plan(item) for item in asked["objects"]]}

    def put(self, oid: str, data: bytes) -> tuple[int, Any]:
        if hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "sha256 does not match"}
        self.objects[oid] = data
        return 200, {}

    def commit(self, place: Path, lines: list[dict[str, Any]], url: str) -> tuple[int, Any]:
        with self.lock:
            header = lines[0]["value"]
            if header.get("parentCommit") not in (None, commit_of(place)):
                return 412, {"error": "A commit has happened since. Please refresh and try again."}
            missing = [v["path"] for k, v in _parts(lines) if k == "lfsFile" and v["oid"] not in self.objects]
            if missing:
                return 400, {"error": f"LFS objects are missing: {missing}"}
            for key, value in _parts(lines):
                path = place / value["path"]
                if key == "deletedFile":
                    if not path.is_file():
                        return 404, {"error": f"A file with this name doesn't exist: {value['path']}"}
                    path.unlink()
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lfs = key == "lfsFile"
                    path.write_bytes(self.objects[value["oid"]] if lfs else base64.b64decode(value["content"]))
            oid = self._record(place, header["summary"])
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}

    def _record(self, place: Path, title: str, private: bool | None = None) -> str:
        told = history(place) if private is None else {"private": private, "commits": []}
        oid = hashlib.sha1(f"{place} {len(told['commits'])} {title}".encode()).hexdigest()
        told["commits"].append({"id": oid, "title": title})
        whole = place.with_name(f".{place.name}-history")  # tests read it while it changes
        whole.write_text(json.dumps(told), encoding="utf-8")
        whole.replace(place / "HISTORY")
        return oid


def _parts(lines: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(line["key"], line["value"]) for line in lines[1:]]
