"""Work on images by threads that stay a bounded number ahead of the one who uses them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from featx.images.cores import num_cores

S = TypeVar("S")
T = TypeVar("T")


def read_ahead(
    work: Callable[[int], T], count: int, *, workers: int | None = None, window: int = 8
) -> Generator[Future[T], None, None]:
    """Yield the finished ``work(0)``, ``work(1)``, …, ``work(count - 1)``; as ``map_ahead``."""
    return map_ahead(work, range(count), workers=workers, window=window)


def map_ahead(
    work: Callable[[S], T], items: Iterable[S], *, workers: int | None = None, window: int = 8
) -> Generator[Future[T], None, None]:
    """Yield the finished ``work(item)`` in the items' order; each future holds result or error.

    Args:
        work: Runs in threads; pays off where it releases the GIL, as decoding does.
        items: Taken one by one, in the caller's thread, as the work goes on.
        workers: Threads; None takes one per core.
        window: Calls that may wait, begun or finished, beside those under way; bounds the memory.

    Close it (``contextlib.closing``) where an error may leave it half used: its threads end then.
    After ``KeyboardInterrupt`` they are not waited for; each ends with the call it is at.
    """
    workers = workers or num_cores()
    ahead: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) >= window + workers:
                yield _finished(ahead.popleft())
        while ahead:
            yield _finished(ahead.popleft())
    finally:
        pool.shutdown(wait=not _is_interrupted(), cancel_futures=True)


def _is_interrupted() -> bool:
    """Return whether an interrupt is why this code runs, here or in the caller that closes it."""
    error = sys.exception()
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _finished(future: Future[T]) -> Future[T]:
    future.exception()  # waits
    return future
