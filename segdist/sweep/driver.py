"""Ray Tune over our trials: who is next, what came of it, and when to stop. The ledger is the truth; Tune's own files are not
read.

Tune places trials, judges them and carries their notes. It never restores an experiment: a sweep that is launched again is a
new experiment, whose first trials are those that were not finished.
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
from segdist.errors import UnavailableError
from segdist.launch.mailbox import Inbox
from segdist.launch.ray_cluster import in_use, needs, nodes, shortage
from segdist.launch.stop import StopSignal
from segdist.sweep.judges import judge
from segdist.sweep.ledger import ENDED, FAILED, RUNNING, STOPPED, WAITING, Ledger, Trial
from segdist.sweep.plan import Plan, budget_spent, shown
from segdist.sweep.room import TOGETHER, slots
from segdist.sweep.search import num_trials
from segdist.sweep.trial import PLACE, Job, Place, TrialProcess

_FEW = 3  # trials that fail alike, before the sweep is held to be at fault
_IDLE_SECONDS, _SAY_SECONDS, _LEAVE_SECONDS, _ANSWER_SECONDS = 30.0, 60.0, 1800.0, 5.0
_OUTAGE = "OutageError: "  # in Ray's words for that exception of trial.py

Next = Callable[[], Trial | None]


class Rounds:
    """Runs trials of a sweep until there are no more, the budget is spent, or somebody asks to stop."""

    def __init__(self, plan: Plan, ledger: Ledger, scale: Scale, num_steps: int, every_steps: int) -> None:
        self.plan, self.ledger, self.scale = plan, ledger, scale
        self.num_steps, self.every_steps = num_steps, every_steps
        self.need = needs(scale, sum(node["Resources"].get("GPU", 0) for node in nodes()))
        self.inbox = Inbox()
        self.stopping: tuple[str, str] | None = None  # (kind, why), once nothing more is to begin
        self.leaving: set[str] | None = None  # trials that ran when it was said to stop, and still do
        self.ending: dict[str, float] = {}  # stopped trials that may still commit -> since when
        self._heard: set[str] = set()
        self._stopped_at = 0.0

    def run(self, following: Next, judged: bool = True) -> None:
        """Runs the trials that wait, and then those that `following` gives. `judged`: by the sweep's scheduler."""
        mark = storage.join(self.plan.sweep.uri, ".ray", "driver")
        storage.with_retries(lambda: storage.write(mark, b"segdist"), console.say)
        job = Job(self.plan, os.getcwd(), mark, self.inbox.mailbox, self.need.get("GPU", 0))
        waiting = [
            trial for trial in self.ledger.trials if trial.state == WAITING and (trial.confirms is None) == judged
        ]
        queue = Queue(self, waiting, following, judged and self.plan.sweep.scheduler.name in TOGETHER)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(num_trials(self.plan.sweep) if queue.together else 1)
        before = [trial for trial in self.ledger.searched if trial.scores]
        with StopSignal(told=None) as notice, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consider boosting PBT")
            watch = Watch(self, notice)
            tune.run(
                tune.with_parameters(TrialProcess, job=job),
                name="tune",
                storage_path=_tunes_own(self.plan.sweep.uri),
                search_alg=queue,
                scheduler=judge(self.plan.sweep, self.num_steps, self.every_steps, before) if judged else None,
                callbacks=[watch],
                stop=Halt(self),
                verbose=0,
                raise_on_failed_trial=False,
                max_failures=self.scale.max_restarts,
            )
        for trial in self.ledger.trials:
            if trial.state == RUNNING:  # Tune says nothing of those that end with the experiment
                trial.state = WAITING
        self.ledger.save()

    def resources(self) -> tune.PlacementGroupFactory:
        """What Tune reserves for a trial: all of it where it has one rank; next to nothing where Ray Train places the ranks."""
        if self.scale.num_ranks == 1:
            return tune.PlacementGroupFactory([self.need])
        return tune.PlacementGroupFactory([{f"node:{ray.util.get_node_ip_address()}": 0.001}])

    def stop(self, kind: Literal["asked", "budget", "alike", "stuck"], why: str) -> None:
        """Lets everything that runs commit and end; nothing more begins."""
        if self.stopping is None:
            self.stopping, self._stopped_at = (kind, why), time.monotonic()
            self.inbox.ask("stop")
            console.say(why)

    def has_left(self) -> bool:
        """Whether all that ran when it was said to stop has ended, or has had its time."""
        late = time.monotonic() - self._stopped_at > _LEAVE_SECONDS
        return self.stopping is not None and self.leaving is not None and (late or not (self.leaving or self.ending))

    def hear(self) -> None:
        """What trials have posted: warnings, each kind once, and that they have ended."""
        posts, *_ = self.inbox.take(_ANSWER_SECONDS) or ((),)
        for kind, *rest in posts:
            if kind == "ended":
                self.ending.pop(rest[0], None)
            elif kind == "going" and (about := f"node {rest[0]} is about to go: its trials commit") not in self._heard:
                self._heard.add(about)
                console.say(about)
            elif kind == "say" and (alike := re.sub(r"\d", "", rest[0])) not in self._heard:
                self._heard.add(alike)  # what one trial warned of, the others need not
                console.say(*rest)
        now = time.monotonic()
        self.ending = {id: since for id, since in self.ending.items() if now - since < _LEAVE_SECONDS}


