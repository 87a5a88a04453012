"""A run on ranks that Ray Train starts; this is the driver's side.

Ray gives processes, places and restarts. It keeps nothing of ours: checkpoints, metrics and the record go to the run's URI
by our own hand, and Ray's files, in which nothing is trusted, lie below `<run_uri>/.ray`. Ray prints nothing here; what
people see comes from rank 0 through a mailbox.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
from typing import Any

from segdist import config, console, storage
from segdist.config import Config
from segdist.distributed import TIMEOUT, backend
from segdist.errors import RanksError, UserError, is_lost_rank
from segdist.launch.mailbox import Inbox, Post
from segdist.launch.meeting import torch_config
from segdist.launch.ray_cluster import (
    connect,
    end_siblings,
    in_use,
    label_selectors,
    log_folder,
    needs,
    nodes,
    shortage,
)
from segdist.launch.ray_rank import rank_main
from segdist.launch.stop import STOPPING, StopSignal
from segdist.runs import record
from segdist.runs.run_log import LogFile
from segdist.runs.writer import BackgroundWriter
from segdist.train.loop import Notice, Tell
from segdist.train.setup import look

_LOOK_SECONDS, _REPEAT_SECONDS, _SILENT_SECONDS, _END_SECONDS, _ANSWER_SECONDS = 10, 60, 15, 10, 5
_LEAVE_SECONDS = 60  # that Ray may take to tell of ranks that were asked to stop, or to start them once more


def run_on_ray(cfg: Config) -> dict[str, Any]:
    """The summary of the run. Raises UserError, before Ray is started where it can be known, when it cannot be made."""
    storage.check_absolute(cfg.run.uri, cfg.data.uri)
    found = look(cfg, cfg.scale.num_ranks)
    if found.finished:
        return found.finished
    connect()
    import ray

    try:
        return _Driver(cfg).run()
    finally:
        ray.shutdown()


def run_on_ranks(cfg: Config, tell: Tell, notice: Notice) -> dict[str, Any]:
    """As `run_on_ray`, in a process that belongs to Ray already. Rank 0 waits for `tell`, whose answer is in `notice`."""
    return _Driver(cfg, tell, notice).run()


class _Driver:
    """One launch: starts the ranks, shows what they say, passes on the wish to stop, and gives up when none can start."""

    def __init__(self, cfg: Config, tell: Tell | None = None, notice: Notice | None = None) -> None:
        self._cfg, self._tell, self._notice = cfg, tell, notice
        gpus = sum(node["Resources"].get("GPU", 0) for node in nodes())
        self._need = needs(cfg.scale, gpus)
        on_cluster = bool(os.environ.get("RAY_ADDRESS"))
        if not on_cluster and (lack := shortage(cfg.scale, self._need, nodes())):
            raise UserError(lack)  # this machine will not grow
        if on_cluster and cfg.scale.device == "auto" and cfg.scale.gpus_per_rank is None and not gpus:
            console.say(
                "no node has a GPU now, so the ranks will compute on CPUs; scale.gpus_per_rank=1 waits for nodes with GPUs"
            )
        self._inbox = Inbox()
        self._mailbox = self._inbox.mailbox
        self._launch = f"{record.newest_attempt(cfg.run.uri) + 1:04d}-{uuid.uuid4().hex[:6]}"
        self._alive = False  # whether ranks run now
        self._sign = -math.inf  # when one last gave a sign of life
        self._idle_since = time.monotonic()
        self._said = 0.0
        self._heard = time.monotonic()  # when the mailbox last answered
        self._starts = self._deaths = 0
        self._told: tuple[int, str] | None = None  # the start, and how it ended
        self._going: set[tuple[int, str]] = set()  # the start, and a node that drains under it
        self._judged: int | None = None  # the step of the evaluation that was passed on last
        self._shown = 0  # the newest step that was heard of
        self._outcome: Any = None

    def run(self) -> dict[str, Any]:
        """The summary of the run. Raises UserError for a mistake, RanksError when the ranks failed too often."""
        mark = storage.join(self._cfg.run.uri, ".ray", self._launch, "driver")
        storage.with_retries(lambda: storage.write(mark, self._launch.encode()), console.say)
        thread = threading.Thread(target=self._fit, args=(mark,), name="ray train", daemon=True)
        writer = BackgroundWriter(warn=lambda text: None, pauses=(1, 4))
        with (
            contextlib.closing(writer),
            LogFile(self._cfg.run.uri, self._launch, writer) as log_file,
            StopSignal(told=None) as signal,
        ):
            thread.start()
            try:
                try:
                    self._watch(thread, self._notice or signal, log_file)
                finally:
                    _end(thread, self._mailbox)
                self._show()
                console.close()
                if isinstance(self._outcome, BaseException):
                    raise self._post_mortem(self._outcome) from self._outcome
            except (UserError, RanksError) as error:
                self._give_up(record.FAILED, str(error))
                raise
            except (SystemExit, KeyboardInterrupt):
                self._give_up(record.PREEMPTED, "stopped without a commit: no rank ran, or it was asked for twice")
                raise
        return self._outcome

    def _give_up(self, state: str, why: str) -> None:
        with contextlib.suppress(UserError):  # storage fails, and that is not what is to be told
            record.give_up(self._cfg.run.uri, self._launch, self._shown, state, why)

    def _watch(self, thread: threading.Thread, notice: Notice, log_file: LogFile) -> None:
        is_told = False
        while thread.is_alive():
            thread.join(0.25)
            self._show()
            if notice() == "stop":
                silent = time.monotonic() - self._idle_since
                if not self._alive and (not is_told or silent > _LEAVE_SECONDS):
                    console.say("stopping: no rank runs that could commit")
                    raise SystemExit(75)
                if not is_told and self._notice is None:
                    console.say(STOPPING)
                is_told = True
                self._inbox.ask("stop")
            self._check_start()
            log_file.flush(_REPEAT_SECONDS)

    def _fit(self, mark: str) -> None:
        try:
            self._outcome = self._trainer(mark).fit().return_value
        except BaseException as error:
            self._outcome = error

    def _trainer(self, mark: str) -> Any:
        import ray.train
        from ray.train.torch import TorchTrainer

        scale, on_gpus = self._cfg.scale, self._need.get("GPU", 0) > 0
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(max(60, scale.start_seconds))
        home = storage.join(self._cfg.run.uri, ".ray")
        return TorchTrainer(
            rank_main,
            train_loop_config={
                "config": config.to_tree(self._cfg),
                "where": "the driver's config",
                "mailbox": self._mailbox,
                "launch": self._launch,
                "folder": os.getcwd(),
                "mark": mark,
                "on_gpus": on_gpus,
                "waits": self._tell is not None,
            },
            torch_config=torch_config(backend=backend(on_gpus), timeout_s=int(TIMEOUT.total_seconds())),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scale.num_ranks,
                use_gpu=on_gpus,
                resources_per_worker=self._need,
                placement_strategy=scale.placement.upper(),
                label_selector=label_selectors(scale),
            ),
            run_config=ray.train.RunConfig(
                name=self._launch,
                storage_path=str(storage.local_path(home)) if storage.is_local(home) else home,
                failure_config=ray.train.FailureConfig(max_failures=scale.max_restarts),
                callbacks=[_reporter(self._mailbox)],
            ),
        )

    def _show(self) -> None:
        """Shows what the ranks have posted. Raises UserError when one of them met a mistake that no restart mends."""
        posts, mistake, silent = self._take()
        self._sign = max(self._sign, time.monotonic() - silent)  # which a mailbox that was started again has forgotten
        alive = time.monotonic() - self._sign < _SILENT_SECONDS
        if self._alive and not alive:
            self._idle_since = time.monotonic()
            if self._told is None or self._told[0] < self._starts:
                console.say("no rank gives a sign of life any more; Ray starts them again when it holds them for lost")
        self._alive = alive
        for kind, *rest in posts:
            if kind == "say":
                console.say(*rest)
            elif kind == "show":
                self._shown = max(self._shown, rest[0])
                console.show(*rest)
            elif kind == "going":
                self._tell_drain(*rest)
            elif kind == "start":
                self._starts += 1
            elif kind == "tell":
                self._judge(*rest)
            elif not mistake:
                self._tell_death(*rest)
        if mistake:
            console.close()
            raise UserError(mistake[0]) if mistake[1] == 2 else RanksError(*mistake)

    def _take(self) -> tuple[list[Post], tuple[str, int] | None, float]:
        """What Mailbox.take answers. While it does not, the ranks are held for alive, for as long as they may take to start."""
        answer = self._inbox.take(_ANSWER_SECONDS)
        if answer is not None:
            self._heard = time.monotonic()
            return answer
        unheard = time.monotonic() - self._heard > self._cfg.scale.start_seconds
        return [], None, 0.0 if self._alive and not unheard else math.inf

    def _judge(self, metrics: dict[str, Any]) -> None:
        """Passes an evaluation on, once though it may be told again, and rank 0, which waits for it, the answer."""
        assert self._tell and self._notice
        if metrics["step"] != self._judged:
            self._tell(metrics)
            self._judged = metrics["step"]
        self._mailbox.answer.remote(metrics["step"], self._notice() or "go on")

    def _tell_drain(self, address: str) -> None:
        """Once for each start, though every rank on that node says so."""
        if (self._starts, address) not in self._going:
            self._going.add((self._starts, address))
            console.say(
                f"node {address} is about to go: a checkpoint is committed now, and the ranks start again without it"
            )

    def _tell_death(self, what: str) -> None:
        """Once for each start, though Ray's controller may tell it every second."""
        if self._told == (self._starts, what):
            return
        self._told = (self._starts, what)
        if any(start == self._starts for start, _ in self._going):  # Ray does not count these
            console.say(f"{what}; the ranks start again, from the newest checkpoint")
            return
        self._deaths += 1
        most = self._cfg.scale.max_restarts
        ahead = f"restart {self._deaths} of {most}, from the newest checkpoint"
        console.say(f"{what}; {ahead if self._deaths <= most else f'all {most} restarts are used up'}")

    def _check_start(self) -> None:
        """Says what the cluster lacks while no rank runs. Raises UserError, or RanksError after ranks had run already, when
        that has lasted for too long."""
        if self._alive:
            return
        now, scale = time.monotonic(), self._cfg.scale
        waited = now - self._idle_since
        if waited < min(_LOOK_SECONDS, scale.start_seconds) or now - self._said < 1:
            return
        lack = shortage(scale, self._need, nodes())
        if waited > scale.start_seconds and lack:
            raise self._given_up(f"given up after {waited:.0f} s: {lack}")
        if waited > scale.start_seconds + 120:
            raise self._given_up(
                f"the ranks did not start in {waited:.0f} s: {in_use(self._need, scale.num_ranks)}. Ray's logs: {log_folder()}"
            )
        if now - self._said > _REPEAT_SECONDS and (lack or waited > 3 * _LOOK_SECONDS):
            self._said = now
            console.say(f"waiting for the ranks to start: {lack or in_use(self._need, scale.num_ranks)}")

    def _given_up(self, why: str) -> UserError | RanksError:
        """What fitted once may fit again."""
        return (
            RanksError(f"{why}. The same command goes on from the newest checkpoint", 75)
            if self._starts
            else UserError(why)
        )

    def _post_mortem(self, error: BaseException) -> RanksError:
        failures = getattr(error, "worker_failures", None) or {}
        told, mortal = _describe_failures(failures) if failures else (_last_line(error), False)
        text = [
            *(
                [] if mortal else [str(error)[-6000:]]
            ),  # the tracebacks of its ranks, which their errors have lost on the way
            f"the run ended after {self._starts} start(s) of its ranks: {told}",
            f"Ray's logs: {log_folder()}",
        ]
        return RanksError("\n".join(text), 75 if mortal else 1)


