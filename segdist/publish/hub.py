"""Write to a repository on the Hugging Face Hub: create it if needed, and change it by whole commits.

Each commit is a single request with all files, so readers never see a mix of two exports. Requests are retried for two minutes
if the Hub does not answer or another commit came first. If the response to a commit was lost, the retry finds the commit
already made, because a commit without changes is not made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from segdist import console, storage
from segdist.errors import StorageError, UnavailableError, UserError, first_few, last_line

T = TypeVar("T")
README = "README.md"
MANIFEST = "segdist.json"  # in every repository and export that segdist has written: {"run_id", "files", ...}
_TIMEOUT_SECONDS = 120.0  # without a response, or without any data transferred
_IGNORED = {".gitattributes", README, "LICENSE"}  # files that a repository created by hand may contain


class Repo:
    """A model or dataset repository on the Hub.

    The constructor sends no request. All methods raise UserError with a remedy, or StorageError if the Hub does not answer.
    """

    def __init__(self, repo_id: str, kind: Literal["model", "dataset"] = "model") -> None:
        from huggingface_hub import HfApi, get_session
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import disable_progress_bars, validate_repo_id

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise UserError(f"{repo_id!r} is not a valid Hub ID ({error}). Use the form OWNER/NAME") from None
        if "/" not in repo_id:
            raise UserError(f"{repo_id!r} is not a valid Hub ID. Use the form OWNER/NAME")
        if not console.console.is_terminal:
            disable_progress_bars()
        get_session().timeout = _TIMEOUT_SECONDS  # the library's default is no timeout
        self.repo_id, self._kind, self._api = repo_id, kind, HfApi()
        self._uploads: dict[str, Any] = {}  # files of the next commit that are already uploaded, by name
        self.changed = False  # whether the last commit changed anything

    def open(self, private: bool) -> str:
        """Create the repository if it does not exist, and return its URL.

        Also checks that the token may write. Call it before long work, so that the work is not wasted. Raises UserError if
        `private` and the repository is public.
        """
        self._check_role(self._request(self._api.whoami))
        create = lambda: self._api.create_repo(self.repo_id, repo_type=self._kind, private=private, exist_ok=True)  # noqa: E731
        url = str(self._request(create))
        if private and not self.is_private():
            raise UserError(
                f"{self.repo_id} on the Hub is public. Choose another name, or use --public (in a config: hub.private=false) "
                "if everyone may see the content"
            )
        return url

    def check(self) -> bool:
        """Return whether the repository exists, without changing it. Raises UserError if the token clearly may not write."""
        who = self._request(self._api.whoami)
        self._check_role(who)
        owners = [who["name"], *(org["name"] for org in who.get("orgs", []))]
        if self.repo_id.split("/")[0] not in owners:
            raise UserError(
                f"{self.repo_id}: your token may not write there, because it belongs to {', '.join(owners)}. Use another token "
                "or another repository"
            )
        return self._request(lambda: self._api.repo_exists(self.repo_id, repo_type=self._kind))

    def _check_role(self, who: dict[str, Any]) -> None:
        """Raise UserError if the token has the role Read."""
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"{self.repo_id}: your token may not write there, because its role is Read. {_how_to_get_a_token()}"
            )

    def is_private(self) -> bool:
        return bool(self._request(lambda: self._api.repo_info(self.repo_id, repo_type=self._kind)).private)

    def manifest(self) -> dict[str, Any] | None:
        """Return the segdist.json of the last commit by segdist, or None if the repository is empty.

        Raises UserError if it holds other files.
        """
        _, files = self._request(self._head)
        if MANIFEST in files:
            return self._request(self._read_manifest)
        if foreign := sorted(files - _IGNORED):
            raise UserError(
                f"{self.repo_id} on the Hub holds files that segdist did not write ({first_few(foreign, 3)}). Choose another "
                "name, or replace files of the same names with --overwrite (in a config: hub.overwrite=true)"
            )
        return None

    def upload(self, name: str, data: bytes) -> None:
        """Upload a file of the next commit in advance, so that neither disk nor memory must hold all files."""
        from huggingface_hub import CommitOperationAdd

        def attempt() -> Any:
            added = CommitOperationAdd(name, data)
            self._api.preupload_lfs_files(self.repo_id, [added], repo_type=self._kind)
            return added

        self._uploads[name] = self._request(attempt)

    def commit(self, folder: Path, message: str, overwrite: bool = False) -> str:
        """Commit the files of a folder and those uploaded before. Return the commit ID and set `changed`.

        Files of earlier commits by segdist are deleted. Other files stay, unless the commit has a file of the same name. A
        README.md that was edited on the Hub also stays, unless `overwrite`. The folder's segdist.json identifies the commit.
        """
        local = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        tried = False

        def attempt() -> str:
            nonlocal tried
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            head, remote = self._head()
            manifest = self._read_manifest() if MANIFEST in remote else {}
            if tried and MANIFEST in local and manifest == json.loads(local[MANIFEST].read_bytes()):
                self.changed = True
                return str(head)  # the commit was made, but its response was lost
            tried = True
            stale = sorted(remote & set(manifest.get("files", [])) - set(local) - set(self._uploads))
            kept = set() if overwrite else self._edited(remote, manifest)
            add = [CommitOperationAdd(name, path) for name, path in local.items() if name not in kept]
            with _quiet_library():
                done = self._api.create_commit(
                    self.repo_id,
                    [*add, *self._uploads.values(), *map(CommitOperationDelete, stale)],
                    repo_type=self._kind,
                    commit_message=message,
                    parent_commit=head,
                )
            self.changed = done.oid != head
            return done.oid

        return self._request(attempt)

    def _edited(self, remote: set[str], manifest: dict[str, Any]) -> set[str]:
        """Return {README.md} if the one on the Hub was not written by segdist's last commit, else an empty set."""
        if README not in remote or hashlib.sha256(self._read(README)).hexdigest() == manifest.get("readme"):
            return set()
        console.say(
            f"{self.repo_id}: keeping its {README}, which was edited on the Hub. Use --overwrite to replace it."
        )
        return {README}

    def _head(self) -> tuple[str | None, set[str]]:
        """Return (newest commit, its files)."""
        info = self._api.repo_info(self.repo_id, repo_type=self._kind)
        return info.sha, {item.rfilename for item in getattr(info, "siblings", None) or []}

    def _read_manifest(self) -> dict[str, Any]:
        """Return the content of segdist.json, or {} if it is damaged."""
        try:
            tree = json.loads(self._read(MANIFEST))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return tree if isinstance(tree, dict) else {}

    def _read(self, name: str) -> bytes:
        kind = "datasets/" if self._kind == "dataset" else ""
        return storage.read(f"hf://{kind}{self.repo_id}/{name}")

    def _request(self, work: Callable[[], T]) -> T:
        """Run work() with retries, and translate the errors of huggingface_hub."""
        return storage.with_retries(lambda: self._attempt(work), console.say)

    def _attempt(self, work: Callable[[], T]) -> T:
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            return work()
        except UserError:
            raise
        except LocalTokenNotFoundError:
            raise UserError(f"{self.repo_id}: writing to the Hub needs a token. {_how_to_get_a_token()}") from None
        except OfflineModeIsEnabled:
            raise UserError(f"{self.repo_id}: HF_HUB_OFFLINE is set. Unset it to write to the Hub") from None
        except (HTTPError, RuntimeError) as error:  # uploads of large files wrap the original error
            cause = error if isinstance(error, HTTPError) else error.__cause__
            if not isinstance(cause, HTTPError | OSError):
                raise
            answer = cause.response if isinstance(cause, HfHubHTTPError) else None
            raise self._explained(cause, 0 if answer is None else answer.status_code) from None
        except (ConnectionError, TimeoutError) as error:
            raise UnavailableError(f"{self.repo_id}: the Hub does not answer ({error})") from None
        except OSError as error:
            raise StorageError(
                f"{self.repo_id}: an error on this machine prevented the upload ({error}). Fix it, and push again"
            ) from None
        except ValueError as error:
            raise UserError(f"{self.repo_id}: the Hub rejected the content ({error}). Please report this") from None

    def _explained(self, error: BaseException, status: int) -> StorageError | UserError:
        reason = last_line(error)
        if status in (409, 412):
            return UnavailableError(
                f"{self.repo_id}: someone else is changing this repository ({reason}). Try again later"
            )
        if status == 401:
            return UserError(
                f"{self.repo_id}: the Hub does not accept the token in HF_TOKEN (or from `hf auth login`). "
                f"{_how_to_get_a_token()}"
            )
        if status == 403:
            return UserError(
                f"{self.repo_id}: your token may not write there ({reason}). Use a repository that you own, or another token. "
                f"{_how_to_get_a_token()}"
            )
        if status in (0, 408, 429) or status >= 500:
            return UnavailableError(f"{self.repo_id}: the Hub does not answer ({status or reason})")
        return UserError(
            f"{self.repo_id}: the Hub refused the request ({status}: {reason}). Check the repository's name and settings"
        )


@contextlib.contextmanager
def _quiet_library() -> Iterator[None]:
    """Suppress the library's warning about a commit without changes; segdist reports that itself."""
    logger = logging.getLogger("huggingface_hub.hf_api")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _how_to_get_a_token() -> str:
    """Say which permission a token needs, and where to create it."""
    from huggingface_hub import constants

    return (
        f"Create one at {constants.ENDPOINT}/settings/tokens: with the role Write, or fine-grained with write access to the "
        "contents of this repository (to create a repository: of its owner's repositories). Then set HF_TOKEN or run "
        "`hf auth login`"
    )


def write_manifest(folder: Path, facts: dict[str, Any], uploaded: Iterable[str] = ()) -> None:
    """Write segdist.json into a folder to commit: `facts`, the names of its files and of those `uploaded`, and a digest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    names = [path.relative_to(folder).as_posix() for path in files]
    tree = {**facts, "files": [*names, *uploaded, MANIFEST], "content": digest.hexdigest()[:16]}
    if (folder / README).is_file():
        tree["readme"] = hashlib.sha256((folder / README).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(tree, indent=1), encoding="utf-8")
