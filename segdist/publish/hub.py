"""A repository of the Hugging Face Hub, written to: created when need be, changed by whole commits.

Every commit is one request that holds all files, so what a reader finds is one export, never half of two. Where the Hub does
not answer, or another commit came between, it is asked again for two minutes; a commit whose answer was lost is found made,
since a commit that changes nothing is not made again.
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
from segdist.errors import StorageError, UnavailableError, UserError

T = TypeVar("T")
README = "README.md"
MARK = "segdist.json"  # in every repository that segdist has written: {"run_id", "files", ...}
_TIMEOUT_SECONDS = 120.0  # without an answer, or without a byte going either way
_OTHERS = {".gitattributes", README, "LICENSE"}  # what a repository made by hand may hold


class Repo:
    """A model or data set of the Hub. Nothing is asked before a method is called; all raise UserError with a remedy."""

    def __init__(self, repo_id: str, kind: Literal["model", "dataset"] = "model") -> None:
        from huggingface_hub import HfApi, get_session
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import disable_progress_bars, validate_repo_id

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise UserError(f"{repo_id!r} is no repository of the Hub; give OWNER/NAME ({error})") from None
        if "/" not in repo_id:
            raise UserError(f"{repo_id!r} is no repository of the Hub; give OWNER/NAME")
        if not console.console.is_terminal:
            disable_progress_bars()
        get_session().timeout = _TIMEOUT_SECONDS  # the library's own waits for ever
        self.repo_id, self._kind, self._api = repo_id, kind, HfApi()
        self._uploads: dict[str, Any] = {}  # by name: files of the next commit that are there already
        self.changed = False  # by the last commit

    def open(self, private: bool) -> str:
        """Its address; it is created where it does not exist.

        Asks whether the token there is may do that: whoever calls it before a long work does not work in vain. Raises
        UserError, too, where it should be private, and everybody sees it.
        """
        self._role(self._ask(self._api.whoami))
        made = lambda: self._api.create_repo(self.repo_id, repo_type=self._kind, private=private, exist_ok=True)  # noqa: E731
        url = str(self._ask(made))
        if private and not self.is_private():
            raise UserError(
                f"{self.repo_id} on the Hub is public; give another name, or say --public (in a config: hub.private=false) if "
                "everybody may see what you put there"
            )
        return url

    def check(self) -> bool:
        """Whether it exists; changes nothing. Raises UserError when the token there is plainly may not write it."""
        who = self._ask(self._api.whoami)
        self._role(who)
        owners = [who["name"], *(org["name"] for org in who.get("orgs", []))]
        if self.repo_id.split("/")[0] not in owners:
            raise UserError(
                f"{self.repo_id}: your token may not write there: it is of {', '.join(owners)}; give another token or "
                "repository"
            )
        return self._ask(lambda: self._api.repo_exists(self.repo_id, repo_type=self._kind))

    def _role(self, who: dict[str, Any]) -> None:
        """Raises UserError when the token says of itself that it may only read."""
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"{self.repo_id}: your token may not write there: it may only read (role Read). {_how_to_get_one()}"
            )

    def is_private(self) -> bool:
        return bool(self._ask(lambda: self._api.repo_info(self.repo_id, repo_type=self._kind)).private)

    def mark(self) -> dict[str, Any] | None:
        """What its last commit by segdist says of itself; None where it holds nothing.

        Raises UserError where it holds other things.
        """
        _, files = self._head()
        if MARK in files:
            return self._ask(self._read_mark)
        if files - _OTHERS:
            raise UserError(
                f"{self.repo_id} on the Hub holds files that segdist did not write ({', '.join(sorted(files - _OTHERS)[:3])}); "
                "give another name, or replace those of the same names with --overwrite (in a config: hub.overwrite=true)"
            )
        return None

    def upload(self, name: str, data: bytes) -> None:
        """Sends a file of the next commit ahead, so that neither disk nor memory need hold all of them."""
        from huggingface_hub import CommitOperationAdd

        def once() -> Any:
            added = CommitOperationAdd(name, data)
            self._api.preupload_lfs_files(self.repo_id, [added], repo_type=self._kind)
            return added

        self._uploads[name] = self._ask(once)

    def commit(self, folder: Path, message: str, overwrite: bool = False) -> str:
        """Makes the repository hold the files of a folder, and what was uploaded before; the commit's id, and see `changed`.

        A README.md that somebody else wrote or edited there stays, unless `overwrite`.

        Of an earlier commit by segdist nothing else stays; files that segdist did not write stay as they are, but for those of
        the same names. The folder's segdist.json tells this commit from others.
        """
        mine = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        tried = False

        def once() -> str:
            nonlocal tried
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            head, there = self._head_now()
            held = self._read_mark() if MARK in there else {}
            if tried and MARK in mine and held == json.loads(mine[MARK].read_bytes()):
                self.changed = True
                return str(head)  # it was made, and its answer lost
            tried = True
            stale = sorted(there & set(held.get("files", [])) - set(mine) - set(self._uploads))
            kept = set() if overwrite else self._edited(there, held)
            add = [CommitOperationAdd(name, path) for name, path in mine.items() if name not in kept]
            with _quiet():
                made = self._api.create_commit(
                    self.repo_id,
                    [*add, *self._uploads.values(), *map(CommitOperationDelete, stale)],
                    repo_type=self._kind,
                    commit_message=message,
                    parent_commit=head,
                )
            self.changed = made.oid != head
            return made.oid

        return self._ask(once)

    def _edited(self, there: set[str], held: dict[str, Any]) -> set[str]:
        """README.md, where the one on the Hub is not as segdist left it."""
        if README not in there or hashlib.sha256(self._read(README)).hexdigest() == held.get("readme"):
            return set()
        console.say(
            f"{self.repo_id}: its {README} was written or edited by somebody else, and stays; --overwrite replaces it"
        )
        return {README}

    def _head(self) -> tuple[str | None, set[str]]:
        return self._ask(self._head_now)

    def _head_now(self) -> tuple[str | None, set[str]]:
        """(newest commit, its files)."""
        info = self._api.repo_info(self.repo_id, repo_type=self._kind)
        return info.sha, {item.rfilename for item in getattr(info, "siblings", None) or []}

    def _read_mark(self) -> dict[str, Any]:
        """segdist.json as it is; {} where it is damaged."""
        try:
            tree = json.loads(self._read(MARK))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return tree if isinstance(tree, dict) else {}

    def _read(self, name: str) -> bytes:
        kind = "datasets/" if self._kind == "dataset" else ""
        return storage.read(f"hf://{kind}{self.repo_id}/{name}")

    def _ask(self, work: Callable[[], T]) -> T:
        """work(), patiently, with the errors of huggingface_hub told in our words."""
        return storage.with_retries(lambda: self._asked(work), console.say)

    def _asked(self, work: Callable[[], T]) -> T:
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            return work()
        except UserError:
            raise
        except LocalTokenNotFoundError:
            raise UserError(f"{self.repo_id}: writing to the Hub needs a token. {_how_to_get_one()}") from None
        except OfflineModeIsEnabled:
            raise UserError(f"{self.repo_id}: HF_HUB_OFFLINE is set; unset it to write to the Hub") from None
        except (HTTPError, RuntimeError) as error:  # uploads of large files wrap what happened to them
            cause = error if isinstance(error, HTTPError) else error.__cause__
            if not isinstance(cause, HTTPError | OSError):
                raise
            answer = cause.response if isinstance(cause, HfHubHTTPError) else None
            raise self._explained(cause, 0 if answer is None else answer.status_code) from None
        except (ConnectionError, TimeoutError) as error:
            raise UnavailableError(f"{self.repo_id}: the Hub does not answer ({error})") from None
        except OSError as error:
            raise StorageError(f"{self.repo_id}: {error}; mend that on this machine") from None
        except ValueError as error:
            raise UserError(f"{self.repo_id}: the Hub does not take it ({error}); please report this") from None

    def _explained(self, error: BaseException, status: int) -> StorageError | UserError:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        if status in (409, 412):
            return UnavailableError(f"{self.repo_id}: somebody else is changing this repository ({said})")
        if status == 401:
            return UserError(
                f"{self.repo_id}: the Hub does not know the token in HF_TOKEN (or that of `hf auth login`). {_how_to_get_one()}"
            )
        if status == 403:
            return UserError(
                f"{self.repo_id}: your token may not write there ({said}); give a repository of your own, or another token. "
                f"{_how_to_get_one()}"
            )
        if status in (0, 408, 429) or status >= 500:
            return UnavailableError(f"{self.repo_id}: the Hub does not answer ({status or said})")
        return UserError(f"{self.repo_id}: the Hub refuses ({status}: {said})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own word on a commit that changes nothing: ours says it."""
    logger = logging.getLogger("huggingface_hub.hf_api")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _how_to_get_one() -> str:
    """The right that a token needs, and where to make such a token."""
    from huggingface_hub import constants

    return (
        "Make one with the role Write, or a fine-grained one with write access to contents of this repository (to create it: "
        f"of its owner's repositories), at {constants.ENDPOINT}/settings/tokens; set HF_TOKEN, or give it to `hf auth login`"
    )


def seal(folder: Path, told: dict[str, Any], elsewhere: Iterable[str] = ()) -> None:
    """Writes segdist.json into a folder that is to be committed: what is told, its files and those `elsewhere`, a digest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MARK)
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    names = [path.relative_to(folder).as_posix() for path in files]
    tree = {**told, "files": [*names, *elsewhere, MARK], "content": digest.hexdigest()[:16]}
    if (folder / README).is_file():
        tree["readme"] = hashlib.sha256((folder / README).read_bytes()).hexdigest()
    (folder / MARK).write_text(json.dumps(tree, indent=1), encoding="utf-8")
