"""What the driver and its ranks tell each other while Ray runs them: lines for people one way, wishes the other.

An actor on the driver's node, so that it lives as long as the driver does. No step waits for it.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Any

from segdist.launch.ray_cluster import draining

_POLL_SECONDS, _ANSWER_SECONDS, _TELL_SECONDS = 1.0, 0.05, 10.0
_LAST_SECONDS = 20.0  # before a node goes, for the last commit of its ranks
Post = tuple[Any, ...]


class Mailbox:
    """The actor. Posts are ("say", text), ("show", done, total, line), ("start",), ("broken", text), ("tell", metrics)
    and ("going", address) of a node that drains."""

    def __init__(self) -> None:
        self._posts: list[Post] = []
        self._wish: str | None = None
        self._mistake: tuple[str, int] | None = None
        self._answer: tuple[int, str] | None = None
        self._alive = -math.inf

    def post(self, *post: Any) -> None:
        if post[0] == "show" and self._posts and self._posts[-1][0] == "show":
            self._posts.pop()  # only where the run stands now is of interest
        self._posts.append(post)

    def take(self) -> tuple[list[Post], tuple[str, int] | None, float]:
        """(all posts since the last time, what `report_fatal` was told, seconds since a rank's last sign of life)."""
        posts, self._posts = self._posts, []
        return posts, self._mistake, time.monotonic() - self._alive

    def ask(self, wish: str) -> None:
        """Lets every rank's notice say this from now on."""
        self._wish = wish

    def wish(self) -> str | None:
        """What the driver wishes; a rank that asks is alive."""
        self._alive = time.monotonic()
        return self._wish

    def answer(self, step: int, wish: str) -> None:
        """What the driver says to the evaluation of this step, which it was told."""
        self._answer = step, wish

    def answer_to(self, step: int) -> str | None:
        """That answer; None as long as there is none."""
        return self._answer[1] if self._answer and self._answer[0] == step else None

    def report_fatal(self, text: str, exit_code: int) -> None:
        """A rank met a user's mistake, which no restart mends; the first one counts."""
        self._mistake = self._mistake or (text, exit_code)

    def mistake(self) -> tuple[str, int] | None:
        return self._mistake


class Inbox:
    """The driver's side: the mailbox, which it starts beside itself, and what it still waits for from there."""

    def __init__(self) -> None:
        import ray

        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.mailbox = ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        self._wish: str | None = None
        self._taken: Any = None  # an answer of `take` that has not come yet

    def ask(self, wish: str) -> None:
        """Lets every rank's notice say this from now on."""
        self._wish = wish
        self.mailbox.ask.remote(wish)

    def take(self, seconds: float) -> tuple[list[Post], tuple[str, int] | None, float] | None:
        """What Mailbox.take answers; None where it does not within so many seconds, and then the next call has it."""
        import ray

        if self._taken is None:
            if self._wish is not None:
                self.mailbox.ask.remote(self._wish)  # again, for a mailbox that was started again has forgotten it
            self._taken = self.mailbox.take.remote()
        try:
            answer = ray.get(self._taken, timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError:  # it is started again, if its node, which is this one, still takes it
            answer = None
        self._taken = None
        return answer


class PostedScreen:
    """The log.Screen of a rank: what it says appears where the driver is."""

    def __init__(self, mailbox: Any, rank: int) -> None:
        self._mailbox, self._prefix = mailbox, "" if rank == 0 else f"rank {rank}: "

    def say(self, text: str) -> None:
        self._mailbox.post.remote("say", self._prefix + text)

    def show(self, done: int, total: int, line: str) -> None:
        self._mailbox.post.remote("show", done, total, line)

    def close(self) -> None:
        pass


class Going:
    """When a rank commits whose node is to go: at once, for nobody knows how long its store takes, and once more at last."""

    def __init__(self) -> None:
        self.is_known = self._is_last = False

    def commits_now(self, deadline: float | None, now: float) -> bool:
        """`deadline`: of the node, seconds since the epoch as `now` is; None while nobody has told it to go."""
        if deadline is None or self._is_last:
            return False
        self._is_last = deadline - now < _LAST_SECONDS
        is_new, self.is_known = not self.is_known, True
        return is_new or self._is_last


class PolledNotice:
    """The `notice` of a rank: asks the mailbox, and whether this node is being drained, in a thread; never waits."""

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
        """Tells the driver of an evaluation; a wish to stop, should it answer so, holds from now on. Rank 0 only.

        Told again where no answer comes, for a mailbox that was started again has forgotten both."""
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

        going = Going()
        while not self._ended.wait(_POLL_SECONDS):
            with contextlib.suppress(ray.exceptions.RayError):
                if ray.get(self._mailbox.wish.remote(), timeout=10) == "stop":
                    self._wish = "stop"
                    continue
                is_new = not going.is_known
                if going.commits_now(draining().get(ray.get_runtime_context().get_node_id()), time.time()):
                    self._wish = "checkpoint"
                    if is_new:
                        self._mailbox.post.remote("going", ray.util.get_node_ip_address())
