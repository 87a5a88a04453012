"""An ordered map over a thread pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    pool: ThreadPoolExecutor,
    work: Callable[[T], R],
    items: Iterable[T],
    depth: int,
    cost: Callable[[T], int] = lambda item: 1,
) -> Iterator[R]:
    """Yield work(item) for every item, in order, while up to `depth` further items are computed or wait.

    `depth` limits the sum of cost(item). An exception of `work` is raised in place of its result. Closing the iterator cancels
    the items that have not started.
    """
    pending: deque[tuple[Future[R], int]] = deque()
    try:
        for item in items:
            pending.append((pool.submit(work, item), cost(item)))
            while sum(each for _, each in pending) >= depth:
                yield pending.popleft()[0].result()
        while pending:
            yield pending.popleft()[0].result()
    finally:
        for future, _ in pending:
            future.cancel()
