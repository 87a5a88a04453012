"""The Hugging Face Hub as a mirror of a run: what is best in storage is copied there, beside the training.

It watches the run's best.json and knows nothing of models, ranks or steps: each copy is `segdist push` in a process of its
own, of low priority and without a GPU. Whatever happens to it, the run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import Any

from segdist import log, record, storage
from segdist.checkpoint import BEST
from segdist.config import Config
from segdist.errors import StorageError, UserError

_LOOK_SECONDS = 15.0
_PAUSES = (30, 120, 600)  # seconds before a copy that failed is tried again; the last one as often as need be


class Mirror:
    """Open it around a run. Raises UserError at once when the Hub would not take the run's model."""

    def __init__(self, cfg: Config) -> None:
        from segdist.push import open_model

        assert cfg.hub.repo_id is not None
        self._cfg, self._repo_id = cfg, cfg.hub.repo_id
        self._repo, self._url = open_model(self._repo_id, cfg.hub.private, cfg.run.uri, cfg.hub.overwrite)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        log.say(f"the best model so far goes to {self._url}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def finish(self, summary: dict[str, Any]) -> None:
        """Copies the best model of a run that has ended well; says where it is, or how to do it later."""
        self._ended.set()
        self._thread.join()
        if summary["state"] != record.SUCCEEDED:
            log.say(f"{self._url} gets the best model when the run goes on; or now, by {self._by_hand()}")
            return
        if self._is_there(summary):
            log.say(f"the best model is at {self._url}")
            return
        log.say(f"copying the best model to {self._url}")
        problem = None
        for pause in (*_PAUSES[:1], None):
            problem = self._copy(self._cfg.run.uri, threading.Event())
            if problem is None or pause is None:
                break
            log.say(f"warning: {problem}; trying again in {pause} s")
            time.sleep(pause)
        if problem:
            log.say(f"warning: {problem}. The run is whole, but not on the Hub: {self._by_hand()}")

    def _by_hand(self) -> str:
        return f"`segdist push {self._cfg.run.uri} {self._repo_id}`"

    def _is_there(self, summary: dict[str, Any]) -> bool:
        """Whether the Hub holds what the run ended with."""
        from segdist.push import run_id

        try:
            held = self._repo.mark() or {}
        except UserError:
            return False
        same = held.get("run_id") == run_id(self._cfg.run.uri) and held.get("run_state") == record.SUCCEEDED
        return same and held.get("checkpoint") == str(summary["best_checkpoint"]).rsplit("/", 1)[-1]

    def _watch(self) -> None:
        """Copies each new best checkpoint, the newest first, until the run has ended."""
        copied, failures, not_before = self._best(), 0, 0.0
        while not self._ended.wait(_LOOK_SECONDS):
            best = self._best()
            if best is None or best == copied or time.monotonic() < not_before:
                continue
            problem = self._copy(storage.join(self._cfg.run.uri, best), self._ended)
            if problem is None:
                copied, failures, not_before = best, 0, 0.0
            elif not self._ended.is_set() and self._best() == best:  # else a better one replaced it on the way
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
                failures, not_before = failures + 1, time.monotonic() + pause
                log.say(f"warning: {problem}; the run goes on, and the Hub is tried again in {pause} s")

    def _best(self) -> str | None:
        """The best checkpoint, below the run; None where there is none, or storage does not say."""
        try:
            return json.loads(storage.read(storage.join(self._cfg.run.uri, BEST)))["checkpoint"]
        except (StorageError, ValueError, KeyError):
            return None

    def _copy(self, uri: str, ended: threading.Event) -> str | None:
        """`segdist push` of a run or checkpoint; what went wrong, or None. It is stopped when the event is set."""
        hub = self._cfg.hub
        command = [sys.executable, "-m", "segdist", "push", uri, self._repo_id]
        command += ["--private" if hub.private else "--public"]
        command += {None: [], True: ["--samples"], False: ["--no-samples"]}[hub.show_samples]
        command += ["--overwrite"] if hub.overwrite else []
        if shutil.which("nice"):
            command = ["nice", "-n", "10", *command]
        single = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
        with tempfile.TemporaryFile() as told:
            process = subprocess.Popen(command, env=alone | single, stdout=told, stderr=told, start_new_session=True)
            while process.poll() is None:
                if ended.wait(0.2):
                    process.terminate()
                    process.wait()
                    return "stopped, since the run has ended"
            told.seek(0)
            lines = told.read().decode(errors="replace").strip().splitlines()
        return None if process.returncode == 0 else " ".join(_last_message(lines)) or "segdist push said nothing"


def _last_message(lines: list[str]) -> list[str]:
    """From the last `error:` on, which may have been wrapped; else the last line."""
    begins = [i for i, line in enumerate(lines) if line.startswith("error:")]
    return lines[begins[-1] :] if begins else lines[-1:]
