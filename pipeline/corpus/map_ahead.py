"""A slow function over a stream: several calls at once, results in order, never far ahead of their taker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    num_threads: int,
    is_quick: Callable[[T], bool] = lambda item: False,
) -> Iterator[R]:
    """``function`` of every item, in order, by ``num_threads`` threads; raises what it raises.

    At most twice as many calls as threads are begun and not yet taken; only one at first, so that who
    wants no more than the first result pays for little more. A quick item that waits for no other is not
    worth a thread.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="ahead")
    begun: deque[Future[R]] = deque()
    most = 1
    try:
        for item in items:
            if not begun and is_quick(item):
                yield function(item)
                continue
            begun.append(pool.submit(function, item))
            if len(begun) >= most:
                yield begun.popleft().result()
                most = min(2 * most, 2 * num_threads)
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