def _end(thread: threading.Thread, mailbox: Any) -> None:
    """Ends Ray's controller, and with it the thread that waits for it, which would otherwise meet a Ray that is shut down:
    that ends this process at once, whatever it was about to say."""
    until = time.monotonic() + _END_SECONDS
    while thread.is_alive() and time.monotonic() < until:
        with contextlib.suppress(Exception):  # the cluster may be gone
            end_siblings(mailbox, "TrainController")
        thread.join(0.1)


def _reporter(mailbox: Any) -> Any:
    """What tells the mailbox, from Ray's controller, that ranks have ended."""
    import ray.train

    class Reporter(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            mailbox.post.remote("broken", _describe_failures(worker_exceptions)[0])

    return Reporter()


def _describe_failures(failures: dict[int, Exception]) -> tuple[str, bool]:
    """(which ranks ended, and how; whether processes died). What met those that talked to dead ones is but the consequence."""
    from ray.exceptions import RayActorError

    def died(error: BaseException) -> bool:
        return isinstance(getattr(error, "health_check_failure", error), RayActorError)

    dead = sorted(rank for rank, error in failures.items() if died(error))
    if dead:
        by_node = all("its node has died" in str(failures[rank]) for rank in dead)
        how = "the node died" if by_node else "the process died (killed, out of memory, or crashed)"
        return f"rank {', '.join(map(str, dead))}: {how}", True
    first = {rank: error for rank, error in failures.items() if not is_lost_rank(error)}
    if not first:
        lost = ", ".join(map(str, sorted(failures)))
        why = _last_line(next(iter(failures.values())))
        return f"rank {lost} lost another, whose process or machine has ended ({why})", True
    return "; ".join(f"rank {rank} failed: {_named(error)}" for rank, error in sorted(first.items())), False


def _named(error: BaseException) -> str:
    return _last_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_last_line(error)}"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else repr(error)
