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

from segdist import console, storage
from segdist.config import Config
from segdist.errors import UnavailableError, UserError
from segdist.launch.stop import terminable
from segdist.runs import record
from segdist.runs.checkpoints import BEST

_LOOK_SECONDS = 15.0
_PAUSES = (30, 120, 600)  # seconds before a copy that failed is tried again; the last one as often as need be
_COPY_SECONDS = 3600.0  # that a copy may take


class Mirror:
    """Open it around a run. Raises UserError at once when the Hub would not take the run's model.

    Where the Hub does not answer, the run begins all the same.
    """

    def __init__(self, cfg: Config) -> None:
        from segdist.publish.push import open_model

        assert cfg.hub.repo_id is not None
        self._cfg, self._repo_id = cfg, cfg.hub.repo_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mirror", daemon=True)
        try:
            _, url = open_model(self._repo_id, cfg.hub.private, cfg.run.uri, cfg.hub.overwrite)
            console.say(f"the best model so far goes to {url}")
        except UnavailableError as error:
            console.say(f"warning: {error}; the run begins, and its best model goes there when it does")

    def __enter__(self) -> Mirror:
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
            console.say(f"{self._repo_id} gets the best model when the run goes on; or now, by {self._by_hand()}")
            return
        held = self._held() or {}
        if held.get("run_state") == record.SUCCEEDED and held.get("checkpoint") == _name(summary["best_checkpoint"]):
            console.say(f"the best model is at {self._repo_id} on the Hub")
            return
        console.say(f"copying the best model to {self._repo_id} on the Hub")
        with terminable():
            problem = self._copy(self._cfg.run.uri, threading.Event())
            if problem:
                console.say(f"warning: {problem}; trying again in {_PAUSES[0]} s")
                time.sleep(_PAUSES[0])
                problem = self._copy(self._cfg.run.uri, threading.Event())
        if problem:
            console.say(f"warning: {problem}. The run is whole, but not on the Hub: {self._by_hand()}")
        else:
            console.say(f"the best model is at {self._repo_id} on the Hub")

    def _by_hand(self) -> str:
        return f"`segdist push {self._cfg.run.uri} {self._repo_id}`"

    def _held(self) -> dict[str, Any] | None:
        """What the Hub holds of this run; None where that is nothing, or not to be known."""
        from segdist.publish.hub import Repo

        try:
            held = Repo(self._repo_id).mark()
            return held if held and held.get("run_id") == record.run_id(self._cfg.run.uri) else None
        except UserError:
            return None

    def _watch(self) -> None:
        """Copies each new best checkpoint, the newest first, until the run has ended."""
        failures, not_before, copied = 0, 0.0, (self._held() or {}).get("checkpoint")
        while not self._ended.wait(_LOOK_SECONDS):
            best = self._best()
            if best is None or _name(best) == copied or time.monotonic() < not_before:
                continue
            problem = self._copy(storage.join(self._cfg.run.uri, best), self._ended)
            if problem is None:
                copied, failures, not_before = _name(best), 0, 0.0
            elif not self._ended.is_set() and self._best() == best:  # else a better one replaced it on the way
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
                failures, not_before = failures + 1, time.monotonic() + pause
                console.say(f"warning: {problem}; the run goes on, and the Hub is tried again in {pause} s")

    def _best(self) -> str | None:
        """The best checkpoint, below the run; None where there is none, or storage does not say."""
        try:
            return json.loads(storage.read(storage.join(self._cfg.run.uri, BEST)))["checkpoint"]
        except (ValueError, KeyError):
            return None

    def _copy(self, uri: str, ended: threading.Event) -> str | None:
        """`segdist push` of a run or checkpoint; what went wrong, or None. It is stopped when the event is set."""
        single = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
        deadline = time.monotonic() + _COPY_SECONDS
        try:
            with tempfile.TemporaryDirectory() as room, tempfile.TemporaryFile() as told:
                env = alone | single | {"TMPDIR": room}  # so that nothing stays of one that is stopped
                process = subprocess.Popen(
                    self._command(uri), env=env, stdout=told, stderr=told, start_new_session=True
                )
                try:
                    while process.poll() is None:
                        if ended.wait(0.2):
                            return "stopped, since the run has ended"
                        if time.monotonic() > deadline:
                            return f"given up after {_COPY_SECONDS / 60:.0f} minutes"
                finally:
                    _end(process)
                told.seek(0)
                lines = told.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return str(error)
        return None if process.returncode == 0 else " ".join(_last_message(lines)) or "segdist push said nothing"

    def _command(self, uri: str) -> list[str]:
        hub = self._cfg.hub
        command = [sys.executable, "-m", "segdist", "push", uri, self._repo_id]
        command += ["--private" if hub.private else "--public"]
        command += {None: [], True: ["--samples"], False: ["--no-samples"]}[hub.show_samples]
        command += ["--overwrite"] if hub.overwrite else []
        command += ["--licence", hub.licence] if hub.licence else []
        return ["nice", "-n", "10", *command] if shutil.which("nice") else command


def _name(uri: str | None) -> str | None:
    """Of a checkpoint."""
    return uri and uri.rsplit("/", 1)[-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends it, gently for ten seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_message(lines: list[str]) -> list[str]:
    """From the last `error:` on, which may have been wrapped; else the last line."""
    begins = [i for i, line in enumerate(lines) if line.startswith("error:")]
    return lines[begins[-1] :] if begins else lines[-1:]
