"""What a cluster answers over HTTP, or that it does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import aiohttp

_ANSWER_SECONDS = 20.0  # for one answer; Ray's client would wait without end for a dashboard whose head has died
_QUIET_SECONDS = 30.0  # without a line, after which we ask whether anybody is there
_T = TypeVar("_T")


def soon(ask: Callable[[], _T], seconds: float | None = None) -> _T:
    """What it answers. Raises TimeoutError when that takes too long."""
    seconds = seconds or _ANSWER_SECONDS
    answers: list[_T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="ask", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def waited_for(chunks: AsyncIterator[str]) -> Iterator[str | None]:
    """The chunks as they come, and None whenever there was none for a while."""

    async def next_one() -> str | None:
        return await anext(chunks, None)

    with asyncio.Runner() as runner:
        while True:
            task = runner.get_loop().create_task(next_one())
            while not runner.run(asyncio.wait([task], timeout=_QUIET_SECONDS))[0]:
                yield None
            if (chunk := task.result()) is None:
                return
            yield chunk


def unreached() -> tuple[type[Exception], ...]:
    """What Ray's client, and the libraries that it uses, raise when they get no answer or none that they understand."""
    from ray.exceptions import RayError

    return aiohttp.ClientError, OSError, RuntimeError, ValueError, KeyError, RayError


def last_line(error: BaseException) -> str:
    """The last line of what went wrong, which in a traceback of the head's is the one that counts."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)])[-1][:300]
