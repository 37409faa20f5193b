"""Files inside an archive: where each lies, and reading it there, from any thread or process.

An archive is opened for each read and left at once, so that none shares a position with another.
Nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from featx import system
from featx.errors import ImageError, SourceError, printable
from featx.images.decode import MAX_FILE_BYTES
from featx.images.sources.remote import path_of
from featx.images.sources.sample import NO_FILE, Sample, Stamp, stamp_of

ReadAt = Callable[[int, int], bytes]
"""Called with a number of bytes and where they begin."""
_LOCAL = struct.Struct("<4s22xHH")
"""Before a zip's member: a signature, and the lengths of its name and of what follows that."""
_MAX_NAME, _MAX_FOLDERS = 4096, 64
_MAX_RATIO = 100
"""Deflate reaches 1,032 on zeros; photos do not reach 2, drawings of one colour a few hundred."""
_SMALL_BYTES = 2**26
"""A member may unpack to as much by any ratio: one drawing of one colour."""
_SMALL_ARCHIVE = 2**30
_REMOTE_READS = 32
_EXTRA_BYTES = 128
"""Between the name of a zip's member and its bytes; seldom more."""
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class Remote(Protocol):
    """A file elsewhere: its address, and reading it; ``OSError`` where it was replaced."""

    def read_at(self, size: int, start: int) -> bytes: ...

    def opened(self) -> BinaryIO: ...


class Archive(NamedTuple):
    """An archive as it was when its members were listed.

    ``identity`` tells the file from another that takes its place: device, inode, size, and when it
    was written. One that is ``remote`` is called by its address, and tells so itself.
    """

    path: str
    stamp: Stamp
    identity: tuple[int, int, int, int]
    remote: Remote | None = None

    @classmethod
    def of(cls, path: Path) -> Archive:
        """Return an archive, to be called before its members are listed."""
        return cls(str(path), stamp_of(str(path)), _identity(path.stat()))

    @property
    def suffix(self) -> str:
        """The ending of its name."""
        return Path(path_of(self.path) if self.remote else self.path).suffix.lower()

    @property
    def size(self) -> int:
        """Its bytes, which the stamp of a file that cannot be known again does not have."""
        return self.identity[2]

    def opened(self) -> BinaryIO:
        """Return it for reading."""
        return self.remote.opened() if self.remote else Path(self.path).open("rb")


class Member(NamedTuple):
    """A file, folder or link in an archive."""

    path: str  # in the archive, with / between its parts
    kind: str  # "file", "folder", "link", or "other" for what holds no bytes
    start: int  # where its header begins in a zip, its bytes in a tar
    packed: int  # bytes that it takes in the archive
    size: int  # bytes that it has
    crc: int | None = None  # of its bytes in a zip; None in a tar
    is_deflated: bool = False
    refusal: str = ""  # why it cannot be read
    target: str = ""  # of a link, from the top of the archive
    content: bytes | None = None  # its bytes, where they came along with its header


