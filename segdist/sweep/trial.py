"""One trial, in a process that Ray Tune starts: an ordinary run, whose evaluations Tune judges.

The run goes in a thread. At an evaluation it waits until Tune has judged, so that a verdict holds for that very step; a trial
that Tune stops commits and ends as any run does. What Tune keeps as a checkpoint is a note of where our own one lies.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from segdist import console, storage
from segdist.config import Config
from segdist.errors import MissingError, RanksError, StorageError, UserError, is_out_of_memory
from segdist.launch import run_inside
from segdist.launch.mailbox import PolledNotice
from segdist.launch.ray_rank import check_shared
from segdist.runs import checkpoints, record
from segdist.sweep.plan import Plan
from segdist.sweep.space import name_of

PLACE = "_place"  # beside the values in what Tune calls a trial's config
_NOTE = "segdist.json"
_COMMIT_SECONDS, _END_SECONDS = 300.0, 900.0


@dataclass(frozen=True)
class Place:
    """Where a trial's run lies below the sweep, and where it began."""

    run: str
    offset: int = 0  # steps of the trial before this run
    parent: str | None = None  # the checkpoint that this run begins with
    seed: int | None = None


@dataclass(frozen=True)
class Job:
    """What all trials share."""

    plan: Plan
    folder: str  # the driver's
    mark: str  # what a process must see below the sweep
    mailbox: Any
    gpus: float  # of a trial of one rank


class OutageError(Exception):
    """A trial could not go on for no fault of its own: another process may."""


