"""Requests to a cluster over HTTP, with a limit on how long they may take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import aiohttp

_ANSWER_SECONDS = 20.0  # for one request; Ray's client would wait forever for a dashboard whose head has died
_QUIET_SECONDS = 30.0  # without a chunk of the log, after which the caller checks that the cluster still answers
_T = TypeVar("_T")


def with_time_limit(request: Callable[[], _T], seconds: float | None = None) -> _T:
    """Return `request()`. Raises TimeoutError if it takes longer than `seconds`."""
    seconds = seconds or _ANSWER_SECONDS
    answers: list[_T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(request())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="request", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def with_pauses(chunks: AsyncIterator[str]) -> Iterator[str | None]:
    """Yield the chunks as they come, and None whenever none has come for 30 seconds."""

    async def next_chunk() -> str | None:
        return await anext(chunks, None)

    with asyncio.Runner() as runner:
        while True:
            task = runner.get_loop().create_task(next_chunk())
            while not runner.run(asyncio.wait([task], timeout=_QUIET_SECONDS))[0]:
                yield None
            if (chunk := task.result()) is None:
                return
            yield chunk


def request_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that Ray's client and its libraries raise for a missing or malformed answer."""
    from ray.exceptions import RayError

    return aiohttp.ClientError, OSError, RuntimeError, ValueError, KeyError, RayError
