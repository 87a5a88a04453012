"""Work in threads whose results come back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[T], R],
    items: Iterable[T],
    depth: int,
    cost: Callable[[T], int] = lambda item: 1,
) -> Iterator[R]:
    """work(item) for every item, in order, with up to `depth` of them (or of what they `cost`) under way or waiting.

    An exception of `work` is raised where its result would have come. Closing the iterator cancels what has not begun.
    """
    pending: deque[tuple[Future[R], int]] = deque()
    try:
        for item in items:
            pending.append((pool.submit(work, item), cost(item)))
            while sum(price for _, price in pending) >= depth:
                yield pending.popleft()[0].result()
        while pending:
            yield pending.popleft()[0].result()
    finally:
        for future, _ in pending:
            future.cancel()
