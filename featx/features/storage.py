"""Every byte that the cache writes goes through here: at an offset, whole or not at all.

``write``, ``sync`` and ``truncate`` are the only calls that change a file's content, so a test can
make the n-th of them fail, or replay them up to any point. HDF5 writes through ``Disk``: the
library takes a disk that fails for one that works, or crashes.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from featx import system
from featx.errors import ArtifactError


def write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` bytes from the file's start."""
    rest = memoryview(data).cast("B")
    while rest:
        written = system.write_at(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def sync(descriptor: int) -> None:
    system.sync_content(descriptor)


def truncate(descriptor: int, length: int) -> None:
    os.ftruncate(descriptor, length)


@dataclass(eq=False)
class Disk:
    """A file as HDF5 uses one, whose space is claimed first and whose first failure is kept.

    After a failure it pretends to work on, because HDF5 may crash on an error; ``check`` raises it.
    """

    descriptor: int
    position: int = 0
    length: int = 0
    failure: OSError | None = None

    @classmethod
    def open(cls, path: Path, *, room: int, output: Path) -> Disk:
        """Make the file and claim ``room`` bytes for it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.NO_LINK, 0o666)
        try:
            _claim(descriptor, room, output)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.check()
            truncate(self.descriptor, self.length)
            sync(self.descriptor)
        finally:
            os.close(self.descriptor)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; HDF5 itself calls ``readinto``."""
        size = self.length - self.position if size < 0 else size
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        content = b""
        try:
            content = system.read_at(self.descriptor, len(buffer), self.position)
        except OSError as err:
            self.failure = self.failure or err
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def write(self, data: memoryview) -> int:
        try:
            if self.failure is None:
                write(self.descriptor, data, self.position)
        except OSError as err:
            self.failure = err
        self.position += len(data)
        self.length = max(self.length, self.position)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Note the length; the claimed space stays until the file is closed."""
        self.length = self.position if size is None else size
        return self.length

    def flush(self) -> None:
        pass


_CANNOT_CLAIM = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
"""Errors of file systems that cannot reserve space. Then the first failed write shows it."""


def _claim(descriptor: int, room: int, output: Path) -> None:
    free = _free_bytes(descriptor, output)
    if free and free < room:
        raise ArtifactError(
            output,
            f"'{output}' needs {room:,} bytes, but its disk has {free:,} free. Free some and run "
            "the same command again; nothing is lost.",
        )
    try:
        system.reserve(descriptor, room)
    except OSError as err:
        if err.errno in _CANNOT_CLAIM:
            return
        raise ArtifactError(
            output,
            f"Cannot write '{output}': it needs {room:,} bytes, which cannot be had "
            f"({err.strerror}). Run the same command again when they can; nothing is lost.",
        ) from err


def _free_bytes(descriptor: int, output: Path) -> int:
    """Return how many bytes a disk says to have free; 0 where it is full or does not know."""
    try:
        return system.free_bytes(descriptor, output)
    except OSError:
        return 0
