"""A repository of the Hugging Face Hub, written to: created when need be, changed by whole commits.

Every commit is one request that holds all files, so what a reader finds is one export, never half of two. Where the Hub does
not answer, or another commit came between, it is asked again for two minutes; a commit whose answer was lost is found made,
since a commit that changes nothing is not made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from segdist import log, storage
from segdist.errors import StorageError, UnavailableError, UserError

T = TypeVar("T")
MARK = "segdist.json"  # in every repository that segdist has written: {"run_id", "files", ...}
_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_OTHERS = {".gitattributes", "README.md", "LICENSE"}  # what a repository made by hand may hold


class Repo:
    """A model or data set of the Hub. Nothing is asked before a method is called; all raise UserError with a remedy."""

    def __init__(self, repo_id: str, kind: Literal["model", "dataset"] = "model") -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        if not log.console.is_terminal:
            disable_progress_bars()
        if not _NAME.fullmatch(repo_id) or len(repo_id) > 96:
            raise UserError(f"{repo_id!r} is no repository of the Hub; give OWNER/NAME")
        self.repo_id, self._kind, self._api = repo_id, kind, HfApi()

    def open(self, private: bool) -> str:
        """Its address; it is created where it does not exist, and keeps its visibility where it does.

        Asks whether the token there is may do that: whoever calls it before a long work does not work in vain.
        """
        self._ask(self._api.whoami)
        return str(
            self._ask(lambda: self._api.create_repo(self.repo_id, repo_type=self._kind, private=private, exist_ok=True))
        )

    def check(self) -> bool:
        """Whether it exists; changes nothing. Raises UserError when the token there is plainly may not write it."""
        who = self._ask(self._api.whoami)
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        owners = [who["name"], *(org["name"] for org in who.get("orgs", []))]
        if role == "read" or self.repo_id.split("/")[0] not in owners:
            reason = "it may only read" if role == "read" else f"it is of {', '.join(owners)}"
            raise UserError(
                f"{self.repo_id}: your token may not write there: {reason}; give another token or repository"
            )
        return self._ask(lambda: self._api.repo_exists(self.repo_id, repo_type=self._kind))

    def is_private(self) -> bool:
        return bool(self._ask(lambda: self._api.repo_info(self.repo_id, repo_type=self._kind)).private)

    def mark(self) -> dict[str, Any] | None:
        """What its last commit by segdist says of itself; None where it holds nothing.

        Raises UserError where it holds other things.
        """
        _, files = self._head()
        if MARK in files:
            return self._read_mark()
        if files - _OTHERS:
            raise UserError(
                f"{self.repo_id} on the Hub holds files that segdist did not write ({', '.join(sorted(files - _OTHERS)[:3])}); "
                "give another name, or replace those of the same names with --overwrite (in a config: hub.overwrite=true)"
            )
        return None

    def commit(self, folder: Path, message: str) -> str:
        """Makes the repository hold the files of a folder, and none of an earlier commit by segdist; the commit's id.

        Files that segdist did not write stay as they are, but for those of the same names.
        """
        mine = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

        def once() -> str:
            from huggingface_hub import CommitOperationAdd, CommitOperationDelete

            head, there = self._head_now()
            stale = sorted(there & set(self._read_mark().get("files", [])) - set(mine)) if MARK in there else []
            add = [CommitOperationAdd(name, path) for name, path in mine.items()]
            delete = [CommitOperationDelete(name) for name in stale]
            made = self._api.create_commit(
                self.repo_id, [*add, *delete], repo_type=self._kind, commit_message=message, parent_commit=head
            )
            return made.oid

        return self._ask(once)

    def _head(self) -> tuple[str | None, set[str]]:
        return self._ask(self._head_now)

    def _head_now(self) -> tuple[str | None, set[str]]:
        """(newest commit, its files)."""
        info = self._api.repo_info(self.repo_id, repo_type=self._kind)
        return info.sha, {item.rfilename for item in getattr(info, "siblings", None) or []}

    def _read_mark(self) -> dict[str, Any]:
        """segdist.json as it is; {} where it is damaged."""
        kind = "datasets/" if self._kind == "dataset" else ""
        try:
            tree = json.loads(storage.read(f"hf://{kind}{self.repo_id}/{MARK}"))
        except ValueError:
            return {}
        return tree if isinstance(tree, dict) else {}

    def _ask(self, work: Callable[[], T]) -> T:
        """work(), patiently, with the errors of huggingface_hub told in our words."""
        return storage.patiently(lambda: self._asked(work), log.say)

    def _asked(self, work: Callable[[], T]) -> T:
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        try:
            return work()
        except LocalTokenNotFoundError:
            raise UserError(
                f"{self.repo_id}: writing to the Hub needs a token; make one with write access at "
                "https://huggingface.co/settings/tokens, and set HF_TOKEN or give it to `hf auth login`"
            ) from None
        except OfflineModeIsEnabled:
            raise UserError(f"{self.repo_id}: HF_HUB_OFFLINE is set; unset it to write to the Hub") from None
        except (HTTPError, RuntimeError) as error:  # uploads of large files wrap what happened to them
            cause = error if isinstance(error, HTTPError) else error.__cause__
            if not isinstance(cause, HTTPError | OSError):
                raise
            answer = cause.response if isinstance(cause, HfHubHTTPError) else None
            raise self._explained(cause, 0 if answer is None else answer.status_code) from None
        except OSError as error:
            raise UnavailableError(f"{self.repo_id}: the Hub does not answer ({error})") from None

    def _explained(self, error: BaseException, status: int) -> StorageError | UserError:
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        if status in (409, 412):
            return UnavailableError(f"{self.repo_id}: somebody else is changing this repository ({said})")
        if status == 401:
            return UserError(
                f"{self.repo_id}: the Hub does not know the token in HF_TOKEN (or that of `hf auth login`); make one with "
                "write access at https://huggingface.co/settings/tokens"
            )
        if status == 403:
            return UserError(
                f"{self.repo_id}: your token may not write there ({said}); give a repository of your own, or a token with "
                "write access to it"
            )
        if status in (0, 408, 429) or status >= 500:
            return UnavailableError(f"{self.repo_id}: the Hub does not answer ({status or said})")
        return UserError(f"{self.repo_id}: the Hub refuses ({status}: {said})")
