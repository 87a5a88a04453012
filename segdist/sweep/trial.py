"""One trial, in a process that Ray Tune starts: an ordinary run whose evaluations go to Tune's scheduler.

The run is in a thread. At an evaluation it waits for the scheduler's decision, so that the decision holds for that very step. A
trial that Tune stops commits and ends as any run does. A Tune checkpoint is only a note of where our own checkpoint is.
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
from segdist.errors import TRY_AGAIN, MissingError, RanksError, StorageError, UserError, is_out_of_memory
from segdist.launch import run_inside
from segdist.launch.mailbox import PolledNotice
from segdist.launch.ray_rank import check_shared
from segdist.runs import checkpoints, record
from segdist.sweep.ledger import checkpoint_at
from segdist.sweep.plan import Plan
from segdist.sweep.space import point_key
from segdist.train import dead_classes

LOCATION = "_location"  # key beside the values in Tune's config of a trial
_NOTE = "segdist.json"
_COMMIT_SECONDS, _END_SECONDS = 300.0, 900.0


@dataclass(frozen=True)
class RunLocation:
    """Where a trial's current run is, and where it started."""

    run: str  # below the sweep's URI
    offset: int = 0  # steps of the trial before this run
    parent: str | None = None  # checkpoint that this run starts from
    seed: int | None = None


@dataclass(frozen=True)
class SweepContext:
    """What all trials of a launch share."""

    plan: Plan
    folder: str  # working directory of the driver
    mark: str  # a file that the driver wrote; a trial must see it to share the sweep's storage
    mailbox: Any
    gpus: float  # of a rank


class OutageError(Exception):
    """A trial could not continue because of its environment. Another process may."""


