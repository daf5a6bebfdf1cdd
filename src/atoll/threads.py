"""The same work on several processors at once, for what leaves Python's lock while it works."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["in_order", "processors", "share"]

S = TypeVar("S")
T = TypeVar("T")

#: More bring nothing: by then memory is what is waited for, and Python's lock.
_MOST = 8


def processors() -> int:
    """How many processors this process may use, at most eight (sched_getaffinity(2))."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST)


def share(work: Callable[[Iterator[T]], None], items: Iterable[T], *, threads: int | None = None) -> None:
    """Run ``work`` in several threads, this one among them, all taking from the same ``items``.

    All have ended when it returns or raises. Once one fails, or this thread is interrupted, the others are
    given no more items.

    Args:
        work: takes items until there are none, and is done with each before it takes the next.
        items: taken one after the other, never by two threads at once.
        threads: how many; as many as there are processors if None.

    Raises:
        BaseException: what the first ``work`` that failed raised.
    """
    queue = _Queue(iter(items))

    def run() -> None:
        try:
            work(queue)
        except BaseException as error:  # noqa: BLE001 - it is raised below
            queue.fail(error)

    others = [threading.Thread(target=run, daemon=True) for _ in range((threads or processors()) - 1)]
    try:
        for other in others:
            other.start()
        run()
    except BaseException as error:
        queue.fail(error)
        raise
    finally:
        for other in others:
            if other.ident is not None:
                other.join()
    if queue.failure is not None:
        raise queue.failure


@contextmanager
def in_order(work: Callable[[S], T], items: Iterable[S]) -> Iterator[Iterator[T]]:
    """What ``work`` makes of each item, in their order, by several threads that are a little ahead.

    Only so many items are taken as are worked on: they may be without number. All threads have ended at the
    end of the block.
    """
    from concurrent.futures import Future, ThreadPoolExecutor  # noqa: PLC0415 - cannot be loaded once a program's first thread has ended

    count = processors()

    def results() -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 4 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(count) as pool:
        yield results()


class _Queue(Generic[T]):
    """An iterator for several threads that ends early when one of them has failed."""

    def __init__(self, items: Iterator[T]) -> None:
        self.failure: BaseException | None = None
        self._items = items
        self._lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self.failure = self.failure or error

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            if self.failure is not None:
                raise StopIteration
            return next(self._items)
