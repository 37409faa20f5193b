"""Every byte that the cache writes goes through here: at an offset, whole or not at all.

``write``, ``sync`` and ``truncate`` are the only calls that change a file's content, so a test can
make the n-th of them fail, or replay them up to any point.
"""

from __future__ import annotations

import os


def write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` bytes from the file's start."""
    rest = memoryview(data).cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def sync(descriptor: int) -> None:
    """Wait until the file's content and length are on the disk."""
    os.fdatasync(descriptor)


def truncate(descriptor: int, length: int) -> None:
    """Cut the file to ``length`` bytes."""
    os.ftruncate(descriptor, length)
