"""Reading a source's images: in threads, one per core, that stay a bounded number ahead."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from featx import system
from featx.errors import ImageError
from featx.images.decode import MAX_PIXELS, NO_DIGEST, content_digest, decoded
from featx.images.preprocess import PreprocessSpec
from featx.images.sources import ImageSource, Stamp

S = TypeVar("S")
T = TypeVar("T")

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def read_images(
    source: ImageSource,
    indices: Iterable[int],
    make: Callable[[Image.Image | np.ndarray], T],
    *,
    preprocess: PreprocessSpec | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Generator[tuple[int, bytes, T | ImageError], None, None]:
    """Yield some images of a source in the order of ``indices``, read and decoded ahead.

    Each comes as its index, the digest of its content (``NO_DIGEST`` where it cannot be read), and
    what ``make`` made of it, or the error where it cannot be used. Close the generator
    (``contextlib.closing``) where it may be left half used.

    Args:
        source: The images.
        indices: Which of them; taken one by one.
        make: From the decoded image, of mode RGB or ``(height, width, 3)`` uint8, to what is
            yielded; runs in the threads. ``np.asarray`` gives the pixels.
        preprocess: What the pixels are for; None decodes in full.
        max_pixels: Images with more are errors.
    """
    read = reader(source, make, preprocess=preprocess, max_pixels=max_pixels)
    return map_ahead(read, indices, workers=readers_of(source))


def reader(
    source: ImageSource,
    make: Callable[[Image.Image | np.ndarray], T],
    *,
    preprocess: PreprocessSpec | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Callable[[int], tuple[int, bytes, T | ImageError]]:
    """Return the function that ``read_images`` calls for each index, with the same arguments."""

    def read(index: int) -> tuple[int, bytes, T | ImageError]:
        digest = NO_DIGEST
        try:
            content = source.read(index)
            digest = content_digest(content)
            image = decoded(
                content,
                sample_id=source.samples[index].sample_id,
                max_pixels=max_pixels,
                preprocess=preprocess,
            )
            return index, digest, make(image)
        except ImageError as err:
            return index, digest, err

    return read


def read_digests(
    source: ImageSource, indices: Iterable[int], *, workers: int | None = None
) -> Generator[tuple[int, bytes | ImageError], None, None]:
    """Yield index and content digest of some images, or why they cannot be read, in order."""

    def read(index: int) -> tuple[int, bytes | ImageError]:
        try:
            return index, content_digest(source.read(index))
        except ImageError as err:
            return index, err

    return map_ahead(read, indices, workers=readers_of(source) or workers)


def read_together(
    source: ImageSource, indices: Sequence[int]
) -> Generator[tuple[int, Stamp, bytes | np.ndarray | ImageError], None, None]:
    """Yield index, stamp and content of some images in order, or why one cannot be read.

    Where reading mostly waits, as for a store, they are read at the same time. The stamp is taken
    before the content: a change in between shows next time.
    """

    def read(index: int) -> tuple[int, Stamp, bytes | np.ndarray | ImageError]:
        stamp = source.stamp(index)
        try:
            return index, stamp, source.read(index)
        except ImageError as err:
            return index, stamp, err

    readers = readers_of(source)
    if readers is None:
        yield from map(read, indices)
    else:
        yield from map_ahead(read, indices, workers=readers)


def readers_of(source: ImageSource) -> int | None:
    """Return how many images of a source are best read at once; None where cores decide."""
    return getattr(source, "parallel_reads", None)


def map_ahead(
    work: Callable[[S], T], items: Iterable[S], *, workers: int | None = None, window: int = 8
) -> Generator[T, None, None]:
    """Yield ``work(item)`` in the items' order; an error is raised in its place.

    Args:
        work: Runs in threads; pays off where it releases the GIL, as decoding does.
        items: Taken one by one, in the caller's thread, as the work proceeds.
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
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=not _is_interrupted(), cancel_futures=True)


def _is_interrupted() -> bool:
    """Return whether an interrupt is why this code runs, here or in the caller that closes it."""
    error = sys.exception()
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` of rows ``(n,)``, or all if there are fewer, evenly spread."""
    places = np.linspace(0, max(len(rows) - 1, 0), count).round().astype(int)
    return np.asarray(rows[np.unique(places)] if len(rows) else rows)


def num_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return how many cores this process may use, at least 1.

    A container's CPU quota counts, rounded up: more threads than that are only put to sleep.
    """
    cores = system.usable_cores()
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(cgroups, own))]))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """Yield the quota of each group that this process is in, in cores, outer groups included.

    A container may see its own group at the root of the mount, whatever path the kernel lists.
    """
    for line in (_read(own) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            mounts = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        for mount in mounts:
            group = mount / path.lstrip("/")
            for folder in (group, *group.parents):
                if (quota := _quota_in(folder)) is not None:
                    yield quota
                if folder == mount:
                    break


def _quota_in(folder: Path) -> float | None:
    """Return the quota of one group in cores; None where it has none."""
    limits = (_read(folder / "cpu.max") or "").split()
    if not limits:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limits = [(_read(folder / name) or "").strip() for name in names]
    try:
        quota, period = map(int, limits)
    except ValueError:  # "max", or not there
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
