"""A run on ranks that Ray Train starts: the driver's side.

Ray provides processes, placement and restarts. segdist itself writes checkpoints, metrics and run.json to the run's URI. Ray's
own files are below `<run_uri>/.ray` and are never read back. Messages for people come from rank 0 through the mailbox.
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
from segdist.errors import TRY_AGAIN, RanksError, UserError, last_line
from segdist.launch.failures import describe_failures
from segdist.launch.gloo_interface import torch_config
from segdist.launch.mailbox import DRAINING, Inbox, Post
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
from segdist.train import Notice, Tell
from segdist.train.setup import inspect_run

_LOOK_SECONDS, _REPEAT_SECONDS, _SILENT_SECONDS, _END_SECONDS, _ANSWER_SECONDS = 10, 60, 15, 10, 5
_STOP_SECONDS = 60  # for Ray to report ranks that were asked to stop, or to restart them


def run_on_ray(cfg: Config) -> dict[str, Any]:
    """Return the summary of the run. Raises UserError if the run cannot be made, if possible before Ray is started."""
    storage.check_absolute(cfg.run.uri, cfg.data.uri)
    found = inspect_run(cfg, cfg.scale.num_ranks)
    if found.summary:
        return found.summary
    connect()
    import ray

    try:
        return _Driver(cfg).run()
    finally:
        ray.shutdown()


def run_on_ranks(cfg: Config, tell: Tell, notice: Notice) -> dict[str, Any]:
    """Like `run_on_ray`, in a process that belongs to Ray already. Rank 0 waits for `tell`; `notice` holds the answer."""
    return _Driver(cfg, tell, notice).run()


class _Driver:
    """One launch: starts the ranks, shows their messages, passes on stop requests, and gives up if the ranks cannot start."""

    def __init__(self, cfg: Config, tell: Tell | None = None, notice: Notice | None = None) -> None:
        self._cfg, self._tell, self._notice = cfg, tell, notice
        gpus = sum(node["Resources"].get("GPU", 0) for node in nodes())
        self._need = needs(cfg.scale, gpus)
        on_cluster = bool(os.environ.get("RAY_ADDRESS"))
        if not on_cluster and (lack := shortage(cfg.scale, self._need, nodes())):
            raise UserError(lack)  # one machine cannot grow
        if on_cluster and cfg.scale.device == "auto" and cfg.scale.gpus_per_rank is None and not gpus:
            console.say(
                "No node has a GPU now, so the ranks use CPUs. Set scale.gpus_per_rank=1 to wait for nodes with GPUs."
            )
        self._inbox = Inbox()
        self._mailbox = self._inbox.mailbox
        self._launch = f"{record.newest_attempt(cfg.run.uri) + 1:04d}-{uuid.uuid4().hex[:6]}"
        self._alive = False  # whether ranks are running
        self._heartbeat = -math.inf  # time of the last heartbeat of any rank
        self._idle_since = time.monotonic()
        self._reported = 0.0  # when the last shortage was reported
        self._answered = time.monotonic()  # when the mailbox last answered
        self._starts = self._deaths = 0
        self._failure: tuple[int, str] | None = None  # (number of the start, how it ended), as last reported
        self._draining: set[tuple[int, str]] = set()  # (number of the start, a node that drained during it)
        self._evaluated: int | None = None  # step of the last evaluation passed on
        self._step = 0  # the newest step reported
        self._outcome: Any = None

    def run(self) -> dict[str, Any]:
        """Return the summary of the run. Raises UserError for a user's mistake, RanksError if the ranks failed too often."""
        mark = storage.join(self._cfg.run.uri, ".ray", self._launch, "driver")
        storage.with_retries(lambda: storage.write(mark, self._launch.encode()), console.say)
        thread = threading.Thread(target=self._fit, args=(mark,), name="ray train", daemon=True)
        writer = BackgroundWriter(warn=lambda text: None, pauses=(1, 4))
        with (
            contextlib.closing(writer),
            LogFile(self._cfg.run.uri, self._launch, writer) as log_file,
            StopSignal(message=None) as signal,
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
                    raise self._ranks_error(self._outcome) from self._outcome
            except (UserError, RanksError) as error:
                self._give_up(record.FAILED, str(error))
                raise
            except (SystemExit, KeyboardInterrupt):
                self._give_up(
                    record.PREEMPTED, "stopped without a commit: no rank was running, or the stop was requested twice"
                )
                raise
        return self._outcome

    def _give_up(self, state: str, why: str) -> None:
        with contextlib.suppress(UserError):  # a storage error must not hide the error being reported
            record.give_up(self._cfg.run.uri, self._launch, self._step, state, why)

    def _watch(self, thread: threading.Thread, notice: Notice, log_file: LogFile) -> None:
        is_told = False
        while thread.is_alive():
            thread.join(0.25)
            self._show()
            if notice() == "stop":
                idle = time.monotonic() - self._idle_since
                if not self._alive and (not is_told or idle > _STOP_SECONDS):
                    console.say("stopping: no rank is running, so nothing can be committed")
                    raise SystemExit(TRY_AGAIN)
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
        """Show what the ranks have posted. Raises UserError or RanksError if a rank reported a fatal error."""
        posts, fatal, silent = self._take()
        # max: a restarted mailbox has lost the last heartbeat
        self._heartbeat = max(self._heartbeat, time.monotonic() - silent)
        alive = time.monotonic() - self._heartbeat < _SILENT_SECONDS
        if self._alive and not alive:
            self._idle_since = time.monotonic()
            if self._failure is None or self._failure[0] < self._starts:
                console.say("No heartbeat from any rank. Ray restarts them once it declares them dead.")
        self._alive = alive
        for kind, *rest in posts:
            if kind == "say":
                console.say(*rest)
            elif kind == "show":
                self._step = max(self._step, rest[0])
                console.show(*rest)
            elif kind == DRAINING:
                self._report_drain(*rest)
            elif kind == "start":
                self._starts += 1
            elif kind == "tell":
                self._answer(*rest)
            elif not fatal:
                self._report_failure(*rest)
        if fatal:
            console.close()
            raise UserError(fatal[0]) if fatal[1] == 2 else RanksError(*fatal)

    def _take(self) -> tuple[list[Post], tuple[str, int] | None, float]:
        """Return what Mailbox.take returns. If it does not answer, the ranks count as alive for as long as a start may take."""
        answer = self._inbox.take(_ANSWER_SECONDS)
        if answer is not None:
            self._answered = time.monotonic()
            return answer
        silent = time.monotonic() - self._answered > self._cfg.scale.start_seconds
        return [], None, 0.0 if self._alive and not silent else math.inf

    def _answer(self, metrics: dict[str, Any]) -> None:
        """Pass an evaluation on, once even if it was sent twice, and send the answer to rank 0, which waits for it."""
        assert self._tell and self._notice
        if metrics["step"] != self._evaluated:
            self._tell(metrics)
            self._evaluated = metrics["step"]
        self._mailbox.answer.remote(metrics["step"], self._notice() or "go on")

    def _report_drain(self, address: str) -> None:
        """Report a draining node once per start, although every rank on that node reports it."""
        if (self._starts, address) not in self._draining:
            self._draining.add((self._starts, address))
            console.say(
                f"warning: node {address} is being drained. A checkpoint is committed now, and the ranks restart without "
                "this node."
            )

    def _report_failure(self, what: str) -> None:
        """Report how the ranks ended once per start, although Ray's controller may repeat it every second."""
        if self._failure == (self._starts, what):
            return
        self._failure = (self._starts, what)
        if any(start == self._starts for start, _ in self._draining):  # Ray does not count these as failures
            console.say(f"{what}; the ranks restart from the newest checkpoint")
            return
        self._deaths += 1
        most = self._cfg.scale.max_restarts
        ahead = f"restart {self._deaths} of {most} from the newest checkpoint"
        console.say(f"{what}; {ahead if self._deaths <= most else f'all {most} restarts are used up'}")

    def _check_start(self) -> None:
        """Report what the cluster lacks while no rank runs. Raise an error if that lasts longer than scale.start_seconds."""
        if self._alive:
            return
        now, scale = time.monotonic(), self._cfg.scale
        waited = now - self._idle_since
        if waited < min(_LOOK_SECONDS, scale.start_seconds) or now - self._reported < 1:
            return
        lack = shortage(scale, self._need, nodes())
        if waited > scale.start_seconds and lack:
            raise self._start_error(f"gave up after {waited:.0f} s: {lack}")
        if waited > scale.start_seconds + 120:
            raise self._start_error(
                f"the ranks did not start in {waited:.0f} s: {in_use(self._need, scale.num_ranks)}. Ray's logs: {log_folder()}"
            )
        if now - self._reported > _REPEAT_SECONDS and (lack or waited > 3 * _LOOK_SECONDS):
            self._reported = now
            console.say(f"waiting for the ranks to start: {lack or in_use(self._need, scale.num_ranks)}")

    def _start_error(self, why: str) -> UserError | RanksError:
        """Return a RanksError that asks to try again if the ranks have run before, otherwise a UserError."""
        return (
            RanksError(f"{why}. Run the same command to continue from the newest checkpoint", TRY_AGAIN)
            if self._starts
            else UserError(why)
        )

    def _ranks_error(self, error: BaseException) -> RanksError:
        failures = getattr(error, "worker_failures", None) or {}
        cause, died = describe_failures(failures) if failures else (last_line(error), False)
        text = [
            *([] if died else [str(error)[-6000:]]),  # the ranks' tracebacks, which their errors do not carry
            f"the run ended after {self._starts} start(s) of its ranks: {cause}",
            f"Ray's logs: {log_folder()}",
        ]
        return RanksError("\n".join(text), TRY_AGAIN if died else 1)


def _end(thread: threading.Thread, mailbox: Any) -> None:
    """End Ray's controller and the thread that waits for it.

    Otherwise that thread would call into a Ray that is shut down, which aborts this process.
    """
    until = time.monotonic() + _END_SECONDS
    while thread.is_alive() and time.monotonic() < until:
        with contextlib.suppress(Exception):  # the cluster may be gone
            end_siblings(mailbox, "TrainController")
        thread.join(0.1)


def _reporter(mailbox: Any) -> Any:
    """Return a Ray Train callback that posts to the mailbox when ranks end."""
    import ray.train

    class Reporter(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            mailbox.post.remote("broken", describe_failures(worker_exceptions)[0])

    return Reporter()