@dataclass(frozen=True, eq=False)
class ArchiveSource:
    """Images in archives; an ``ImageSource``. ``places`` says where each sample's bytes are."""

    uri: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    places: Sequence[tuple[Archive, Member]]
    ignored: Mapping[str, int] = field(default_factory=dict)
    has_tags: bool = False

    @property
    def parallel_reads(self) -> int | None:
        """How many images are best read at once; None where cores decide."""
        return _REMOTE_READS if any(archive.remote for archive, _ in self.places) else None

    def read(self, index: int) -> bytes:
        archive, member = self.places[index]
        return read_member(archive, member, sample_id=self.samples[index].sample_id)

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a member.

        It is the same as long as archive and member are. Two images of an archive have different
        ones, so that an image that looks the same as it was is that image.
        """
        archive, member = self.places[index]
        if archive.stamp == NO_FILE:
            return NO_FILE
        values = (*archive.stamp, member.start, member.packed, member.crc)
        mixed = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
        changed = int.from_bytes(mixed, "little") >> 1  # not negative, as an unknown time is
        return Stamp(min(member.size, 2**63 - 1), archive.stamp.mtime_ns, changed)


def read_member(archive: Archive, member: Member, *, sample_id: str) -> bytes:
    """Return the bytes of a member.

    Raises:
        ImageError: It cannot be read, is damaged, or unpacks to more than an image has; or the
            archive is no longer the one whose members were listed.
    """
    if refusal := _refusal(member):
        raise ImageError(sample_id, refusal)
    if member.content is not None:
        return member.content
    try:
        if archive.remote:
            return _content(_ahead(archive.remote, member), member)
        descriptor = os.open(archive.path, os.O_RDONLY | system.NO_WAIT)
        try:
            _require_same(archive, descriptor, sample_id)
            content = _content(partial(system.read_at, descriptor), member)
            _require_same(archive, descriptor, sample_id)
        finally:
            os.close(descriptor)
    except (OSError, ValueError, MemoryError, zlib.error) as err:
        reason = err.strerror if isinstance(err, OSError) else str(err)
        raise ImageError(
            sample_id, f"cannot be read from its archive: {reason or type(err).__name__}."
        ) from err
    return content


def _refusal(member: Member) -> str:
    """Return why a member is not to be read; empty where it is."""
    if member.refusal:
        return member.refusal
    if member.size > MAX_FILE_BYTES:
        return f"{member.size} bytes is more than the {MAX_FILE_BYTES} allowed."
    if member.size > _SMALL_BYTES + _MAX_RATIO * member.packed:
        return f"{member.packed} bytes unpack to {member.size}, as no image does: a bomb."
    return ""


def _require_same(archive: Archive, descriptor: int, sample_id: str) -> None:
    if _identity(os.fstat(descriptor)) != archive.identity:
        reason = f"the archive '{archive.path}' was changed since its files were listed."
        raise ImageError(sample_id, reason, is_permanent=False)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _ahead(remote: Remote, member: Member) -> ReadAt:
    """Return what reads a member: of a zip, what lies before its bytes comes along with them."""
    if member.crc is None:
        return remote.read_at
    start, room = member.start, _LOCAL.size + 2 * len(member.path.encode("utf-8", "replace"))
    content = remote.read_at(room + _EXTRA_BYTES + member.packed, start)

    def read_at(size: int, at: int) -> bytes:
        part = content[at - start : at - start + size]
        return part if len(part) == size else remote.read_at(size, at)

    return read_at


def _content(read_at: ReadAt, member: Member) -> bytes:
    start = member.start
    if member.crc is not None:
        header = read_at(_LOCAL.size, start)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
            raise ValueError("it does not lie where the archive says")
        start += _LOCAL.size + sum(_LOCAL.unpack(header)[1:])
    packed = read_at(member.packed, start)
    if len(packed) < member.packed:
        raise ValueError("the archive ends in the middle of it")
    content = _inflated(packed, member.size) if member.is_deflated else packed
    if len(content) != member.size:
        raise ValueError(f"it has another size than the {member.size} bytes that the archive says")
    if member.crc is not None and zlib.crc32(content) != member.crc:
        raise ValueError("its checksum is wrong")
    return content


def _inflated(packed: bytes, size: int) -> bytes:
    """Return what compressed bytes unpack to; of more than ``size`` bytes, one more."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(packed, size + 1)
    if not inflater.eof and len(content) <= size:
        raise ValueError("its compressed bytes end too early")
    return content


def clean_path(archive: str, name: str) -> str:
    """Return a member's path without empty parts and dots; empty for the archive itself.

    Raises:
        SourceError: It leads out of the archive, or is none that a file system would have.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or _DRIVE.match(name) or ".." in re.split(r"[\\/]", name):
        raise SourceError(
            f"'{archive}' holds '{printable(name)}', a path that leads out of the archive. "
            "An archive like this may be meant to harm. Pack the images again, by relative paths."
        )
    if "\0" in name or len(name) > _MAX_NAME or len(parts) > _MAX_FOLDERS:
        raise SourceError(
            f"'{archive}' holds '{printable(name[:60])}…', a path of more than {_MAX_NAME} "
            f"characters or {_MAX_FOLDERS} folders, or with a NUL in it. Pack the images again."
        )
    return "/".join(parts)


def beside(path: str, target: str) -> str:
    """Return where a symbolic link leads, from the top of the archive."""
    folder = path.rpartition("/")[0]
    return f"{folder}/{target}" if folder and not target.startswith("/") else target


def require_no_bomb(archive: Archive, members: Sequence[Member]) -> None:
    """Refuse an archive whose images, all that may be read, unpack to many times its size."""
    total = sum(member.size for member in members if not _refusal(member))
    if total > _SMALL_ARCHIVE + _MAX_RATIO * archive.size:
        raise SourceError(
            f"'{archive.path}' has {archive.size:,} bytes, and its images unpack to "
            f"{total:,}: it is a bomb, or damaged."
        )


@dataclass(frozen=True)
class Files:
    """The files of an archive by path, and the paths that several have."""

    by_path: Mapping[str, Member]
    repeated: frozenset[str]

    @classmethod
    def of(cls, members: Iterable[Member]) -> Files:
        by_path, repeated = dict[str, Member](), set[str]()
        for member in members:
            if member.kind != "folder":
                if member.path in by_path:
                    repeated.add(member.path)
                by_path[member.path] = member
        return cls(by_path, frozenset(repeated))

    def find(self, archive: Archive, path: str) -> Member:
        """Return the file at a path, or the one that a link at it leads to.

        What cannot be read says why. Links lead to files of the archive only, over one step.

        Raises:
            SourceError: There are several.
        """
        if self.repeated and path in self.repeated:
            raise SourceError(
                f"'{archive.path}' holds several files called '{printable(path)}'. Only one can "
                "be meant: pack the images again."
            )
        member = self.by_path[path]
        if member.kind == "other":
            return member._replace(refusal="not a regular file.")
        if member.kind != "link" or member.refusal:
            return member
        target = self.by_path.get(posixpath.normpath(member.target))
        if target is None or target.kind != "file" or target.path in self.repeated:
            shown = printable(member.target)
            return member._replace(refusal=f"it is a link to '{shown}', no file of the archive.")
        return target
