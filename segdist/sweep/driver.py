"""Run a sweep's trials with Ray Tune: start them, record their results in the ledger, and stop.

Tune places the trials and applies the scheduler. Its own files are never read, and no Tune experiment is ever restored: a
sweep that is launched again is a new experiment that starts with the unfinished trials of the ledger.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.search_algorithm import SearchAlgorithm

from segdist import console, storage
from segdist.config import Scale
from segdist.errors import UnavailableError, last_line
from segdist.launch.mailbox import DRAINING, Inbox
from segdist.launch.ray_cluster import in_use, nodes, shortage
from segdist.launch.stop import StopSignal
from segdist.sweep.capacity import SYNCHRONOUS, max_running_trials, rank_resources
from segdist.sweep.ledger import ENDED, FAILED, RUNNING, STOPPED, WAITING, Ledger, Trial
from segdist.sweep.plan import Plan, spent_budget
from segdist.sweep.schedulers import make_scheduler
from segdist.sweep.search import num_trials
from segdist.sweep.space import format_values
from segdist.sweep.trial import LOCATION, RunLocation, SweepContext, TrialProcess

_MIN_ALIKE_FAILURES = 3  # trials that fail for the same reason before the sweep is stopped
_IDLE_SECONDS, _REPEAT_SECONDS, _STOP_SECONDS, _ANSWER_SECONDS = 30.0, 60.0, 1800.0, 5.0
_OUTAGE = "OutageError: "  # how Ray prints trial.OutageError

NextTrial = Callable[[], Trial | None]


class TrialRunner:
    """Runs trials until there are no more, the budget is spent, or a stop is requested."""

    def __init__(self, plan: Plan, ledger: Ledger, scale: Scale, num_steps: int, every_steps: int) -> None:
        self.plan, self.ledger, self.scale = plan, ledger, scale
        self.num_steps, self.every_steps = num_steps, every_steps
        self.need = rank_resources(scale)
        self.inbox = Inbox()
        self.stopping: tuple[str, str] | None = None  # (kind, reason) once no new trial may start
        self.still_running: set[str] | None = None  # trials that ran when the stop was requested and still do
        self.committing: dict[str, float] = {}  # stopped trials that may still commit -> since when
        self._shown: set[str] = set()
        self._stopped_at = 0.0

    def run(self, next_trial: NextTrial, scheduled: bool = True) -> None:
        """Run the waiting trials, then those that `next_trial` returns. `scheduled`: use the sweep's scheduler."""
        mark = storage.join(self.plan.sweep.uri, ".ray", "driver")
        storage.with_retries(lambda: storage.write(mark, b"segdist"), console.say)
        context = SweepContext(self.plan, os.getcwd(), mark, self.inbox.mailbox, self.need.get("GPU", 0))
        waiting = [
            trial for trial in self.ledger.trials if trial.state == WAITING and (trial.confirms is None) == scheduled
        ]
        synchronous = scheduled and self.plan.sweep.scheduler.name in SYNCHRONOUS
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(num_trials(self.plan.sweep) if synchronous else 1)
        before = [trial for trial in self.ledger.searched if trial.scores]
        with StopSignal(message=None) as stop_signal, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consider boosting PBT")
            callback = TrialCallback(self, stop_signal)
            tune.run(
                tune.with_parameters(TrialProcess, context=context),
                name="tune",
                storage_path=_tune_folder(self.plan.sweep.uri),
                search_alg=TrialQueue(self, waiting, next_trial, synchronous),
                scheduler=make_scheduler(self.plan.sweep, self.num_steps, self.every_steps, before)
                if scheduled
                else None,
                callbacks=[callback],
                stop=StopWhenDone(self),
                verbose=0,
                raise_on_failed_trial=False,
                max_failures=self.scale.max_restarts,
            )
        for trial in self.ledger.trials:
            if trial.state == RUNNING:  # Tune calls no callback for trials that end with the experiment
                trial.state = WAITING
        self.ledger.save()

    def resources(self) -> tune.PlacementGroupFactory:
        """Return what Tune reserves for a trial. With several ranks, Ray Train reserves the ranks' resources itself."""
        if self.scale.num_ranks == 1:
            return tune.PlacementGroupFactory([self.need])
        return tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])

    def stop(self, kind: Literal["asked", "budget", "alike", "stuck"], reason: str) -> None:
        """Start no new trial, and let the running ones commit and end."""
        if self.stopping is None:
            self.stopping, self._stopped_at = (kind, reason), time.monotonic()
            self.inbox.ask("stop")
            console.say(reason)

    def is_stopped(self) -> bool:
        """Return whether all trials that ran at the stop have ended, or have used up their time for it."""
        late = time.monotonic() - self._stopped_at > _STOP_SECONDS
        return (
            self.stopping is not None
            and self.still_running is not None
            and (late or not (self.still_running or self.committing))
        )

    def read_messages(self) -> None:
        """Read what the trials have posted: warnings, of which each kind is shown once, and that a trial has ended."""
        posts, *_ = self.inbox.take(_ANSWER_SECONDS) or ((),)
        for kind, *rest in posts:
            if kind == "ended":
                self.committing.pop(rest[0], None)
            elif kind == DRAINING:
                self._show_once(f"node {rest[0]} is draining. Its trials commit", rest[0])
            elif kind == "say":
                self._show_once(rest[0], re.sub(r"\d", "", rest[0]))  # the same warning of other trials adds nothing
        now = time.monotonic()
        self.committing = {id: since for id, since in self.committing.items() if now - since < _STOP_SECONDS}

    def _show_once(self, text: str, key: str) -> None:
        if key not in self._shown:
            self._shown.add(key)
            console.say(text)


