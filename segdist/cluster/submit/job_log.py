"""Follow the log of a submitted job over broken connections, until the job ends or the cluster is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from segdist import console
from segdist.cluster.submit.connection import request_errors, with_pauses, with_time_limit
from segdist.errors import TRY_AGAIN, RanksError, last_line

_PATIENCE_SECONDS = 300.0  # for a cluster that does not answer
_WAIT_SECONDS = 20.0  # for a job to start, after which a message says what it waits for


class JobLog:
    """The log of a job. After `lines` has ended, `info` is Ray's record of the job."""

    def __init__(self, client: Any, id: str, address: str) -> None:
        self._client, self._id, self._address = client, id, address
        self._start_time: int | None = None  # tells the job from another with its ID, on a head that has forgotten ours
        self._failing_since: float | None = None
        self._log_is_missing = False  # a message has said that the job runs but its log cannot be read
        self._created, self._pending_was_shown = time.monotonic(), False
        self._seen, self._rest = 0, ""  # characters read so far; the last line, which may be incomplete
        self.info: Any = None

    def lines(self) -> Iterator[str]:
        """Yield each line once, until the job has ended.

        Raises RanksError if the cluster has forgotten the job, or has not answered for five minutes.
        """
        while not self._has_ended():
            at = 0  # the log is always sent from its beginning
            try:
                for chunk in with_pauses(self._client.tail_job_logs(self._id)):
                    if chunk is None:
                        if self._failing_since is not None or self._has_ended():
                            break
                        continue
                    new = chunk[max(0, self._seen - at) :]
                    at += len(chunk)
                    if new:
                        self._seen, self._log_is_missing = at, False
                    *whole, self._rest = (self._rest + new).split("\n")
                    yield from whole
            except request_errors() as error:
                if not self._log_is_missing and not self._has_ended() and self._failing_since is None:
                    console.say(
                        f"job {self._id} is running, but its log cannot be read ({last_line(error)}). Retrying."
                    )
                    self._log_is_missing = True
            time.sleep(1)
        try:
            self._rest += with_time_limit(lambda: self._client.get_job_logs(self._id))[self._seen :]
        except request_errors() as error:
            console.say(
                f"the end of the log cannot be read ({last_line(error)}). The node of the job's driver may be gone."
            )
        yield from self._rest.splitlines()

    def _has_ended(self) -> bool:
        """Return whether the cluster says that the job has ended. Raises RanksError like `lines`."""
        try:
            self.info = with_time_limit(lambda: self._client.get_job_info(self._id))
        except request_errors() as error:
            if "does not exist" in str(error) or "status code 404" in str(error):
                raise self._forgotten() from None
            self._check_patience(error)
            return False
        self._failing_since = None
        has_waited = str(self.info.status) == "PENDING" and time.monotonic() - self._created > _WAIT_SECONDS
        if has_waited and not self._pending_was_shown:
            self._pending_was_shown = True
            console.say(f"job {self._id}: {self.info.message}")
        self._start_time = self._start_time or self.info.start_time
        if self.info.start_time != self._start_time:
            raise self._forgotten()
        return bool(self.info.status.is_terminal())

    def _check_patience(self, error: Exception) -> None:
        """Print once that the cluster does not answer. Raises RanksError if it has not answered for five minutes."""
        now, minutes = time.monotonic(), f"{_PATIENCE_SECONDS / 60:.0f} min"
        if self._failing_since is None:
            self._failing_since = now
            console.say(f"{self._address} does not answer ({last_line(error)}). Retrying for {minutes}.")
        if now - self._failing_since > _PATIENCE_SECONDS:
            raise RanksError(
                f"{self._address} has not answered for {minutes} ({last_line(error)}). Job {self._id} may still be running. "
                "Run the same command again to follow the job or to continue the run",
                TRY_AGAIN,
            ) from None

    def _forgotten(self) -> RanksError:
        return RanksError(
            f"the cluster no longer knows job {self._id}, because its head was lost. Run the same command again to continue",
            TRY_AGAIN,
        )
