"""Work on images by threads that stay a bounded number ahead of the one who uses them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def read_ahead(
    work: Callable[[int], T], count: int, *, workers: int | None = None, window: int = 8
) -> Generator[Future[T], None, None]:
    """Yield the finished ``work(0)``, ``work(1)``, … in order; each future holds result or error.

    Args:
        work: Runs in threads; pays off where it releases the GIL, as decoding does.
        count: How often to call it.
        workers: Threads; None takes one per core.
        window: Calls that may be under way or waiting to be used; bounds the memory.

    Close it (``contextlib.closing``) where an error may leave it half used: its threads end then.
    """
    workers = workers or num_cores()
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in range(count):
                ahead.append(pool.submit(work, index))
                if len(ahead) >= window + workers:
                    yield _finished(ahead.popleft())
            while ahead:
                yield _finished(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(future: Future[T]) -> Future[T]:
    future.exception()  # waits
    return future