class TrialQueue(SearchAlgorithm):
    """Gives Tune its next trial. Trials keep the ids of the ledger."""

    def __init__(self, runner: TrialRunner, waiting: list[Trial], next_trial: NextTrial, synchronous: bool) -> None:
        self._runner, self._next_trial, self._synchronous = runner, next_trial, synchronous
        self._waiting = deque(waiting)
        self._live: set[str] = set()
        self._experiment: Any = None
        self._exhausted = self._finished = False

    def add_configurations(self, experiments: Any) -> None:
        (self._experiment,) = experiments

    def next_trial(self) -> TuneTrial | None:
        runner = self._runner
        if self._exhausted or runner.stopping:
            runner.read_messages()
            self._finished = not (self._live or runner.committing) or runner.is_stopped()
            return None
        if not self._synchronous and len(self._live) >= max_running_trials(runner.plan, runner.scale, runner.need):
            return None
        try:
            trial = self._waiting.popleft() if self._waiting else self._next_trial()
        except UnavailableError as error:
            console.say(f"warning: {error}. No new trial starts until storage answers")
            return None
        if trial is None:
            self._exhausted = True
            return None
        self._live.add(trial.id)
        return self._tune_trial(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    @property
    def total_samples(self) -> int:
        return len(self._runner.ledger.trials)

    def _tune_trial(self, trial: Trial) -> TuneTrial:
        experiment, location = self._experiment, RunLocation(trial.run, trial.offset, trial.parent, trial.seed)
        return TuneTrial(
            experiment.run_identifier,
            config={**trial.values, LOCATION: asdict(location)},
            trial_id=trial.id,
            storage=experiment.storage,
            placement_group_factory=self._runner.resources(),
            checkpoint_config=experiment.checkpoint_config,
            max_failures=self._runner.scale.max_restarts,
            trial_dirname_creator=lambda tune_trial: tune_trial.trial_id,
        )


class TrialCallback(tune.Callback):
    """Records results in the ledger, prints them, and stops the sweep when it must stop."""

    def __init__(self, runner: TrialRunner, stop_signal: StopSignal) -> None:
        self._runner, self._ledger, self._stop_signal = runner, runner.ledger, stop_signal
        self._idle_since = self._said_at = time.monotonic()
        self._ended: list[Trial] = []  # in this launch

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        known = self._ledger.trial(trial.trial_id)
        if known.state != RUNNING:
            how = "continues" if known.scores else "starts"
            console.say(f"trial {known.id} {how}: {format_values(known.values)}")
        known.state = RUNNING
        self._ledger.try_save()

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        known, metric = self._ledger.trial(trial.trial_id), self._runner.plan.sweep.metric
        if result["run"] != known.run:
            self._record_exploit(known, result)
        if result.get(metric) is not None:
            known.add_score(result["step"], result["miou"], result["loss"])
            if not result.get("state"):
                console.say(f"trial {known.id}, step {result['step']}: {metric} {result[metric]:.4f}")
        if state := result.get("state"):
            known.state = state if state in ENDED else WAITING
            known.reason = result["reason"]

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        known, sweep = self._ledger.trial(trial.trial_id), self._runner.plan.sweep
        if known.state == RUNNING and not self._runner.stopping:
            known.state, known.reason = STOPPED, f"by {sweep.scheduler.name}, after step {known.step}"
            if trial.status == TuneTrial.RUNNING:  # a paused trial has committed and its process has ended
                self._runner.committing[known.id] = time.monotonic()
        best = known.best(sweep.metric)
        score = "" if best is None else f", best {sweep.metric} {best:.4f}"
        if known.state in ENDED:
            console.say(f"trial {known.id} {known.state}{score}{f': {known.reason}' if known.reason else ''}")
        self._ledger.try_save()
        self._check_failures(known)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        known = self._ledger.trial(trial.trial_id)
        known.reason = _error_of(trial)
        known.state = WAITING if _OUTAGE in known.reason else FAILED  # the next launch continues waiting trials
        console.say(f"trial {known.id} {known.state}: {known.reason}")
        self._ledger.try_save()
        self._check_failures(known)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        console.say(
            f"trial {trial.trial_id}: its process ended ({_error_of(trial)}). It continues from its newest checkpoint"
        )

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        runner = self._runner
        running = {trial.trial_id for trial in trials if trial.status == TuneTrial.RUNNING}
        self._ledger.tick(running)
        runner.read_messages()
        if runner.stopping:
            runner.still_running = running if runner.still_running is None else runner.still_running & running
        if self._stop_signal():
            runner.stop("asked", "stopping: every trial commits after its step and ends. Ctrl-C again stops at once")
        if spent := spent_budget(runner.plan, self._ledger.facts["seconds"], self._ledger.trials):
            runner.stop("budget", f"{spent}. Running trials commit and stop")
        self._check_progress(trials)

    def _record_exploit(self, known: Trial, result: dict[str, Any]) -> None:
        """Record that PBT let a trial continue from another trial's weights."""
        donor = str(result["run"]).split("-from-")[1].split("-step-")[0]
        values = {key: value for key, value in result["values"].items() if key in self._runner.plan.sweep.space}
        exploit = {"trial": known.id, "from": donor, "step": result["offset"], "before": known.values, "values": values}
        console.say(
            f"trial {known.id} continues from trial {donor}'s weights after step {result['offset']}: {format_values(values)}"
        )
        self._ledger.exploits.append({**exploit, "time": time.time()})
        known.run, known.offset, known.parent, known.values = result["run"], result["offset"], result["parent"], values

    def _check_failures(self, known: Trial) -> None:
        """Stop the sweep if all trials of this launch failed for the same reason, because the others would too."""
        ended = self._ended = [*self._ended, *([known] if known.state in ENDED else [])]
        if len(ended) >= _MIN_ALIKE_FAILURES and all(trial.state == FAILED for trial in ended):
            kinds = {_failure_kind(trial.reason or "") for trial in ended}
            if len(kinds) == 1:
                self._runner.stop("alike", f"all {len(ended)} trials so far failed in the same way: {ended[0].reason}")

    def _check_progress(self, trials: list[TuneTrial]) -> None:
        """Say which resources are missing while no trial runs. Stop the sweep if that lasts too long."""
        now, runner = time.monotonic(), self._runner
        busy = any(trial.status == TuneTrial.RUNNING for trial in trials)
        if busy or runner.stopping:
            self._idle_since = now
            return
        waited = now - self._idle_since
        if waited < _IDLE_SECONDS or now - self._said_at < _REPEAT_SECONDS:
            return
        self._said_at = now
        lack = shortage(runner.scale, runner.need, nodes())
        console.say(f"no trial is running: {lack or in_use(runner.need)}")
        if lack and waited > runner.scale.start_seconds:
            runner.stop("stuck", f"no trial could start in {waited:.0f} s (scale.start_seconds): {lack}")


class StopWhenDone(tune.Stopper):
    """Ends Tune's experiment once the runner has stopped."""

    def __init__(self, runner: TrialRunner) -> None:
        self._runner = runner

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._runner.is_stopped()


def _tune_folder(uri: str) -> str:
    """Return where Tune writes its files in this launch, below the sweep's URI."""
    home = storage.join(uri, ".ray", f"{time.time():.0f}")
    return str(storage.local_path(home)) if storage.is_local(home) else home


def _failure_kind(reason: str) -> str:
    """Return the part of a failure's reason that failures of the same kind share: its first clause without numbers."""
    return re.sub(r"\d[\d.e+-]*|\b(nan|inf)\b", "#", re.split(r"; |\. ", reason)[0])


def _error_of(trial: TuneTrial) -> str:
    return last_line(str(trial.get_error() or "its process ended"))