class TrialProcess(Trainable):
    """What Tune knows of a trial: its next evaluation, where it can go on, and its end."""

    def setup(self, config: dict[str, Any], job: Job) -> None:
        self._place = Place(**config.pop(PLACE))
        self._values, self._job = config, job
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._verdicts: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._stop = False
        self._wish: Any = lambda: None
        self._alone = self._evicted = False
        self._local_step = 0
        self._last: dict[str, Any] = {}
        console.use(_Voice(job.mailbox, self.trial_id))

    def step(self) -> dict[str, Any]:
        """The next evaluation of the run, or its end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="run", daemon=True)
            self._thread.start()
        else:
            self._verdicts.put("go on")
        told = self._told.get()
        if "outage" in told:
            raise OutageError(told["outage"])
        return told

    def cleanup(self) -> None:
        """Tune has stopped this trial, or it has ended: the run commits first."""
        self._stop = True
        self._verdicts.put("stop")
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
        self._job.mailbox.post.remote("ended", self.trial_id)

    def save_checkpoint(self, folder: str) -> None:
        """A note of the commit that was made at the last evaluation, once it is whole."""
        run = storage.join(self._job.plan.sweep.uri, self._place.run)
        until = time.monotonic() + _COMMIT_SECONDS
        while (found := _commit_of(run, self._local_step)) is None:
            if time.monotonic() > until:
                raise UserError(f"{run}: the checkpoint of step {self._local_step} is not written")
            time.sleep(0.2)
        note = {**asdict(self._place), "trial": self.trial_id, "checkpoint": found}
        note["step"] = self._place.offset + self._local_step
        Path(folder, _NOTE).write_text(json.dumps(note), encoding="utf-8")

    def load_checkpoint(self, folder: str) -> None:
        """Goes on where this trial was; or, with another's note, from that one's weights, in a run whose name tells of both."""
        note = json.loads(Path(folder, _NOTE).read_text(encoding="utf-8"))
        if note["trial"] == self.trial_id:
            self._place = Place(note["run"], note["offset"], note["parent"], note["seed"])
            return
        uri, parent, step = self._job.plan.sweep.uri, note["checkpoint"], note["step"]
        tried = hashlib.sha256(name_of(self._values).encode()).hexdigest()[:8]  # the same commit may be taken twice
        run = f"trials/{self.trial_id}-from-{note['trial']}-step-{step:08d}-{tried}"
        if not storage.exists(storage.join(uri, run)) and not storage.exists(parent):  # the other has gone on for long
            total = self._job.plan.config(self._values, run).train.num_steps
            kept = [(note["offset"] + (checkpoints.step_of(one) or 0), one) for one in _commits(uri, note["run"])]
            step, parent = max((one for one in kept if one[0] < total), default=(step, parent))
        self._place = Place(run, step, parent)

    def _run(self) -> None:
        with PolledNotice(self._job.mailbox) as wish:
            self._wish = wish
            self._train()

    def _train(self) -> None:
        try:
            cfg = self._config()
            check_shared(cfg.run.uri, self._job.folder, self._job.mark)
            if cfg.scale.num_ranks == 1:
                _share_gpu(self._job.gpus)
            self._total, self._alone = cfg.train.num_steps, cfg.scale.num_ranks == 1
            state = run_inside(cfg, self._tell, self._notice)["state"]
            if self._evicted and state == record.PREEMPTED:
                raise OutageError("its node is about to go")
            end = {"state": state, "reason": None}
        except BaseException as error:  # one trial's failure is a result of the sweep, not its end
            if is_outage(error):
                self._told.put({"outage": str(error)})
                return
            if isinstance(error, SystemExit):  # stopped before its ranks began
                self._told.put({**self._about(), "state": record.PREEMPTED, "reason": None, "done": True})
                return
            end = {"state": record.FAILED, "reason": reason(error)}
            if not isinstance(error, UserError):
                console.say(traceback.format_exc(limit=-8))
        self._told.put({**self._last, **self._about(), **end, "done": True})

    def _config(self) -> Config:
        plan, place = self._job.plan, self._place
        cfg = plan.config(self._values, storage.join(plan.sweep.uri, place.run), place.seed)
        return plan.continued(cfg, place.offset, place.parent) if place.parent else cfg

    def _tell(self, metrics: dict[str, Any]) -> None:
        self._local_step = metrics["step"]
        self._last = {key: float(metrics[key]) for key in ("miou", "loss")}
        if metrics["step"] == self._total:
            return  # told together with the end, and not to be judged
        self._told.put({**self._last, **self._about()})
        if self._verdicts.get() == "stop":
            self._stop = True

    def _notice(self) -> Any:
        wish = "stop" if self._stop else self._wish()
        if (
            wish == "checkpoint" and self._alone
        ):  # its node is about to go, and nobody moves a trial of one rank but Tune
            self._evicted = self._stop = True
        return "stop" if self._stop else wish

    def _about(self) -> dict[str, Any]:
        place = self._place
        step = place.offset + self._local_step
        return {"step": step, "run": place.run, "offset": place.offset, "parent": place.parent, "values": self._values}


def reason(error: BaseException) -> str:
    """Why a trial failed, in a line or two."""
    if is_out_of_memory(error):
        return f"out of memory: {str(error).splitlines()[0]}"
    if isinstance(error, UserError | RanksError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def is_outage(error: BaseException) -> bool:
    """Whether a trial failed because something around it did, storage or a node."""
    if isinstance(error, RanksError):
        return error.exit_code == 75
    if isinstance(error, OutageError):
        return True
    return isinstance(error, StorageError) and not isinstance(error, MissingError)


def _commits(uri: str, run: str) -> list[str]:
    return checkpoints.committed(storage.join(uri, run))


def _commit_of(run: str, step: int) -> str | None:
    """The committed checkpoint of a step of a run."""
    return next((uri for uri in checkpoints.committed(run) if checkpoints.step_of(uri) == step), None)


def _share_gpu(gpus: float) -> None:
    """Where several trials share a GPU, none takes more of its memory than its share."""
    import torch

    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


class _Voice:
    """The log.Screen of a trial: only its warnings are worth everybody's attention; the rest is in its run's own log."""

    def __init__(self, mailbox: Any, trial_id: str) -> None:
        self._mailbox, self._trial_id = mailbox, trial_id

    def say(self, text: str) -> None:
        if text.startswith(("warning", "Traceback", "node ")) and "has IoU 0" not in text:
            self._mailbox.post.remote("say", f"trial {self._trial_id}: {text}")

    def show(self, done: int, total: int, line: str) -> None:
        self._mailbox.post.remote("show", done, total, self._trial_id)

    def close(self) -> None:
        pass
