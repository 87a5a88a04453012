"""Messages between the driver and its ranks: log lines one way, stop requests the other.

The mailbox is an actor on the driver's node, so it lives as long as the driver. No step waits for it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Any

from segdist.launch.ray_cluster import draining

DRAINING = "draining"  # kind of the post that names a draining node; rank 0 of a trial and of a run send it
_POLL_SECONDS, _ANSWER_SECONDS, _TELL_SECONDS = 1.0, 0.05, 10.0
_LAST_SECONDS = 20.0  # before a node is removed, for the last commit of its ranks
Post = tuple[Any, ...]


class Mailbox:
    """The actor. Posts are ("say", text), ("show", done, total, line), ("start",), ("broken", text), ("tell", metrics)
    and ("draining", address of a node)."""

    def __init__(self) -> None:
        self._posts: list[Post] = []
        self._wish: str | None = None
        self._fatal: tuple[str, int] | None = None
        self._answer: tuple[int, str] | None = None
        self._alive = -math.inf

    def post(self, *post: Any) -> None:
        """Add a post for the driver."""
        if post[0] == "show" and self._posts and self._posts[-1][0] == "show":
            self._posts.pop()  # only the latest progress matters
        self._posts.append(post)

    def take(self) -> tuple[list[Post], tuple[str, int] | None, float]:
        """Return (the posts since the last call, the fatal error if any, seconds since the last heartbeat of a rank)."""
        posts, self._posts = self._posts, []
        return posts, self._fatal, time.monotonic() - self._alive

    def ask(self, wish: str) -> None:
        """Set what every rank's notice returns from now on."""
        self._wish = wish

    def wish(self) -> str | None:
        """Return the driver's request. A rank that calls this is alive."""
        self._alive = time.monotonic()
        return self._wish

    def answer(self, step: int, wish: str) -> None:
        """Store the driver's answer to the evaluation of this step."""
        self._answer = step, wish

    def answer_to(self, step: int) -> str | None:
        """Return that answer, or None if there is none yet."""
        return self._answer[1] if self._answer and self._answer[0] == step else None

    def report_fatal(self, text: str, exit_code: int) -> None:
        """Record an error that no restart can fix. The first one counts."""
        self._fatal = self._fatal or (text, exit_code)

    def fatal_error(self) -> tuple[str, int] | None:
        """Return (message, exit code) of the recorded fatal error, or None."""
        return self._fatal


class Inbox:
    """The driver's side of the mailbox, which it starts on its own node."""

    def __init__(self) -> None:
        import ray

        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.mailbox = ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        self._wish: str | None = None
        self._taken: Any = None  # a pending answer of `take`

    def ask(self, wish: str) -> None:
        """Set what every rank's notice returns from now on."""
        self._wish = wish
        self.mailbox.ask.remote(wish)

    def take(self, seconds: float) -> tuple[list[Post], tuple[str, int] | None, float] | None:
        """Return what Mailbox.take returns, or None if it takes longer than `seconds`. The next call then returns it."""
        import ray

        if self._taken is None:
            if self._wish is not None:
                self.mailbox.ask.remote(self._wish)  # again, because a restarted mailbox has lost it
            self._taken = self.mailbox.take.remote()
        try:
            answer = ray.get(self._taken, timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError:  # Ray restarts it
            answer = None
        self._taken = None
        return answer


class PostedScreen:
    """The console.Screen of a rank. Its messages appear at the driver."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        self._mailbox, self._prefix = mailbox, "" if rank == 0 else f"rank {rank}: "

    def say(self, text: str) -> None:
        self._mailbox.post.remote("say", self._prefix + text)

    def show(self, done: int, total: int, line: str) -> None:
        self._mailbox.post.remote("show", done, total, line)

    def close(self) -> None:
        pass


class DrainSchedule:
    """When a rank on a draining node commits: at once, because uploads may be slow, and once more just before the deadline."""

    def __init__(self) -> None:
        self.is_known = self._is_last = False

    def commits_now(self, deadline: float | None, now: float) -> bool:
        """Return whether to commit now. `deadline` and `now` are seconds since the epoch; None: the node does not drain."""
        if deadline is None or self._is_last:
            return False
        self._is_last = deadline - now < _LAST_SECONDS
        is_new, self.is_known = not self.is_known, True
        return is_new or self._is_last


class PolledNotice:
    """The `notice` of a rank. A thread polls the mailbox and whether this node is draining; calls never wait."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._wish: Any = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="notice", daemon=True)

    def __enter__(self) -> PolledNotice:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def __call__(self) -> Any:
        wish = self._wish
        if wish == "checkpoint":
            self._wish = None
        return wish

    def tell_and_wait(self, metrics: dict[str, Any]) -> None:
        """Tell the driver about an evaluation and wait for its answer, which may be a request to stop. Rank 0 only.

        Repeats the message until there is an answer, because a restarted mailbox has lost both.
        """
        import ray

        answer, told = None, -math.inf
        while answer is None:
            if time.monotonic() - told > _TELL_SECONDS:
                self._mailbox.post.remote("tell", metrics)
                told = time.monotonic()
            time.sleep(_ANSWER_SECONDS)
            with contextlib.suppress(ray.exceptions.ActorUnavailableError):
                answer = ray.get(self._mailbox.answer_to.remote(metrics["step"]))
        if answer == "stop":
            self._wish = "stop"

    def _work(self) -> None:
        import ray

        drain = DrainSchedule()
        while not self._ended.wait(_POLL_SECONDS):
            with contextlib.suppress(ray.exceptions.RayError):
                if ray.get(self._mailbox.wish.remote(), timeout=10) == "stop":
                    self._wish = "stop"
                    continue
                is_new = not drain.is_known
                if drain.commits_now(draining().get(ray.get_runtime_context().get_node_id()), time.time()):
                    self._wish = "checkpoint"
                    if is_new:
                        self._mailbox.post.remote(DRAINING, ray.util.get_node_ip_address())
