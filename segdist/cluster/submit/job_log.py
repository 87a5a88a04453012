"""What a submitted job says, over breaks of the connection and losses of its cluster's head."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from segdist import console
from segdist.cluster.submit.answers import last_line, soon, unreached, waited_for
from segdist.errors import RanksError

_PATIENCE_SECONDS = 300.0  # with a cluster that does not answer
_WAIT_SECONDS = 20.0  # for a job to begin, after which it is told what it waits for


class JobLog:
    """What a job says, over breaks of the connection. After `lines` has ended, `info` is Ray's account of the job."""

    def __init__(self, client: Any, id: str, address: str) -> None:
        self._client, self._id, self._address = client, id, address
        self._began: int | None = None  # tells the job from another of its id, on a head that has forgotten ours
        self._failing_since: float | None = None
        self._is_deaf = False  # the job runs, and its log cannot be had; that is told
        self._asked, self._is_waiting = time.monotonic(), False  # since when; whether that it has not begun is told
        self._seen, self._rest = 0, ""
        self.info: Any = None

    def lines(self) -> Iterator[str]:
        """Each line once, until the job has ended. Raises RanksError when the cluster has forgotten it, or is gone for long."""
        while not self._has_ended():
            at = 0  # it always tells the log from its beginning
            try:
                for chunk in waited_for(self._client.tail_job_logs(self._id)):
                    if chunk is None:
                        if self._failing_since is not None or self._has_ended():
                            break
                        continue
                    new = chunk[max(0, self._seen - at) :]
                    at += len(chunk)
                    if new:
                        self._seen, self._is_deaf = at, False
                    *whole, self._rest = (self._rest + new).split("\n")
                    yield from whole
            except unreached() as error:
                if not self._is_deaf and not self._has_ended() and self._failing_since is None:
                    console.say(
                        f"job {self._id} runs, but its log is out of reach ({last_line(error)}); it is asked for again"
                    )
                    self._is_deaf = True
            time.sleep(1)
        try:
            self._rest += soon(lambda: self._client.get_job_logs(self._id))[self._seen :]
        except unreached() as error:
            console.say(f"the end of its log is out of reach ({last_line(error)}): the node of its driver may be gone")
        yield from self._rest.splitlines()

    def _has_ended(self) -> bool:
        """Whether the cluster says so. Where it does not answer, that is told once, and borne for a while."""
        try:
            self.info = soon(lambda: self._client.get_job_info(self._id))
        except unreached() as error:
            if "does not exist" in str(error) or "status code 404" in str(error):
                raise self._forgotten() from None
            now = time.monotonic()
            if self._failing_since is None:
                self._failing_since = now
                minutes = f"{_PATIENCE_SECONDS / 60:.0f} min"
                console.say(f"{self._address} does not answer ({last_line(error)}); it is asked again for {minutes}")
            if now - self._failing_since > _PATIENCE_SECONDS:
                raise RanksError(
                    f"the cluster does not answer any more ({last_line(error)}); job {self._id} may go on without us: the same "
                    "command finds it, or goes on",
                    75,
                ) from None
            return False
        self._failing_since = None
        if (
            str(self.info.status) == "PENDING"
            and time.monotonic() - self._asked > _WAIT_SECONDS
            and not self._is_waiting
        ):
            self._is_waiting = True
            console.say(f"job {self._id}: {self.info.message}")
        self._began = self._began or self.info.start_time
        if self.info.start_time != self._began:
            raise self._forgotten()
        return bool(self.info.status.is_terminal())

    def _forgotten(self) -> RanksError:
        return RanksError(
            f"the cluster knows no job {self._id} any more: its head was lost; the same command goes on", 75
        )