class Queue(SearchAlgorithm):
    """What Tune asks for its next trial. Trials bear our own ids, so that what is known of one stays its own."""

    def __init__(self, rounds: Rounds, waiting: list[Trial], following: Next, together: bool) -> None:
        self._rounds, self._following, self.together = rounds, following, together
        self._waiting = deque(waiting)
        self._live: set[str] = set()
        self._experiment: Any = None
        self._exhausted = self._finished = False

    def add_configurations(self, experiments: Any) -> None:
        (self._experiment,) = experiments

    def next_trial(self) -> TuneTrial | None:
        if self._exhausted or self._rounds.stopping:
            self._rounds.hear()
            self._finished = not (self._live or self._rounds.ending) or self._rounds.has_left()
            return None
        if not self.together and len(self._live) >= slots(self._rounds.plan, self._rounds.scale, self._rounds.need):
            return None
        try:
            trial = self._waiting.popleft() if self._waiting else self._following()
        except UnavailableError as error:
            console.say(f"warning: {error}; no new trial begins before storage answers")
            return None
        if trial is None:
            self._exhausted = True
            return None
        self._live.add(trial.id)
        return self._tunes(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    @property
    def total_samples(self) -> int:
        return len(self._rounds.ledger.trials)

    def _tunes(self, trial: Trial) -> TuneTrial:
        experiment, place = self._experiment, Place(trial.run, trial.offset, trial.parent, trial.seed)
        return TuneTrial(
            experiment.run_identifier,
            config={**trial.values, PLACE: asdict(place)},
            trial_id=trial.id,
            storage=experiment.storage,
            placement_group_factory=self._rounds.resources(),
            checkpoint_config=experiment.checkpoint_config,
            max_failures=self._rounds.scale.max_restarts,
            trial_dirname_creator=lambda tunes: tunes.trial_id,
        )


class Watch(tune.Callback):
    """Writes what happens into the ledger, tells people, and sees to it that nothing waits for ever."""

    def __init__(self, rounds: Rounds, notice: StopSignal) -> None:
        self._rounds, self._ledger, self._notice = rounds, rounds.ledger, notice
        self._idle_since = self._said = time.monotonic()
        self._ended: list[Trial] = []  # in this launch

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        known = self._ledger.trial(trial.trial_id)
        if known.state != RUNNING:
            console.say(f"trial {known.id} {'goes on' if known.scores else 'begins'}: {shown(known.values)}")
        known.state = RUNNING
        self._ledger.note()

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        known, metric = self._ledger.trial(trial.trial_id), self._rounds.plan.sweep.metric
        if result["run"] != known.run:
            self._exploit(known, result)
        if result.get(metric) is not None:
            known.hear(result["step"], result["miou"], result["loss"])
            if not result.get("state"):
                console.say(f"trial {known.id}, step {result['step']}: {metric} {result[metric]:.4f}")
        if state := result.get("state"):
            known.state = state if state in ENDED else WAITING
            known.reason = result["reason"]

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        known, sweep = self._ledger.trial(trial.trial_id), self._rounds.plan.sweep
        if known.state == RUNNING and not self._rounds.stopping:
            known.state, known.reason = STOPPED, f"by {sweep.scheduler.name}, after step {known.step}"
            if trial.status == TuneTrial.RUNNING:  # the process of one that paused has committed and ended before
                self._rounds.ending[known.id] = time.monotonic()
        best = known.best(sweep.metric)
        score = "" if best is None else f", best {sweep.metric} {best:.4f}"
        if known.state in ENDED:
            console.say(f"trial {known.id} {known.state}{score}{f': {known.reason}' if known.reason else ''}")
        self._ledger.note()
        self._check_alike(known)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        known = self._ledger.trial(trial.trial_id)
        known.reason = _last_line(trial)
        known.state = WAITING if _OUTAGE in known.reason else FAILED  # the same command takes up what waits
        console.say(f"trial {known.id} {known.state}: {known.reason}")
        self._ledger.note()
        self._check_alike(known)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        console.say(
            f"trial {trial.trial_id}: its process ended ({_last_line(trial)}); it goes on from its newest checkpoint"
        )

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        running = {trial.trial_id for trial in trials if trial.status == TuneTrial.RUNNING}
        self._ledger.tick(running)
        self._rounds.hear()
        if self._rounds.stopping:
            self._rounds.leaving = running if self._rounds.leaving is None else self._rounds.leaving & running
        if self._notice():
            self._rounds.stop(
                "asked", "stopping: every trial commits after its step, and ends; Ctrl-C again stops at once"
            )
        if spent := budget_spent(self._rounds.plan, self._ledger.facts["seconds"], self._ledger.trials):
            self._rounds.stop("budget", f"{spent}: what runs commits and stops")
        self._check_waiting(trials)

    def _exploit(self, known: Trial, result: dict[str, Any]) -> None:
        donor = str(result["run"]).split("-from-")[1].split("-step-")[0]
        values = {key: value for key, value in result["values"].items() if key in self._rounds.plan.sweep.space}
        about = {"trial": known.id, "from": donor, "step": result["offset"], "before": known.values, "values": values}
        console.say(
            f"trial {known.id} goes on from trial {donor}'s weights after step {result['offset']}: {shown(values)}"
        )
        self._ledger.exploits.append({**about, "time": time.time()})
        known.run, known.offset, known.parent, known.values = result["run"], result["offset"], result["parent"], values

    def _check_alike(self, known: Trial) -> None:
        """Stops a sweep all of whose trials, in this launch, fail in one way: the rest would, too."""
        ended = self._ended = [*self._ended, *([known] if known.state in ENDED else [])]
        if len(ended) >= _FEW and all(trial.state == FAILED for trial in ended):
            causes = {_cause(trial.reason or "") for trial in ended}
            if len(causes) == 1:
                self._rounds.stop("alike", f"all {len(ended)} trials so far failed in the same way: {ended[0].reason}")

    def _check_waiting(self, trials: list[TuneTrial]) -> None:
        """Says what lacks while no trial runs, and gives up when that has lasted for too long."""
        now, rounds = time.monotonic(), self._rounds
        busy = any(trial.status == TuneTrial.RUNNING for trial in trials)
        if busy or rounds.stopping:
            self._idle_since = now
            return
        waited = now - self._idle_since
        if waited < _IDLE_SECONDS or now - self._said < _SAY_SECONDS:
            return
        self._said = now
        lack = shortage(rounds.scale, rounds.need, nodes())
        console.say(f"no trial runs: {lack or in_use(rounds.need)}")
        if lack and waited > rounds.scale.start_seconds:
            rounds.stop("stuck", f"given up after {waited:.0f} s without a trial: {lack}")


class Halt(tune.Stopper):
    """Ends the experiment when the rounds do."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._rounds.has_left()


def _tunes_own(uri: str) -> str:
    """Where Tune may write what it likes: below the sweep, each launch anew."""
    home = storage.join(uri, ".ray", f"{time.time():.0f}")
    return str(storage.local_path(home)) if storage.is_local(home) else home


def _cause(reason: str) -> str:
    """What a failure has in common with others like it: its first clause, without numbers."""
    return re.sub(r"\d[\d.e+-]*|\b(nan|inf)\b", "#", reason.split("; ")[0])


def _last_line(trial: TuneTrial) -> str:
    text = str(trial.get_error() or "its process ended").strip()
    return text.splitlines()[-1][:300]
