"""Archives and Parquet files in stores and on the web, read in place: part by part."""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from featx.errors import SourceError
from featx.images.sources.objects import shared_remote
from featx.images.sources.remote import Entry, Gone, Remote, without_secrets

_BUFFER_BYTES = 2**22
_MAX_PART = 2**30
"""Bytes that are held at once: the directory of a zip, a page of a Parquet file."""


class PartError(OSError):
    """A part of a file cannot be read, or is of another file by now."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EIO, reason)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True)
class RemoteFile:
    """A file in a store or on the web as it was when it was opened; it can be pickled."""

    address: str
    entry: Entry
    remote: Remote = field(compare=False, repr=False)

    @classmethod
    def of(cls, address: str, remote: Remote) -> RemoteFile:
        """Return the file at an address.

        Raises:
            SourceError: It is not there, or its server does not say what has to be known of it.
        """
        shown, entry = without_secrets(address), remote.look_up(address)
        if entry is None or not entry.size:
            try:
                remote.get(address, None, (0, 1))
            except Gone as err:
                raise SourceError(f"Cannot read '{shown}': {str(err).rstrip('.')}.") from None
            raise SourceError(
                f"'{shown}' is empty, or its server tells no size and nothing by which a change "
                "would be noticed. Download it first."
            )
        return cls(address, entry, remote)

    def read_at(self, size: int, start: int) -> bytes:
        """Return up to ``size`` bytes from ``start`` on.

        Raises:
            PartError: They cannot be read, or the file was replaced.
            SourceError: There is no connection.
        """
        size = min(size, self.entry.size - start)
        if size <= 0:
            return b""
        if size > _MAX_PART:
            raise PartError(f"{size:,} bytes at once are more than such a file should need")
        try:
            return self.remote.get(self.address, self.entry, (start, size))
        except Gone as err:
            raise PartError(str(err).rstrip(".")) from None

    def opened(self) -> BinaryIO:
        """Return the file for reading in any order, a few megabytes at a time."""
        return cast("BinaryIO", _Buffered(_Raw(self), _BUFFER_BYTES))

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.address, self.entry)


def _again(address: str, entry: Entry) -> RemoteFile:
    return RemoteFile(address, entry, shared_remote(address))


class _Raw(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at, self.size = file, 0, file.entry.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if begin + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._file.read_at(len(buffer), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Buffered(io.BufferedReader):
    def read(self, size: int | None = -1) -> bytes:
        left = max(cast("_Raw", self.raw).size - self.tell(), 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _MAX_PART:
            raise PartError(f"{wanted:,} bytes at once are more than such a file should need")
        return super().read(wanted)