class TrialProcess(Trainable):
    """The trial as Tune sees it: its evaluations, its checkpoints, and its end."""

    def setup(self, config: dict[str, Any], context: SweepContext) -> None:
        self._location = RunLocation(**config.pop(LOCATION))
        self._values, self._context = config, context
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._decisions: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._stop = False
        self._requested: Any = lambda: None
        self._has_one_rank = self._evicted = False
        self._local_step = 0
        self._scores: dict[str, Any] = {}
        console.use(_TrialScreen(context.mailbox, self.trial_id))

    def step(self) -> dict[str, Any]:
        """Return the run's next evaluation, or its end. Raises OutageError if another process should continue the trial."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="run", daemon=True)
            self._thread.start()
        else:
            self._decisions.put("go on")
        result = self._results.get()
        if "outage" in result:
            raise OutageError(result["outage"])
        return result

    def cleanup(self) -> None:
        """Let the run commit and end. Tune calls this when it stops the trial, and after the trial's end."""
        self._stop = True
        self._decisions.put("stop")
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
        self._context.mailbox.post.remote("ended", self.trial_id)

    def save_checkpoint(self, folder: str) -> None:
        """Write a note of the checkpoint of the last evaluation, once that checkpoint is committed."""
        run = storage.join(self._context.plan.sweep.uri, self._location.run)
        until = time.monotonic() + _COMMIT_SECONDS
        while (found := checkpoint_at(run, self._local_step)) is None:
            if time.monotonic() > until:
                raise UserError(
                    f"{run}: the checkpoint of step {self._local_step} was not committed within {_COMMIT_SECONDS:.0f} s. "
                    "Check that this folder or bucket is writable"
                )
            time.sleep(0.2)
        note = {**asdict(self._location), "trial": self.trial_id, "checkpoint": found}
        note["step"] = self._location.offset + self._local_step
        Path(folder, _NOTE).write_text(json.dumps(note), encoding="utf-8")

    def load_checkpoint(self, folder: str) -> None:
        """Continue this trial's own run. With another trial's note, start a new run from that trial's weights (PBT)."""
        note = json.loads(Path(folder, _NOTE).read_text(encoding="utf-8"))
        if note["trial"] == self.trial_id:
            self._location = RunLocation(note["run"], note["offset"], note["parent"], note["seed"])
            return
        uri, parent, step = self._context.plan.sweep.uri, note["checkpoint"], note["step"]
        digest = hashlib.sha256(point_key(self._values).encode()).hexdigest()[
            :8
        ]  # tells two exploits of one commit apart
        run = f"trials/{self.trial_id}-from-{note['trial']}-step-{step:08d}-{digest}"
        if not storage.exists(storage.join(uri, run)) and not storage.exists(parent):  # the donor has pruned it since
            total = self._context.plan.config(self._values, run).train.num_steps
            kept = [
                (note["offset"] + (checkpoints.step_of(one) or 0), one)
                for one in checkpoints.committed(storage.join(uri, note["run"]))
            ]
            step, parent = max((one for one in kept if one[0] < total), default=(step, parent))
        self._location = RunLocation(run, step, parent)

    def _run(self) -> None:
        with PolledNotice(self._context.mailbox) as requested:
            self._requested = requested
            self._train()

    def _train(self) -> None:
        """Train, and put the end of the run into the results. A trial's failure is a result, not the end of the sweep."""
        try:
            end = {"state": self._train_to_end(), "reason": None}
        except BaseException as error:
            if is_outage(error):
                self._results.put({"outage": str(error)})
                return
            if isinstance(error, SystemExit):  # stopped before its ranks started
                self._results.put({**self._progress(), "state": record.PREEMPTED, "reason": None, "done": True})
                return
            end = {"state": record.FAILED, "reason": failure_reason(error)}
            if not isinstance(error, UserError):
                console.say(traceback.format_exc(limit=-8))
        self._results.put({**self._scores, **self._progress(), **end, "done": True})

    def _train_to_end(self) -> str:
        """Train, and return the run's state."""
        cfg = self._config()
        check_shared(cfg.run.uri, self._context.folder, self._context.mark)
        if cfg.scale.num_ranks == 1:
            _limit_gpu_memory(self._context.gpus)
        self._total, self._has_one_rank = cfg.train.num_steps, cfg.scale.num_ranks == 1
        state = str(run_inside(cfg, self._report, self._notice)["state"])
        if self._evicted and state == record.PREEMPTED:
            raise OutageError("its node is draining")
        return state

    def _config(self) -> Config:
        plan, location = self._context.plan, self._location
        cfg = plan.config(self._values, storage.join(plan.sweep.uri, location.run), location.seed)
        return plan.continued(cfg, location.offset, location.parent) if location.parent else cfg

    def _report(self, metrics: dict[str, Any]) -> None:
        """Pass an evaluation to the scheduler, and wait for its decision. The `tell` of `fit`."""
        self._local_step = metrics["step"]
        self._scores = {key: float(metrics[key]) for key in ("miou", "loss")}
        if metrics["step"] == self._total:
            return  # reported with the end of the run, about which there is nothing to decide
        self._results.put({**self._scores, **self._progress()})
        if self._decisions.get() == "stop":
            self._stop = True

    def _notice(self) -> Any:
        """Return what the run should do now: stop, checkpoint or None. The `notice` of `fit`."""
        request = "stop" if self._stop else self._requested()
        if request == "checkpoint" and self._has_one_rank:  # the node is draining, and only Tune can move this trial
            self._evicted = self._stop = True
        return "stop" if self._stop else request

    def _progress(self) -> dict[str, Any]:
        at = self._location
        step = at.offset + self._local_step
        return {"step": step, "run": at.run, "offset": at.offset, "parent": at.parent, "values": self._values}


def failure_reason(error: BaseException) -> str:
    """Return why a trial failed, in a line or two."""
    if is_out_of_memory(error):
        return f"out of memory: {str(error).splitlines()[0]}"
    if isinstance(error, UserError | RanksError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def is_outage(error: BaseException) -> bool:
    """Return whether a trial failed because of its environment, such as storage or a node."""
    if isinstance(error, RanksError):
        return error.exit_code == TRY_AGAIN
    if isinstance(error, OutageError):
        return True
    return isinstance(error, StorageError) and not isinstance(error, MissingError)


def _limit_gpu_memory(gpus: float) -> None:
    """Limit this process to its share of the memory if several trials share a GPU."""
    import torch

    if 0 < gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


class _TrialScreen:
    """The console.Screen of a trial. It passes on warnings only, because the run's own log file holds the rest."""

    def __init__(self, mailbox: Any, trial_id: str) -> None:
        self._mailbox, self._trial_id = mailbox, trial_id

    def say(self, text: str) -> None:
        if text.startswith(("warning", "Traceback")) and dead_classes.PHRASE not in text:
            self._mailbox.post.remote("say", f"trial {self._trial_id}: {text}")

    def show(self, done: int, total: int, line: str) -> None:
        self._mailbox.post.remote("show", done, total, self._trial_id)

    def close(self) -> None:
        pass
