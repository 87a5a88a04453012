"""Mirrors a run on the Hugging Face Hub: copies the best checkpoint there while the run trains.

The mirror watches the run's best.json. Each copy is a `segdist push` in a separate process with low priority and no GPU. A
failed copy never affects the run.
"""

from __future__ import annotations

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
from segdist.runs import checkpoints, record

_LOOK_SECONDS = 15.0
_PAUSES = (30, 120, 600)  # seconds before each retry of a failed copy; the last value repeats
_COPY_SECONDS = 3600.0  # limit for one copy


class Mirror:
    """A context manager around a run. Raises UserError at once if the Hub would refuse the run's model.

    If the Hub does not answer, the run starts anyway.
    """

    def __init__(self, cfg: Config) -> None:
        from segdist.publish.push import open_model

        assert cfg.hub.repo_id is not None
        self._cfg, self._repo_id = cfg, cfg.hub.repo_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mirror", daemon=True)
        try:
            _, url = open_model(self._repo_id, cfg.hub.private, cfg.run.uri, cfg.hub.overwrite)
            console.say(f"the best model so far is copied to {url}")
        except UnavailableError as error:
            console.say(f"warning: {error}. Training starts; uploads begin once the Hub responds.")

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def finish(self, summary: dict[str, Any]) -> None:
        """Copy the best model of a complete run, and say where it is or how to copy it later."""
        self._ended.set()
        self._thread.join()
        if summary["state"] != record.SUCCEEDED:
            console.say(
                f"the best model is copied to {self._repo_id} when the run continues. To copy it now: {self._by_hand()}"
            )
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
            console.say(
                f"warning: {problem}. The run is complete, but it is not on the Hub. To copy it: {self._by_hand()}"
            )
        else:
            console.say(f"the best model is at {self._repo_id} on the Hub")

    def _by_hand(self) -> str:
        return f"`segdist push {self._cfg.run.uri} {self._repo_id}`"

    def _held(self) -> dict[str, Any] | None:
        """Return what the Hub holds of this run, or None if it holds nothing or does not answer."""
        from segdist.publish.hub import Repo

        try:
            held = Repo(self._repo_id).manifest()
            return held if held and held.get("run_id") == record.run_id(self._cfg.run.uri) else None
        except UserError:
            return None

    def _watch(self) -> None:
        """Copy each new best checkpoint until the run ends."""
        failures, not_before, copied = 0, 0.0, (self._held() or {}).get("checkpoint")
        while not self._ended.wait(_LOOK_SECONDS):
            best = checkpoints.name_of_best(self._cfg.run.uri)
            if best is None or _name(best) == copied or time.monotonic() < not_before:
                continue
            problem = self._copy(storage.join(self._cfg.run.uri, best), self._ended)
            if problem is None:
                copied, failures, not_before = _name(best), 0, 0.0
            # otherwise a better one replaced it meanwhile
            elif not self._ended.is_set() and checkpoints.name_of_best(self._cfg.run.uri) == best:
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
                failures, not_before = failures + 1, time.monotonic() + pause
                console.say(f"warning: {problem}; training continues, and the copy is retried in {pause} s")

    def _copy(self, uri: str, ended: threading.Event) -> str | None:
        """Run `segdist push` for a run or checkpoint. Return what went wrong, or None. Setting the event stops it."""
        single = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
        deadline = time.monotonic() + _COPY_SECONDS
        try:
            with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as told:
                env = alone | single | {"TMPDIR": scratch}  # so that a stopped copy leaves nothing behind
                process = subprocess.Popen(
                    self._command(uri), env=env, stdout=told, stderr=told, start_new_session=True
                )
                try:
                    while process.poll() is None:
                        if ended.wait(0.2):
                            return "stopped because the run ended"
                        if time.monotonic() > deadline:
                            return f"gave up after {_COPY_SECONDS / 60:.0f} minutes"
                finally:
                    _end(process)
                told.seek(0)
                lines = told.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return str(error)
        return None if process.returncode == 0 else " ".join(_last_message(lines)) or "segdist push printed nothing"

    def _command(self, uri: str) -> list[str]:
        hub = self._cfg.hub
        command = [sys.executable, "-m", "segdist", "push", uri, self._repo_id]
        command += ["--private" if hub.private else "--public"]
        command += {None: [], True: ["--samples"], False: ["--no-samples"]}[hub.show_samples]
        command += ["--overwrite"] if hub.overwrite else []
        command += ["--licence", hub.licence] if hub.licence else []
        return ["nice", "-n", "10", *command] if shutil.which("nice") else command


def _name(uri: str | None) -> str | None:
    """Return the name of a checkpoint's folder."""
    return uri and uri.rsplit("/", 1)[-1]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate the process; kill it after ten seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_message(lines: list[str]) -> list[str]:
    """Return the lines from the last `error:` on, or the last line."""
    begins = [i for i, line in enumerate(lines) if line.startswith("error:")]
    return lines[begins[-1] :] if begins else lines[-1:]
