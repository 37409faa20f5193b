"""The members of a tar archive, from the headers before each of them."""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from featx import system
from featx.errors import SourceError, counted, first_line
from featx.images.sources.members import Archive, Member, ReadAt, beside, clean_path

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_SCAN_BYTES = 2**20
_MAX_HEADER_BYTES = 2**20
_MAX_DIGITS = 100
_PLAIN_BYTES = 2**16
_LABELS, _LABEL_BYTES = (".cls", ".json", ".txt"), 2**12
_LITTLE = (b"mtime=", b"atime=", b"ctime=", b"uid=", b"gid=", b"uname=", b"gname=", b"LIBARCHIVE.")
"""Beginnings of records that do not matter here."""
_MOVING = {"path", "size", "linkpath"}
_SPARSE = "it is stored as a sparse file. Pack the images again without --sparse."


class _Headers:
    """The file of a tar whose headers alone are read, with limits on what reading them may cost."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._file.read(size)
        # tarfile of Python before 3.11.10 takes the square of the time for a long run of digits.
        if size > _BLOCK and any(len(run) > _MAX_DIGITS for run in re.findall(rb"\d+", data)):
            raise tarfile.ReadError("a number that is too long")
        return data


def list_tar(archive: Archive) -> list[Member]:
    """Return the members of a tar archive, also of several behind one another in one file.

    Raises:
        SourceError: The archive is damaged or cut short, or a path in it leads out of it.
    """
    path, members, begin = archive.path, list[Member](), 0
    try:
        with archive.opened() as file:
            read_at = _reading(archive, file)
            while begin < archive.size or not begin:
                end = begin
                for member, end in _part(path, file, read_at, begin):
                    if member.path:
                        members.append(_with_label(member, read_at) if archive.remote else member)
                    if end > archive.size:
                        problem = f"it ends in the middle of '{member.path}'"
                        raise _damaged(path, problem, len(members))
                if end == begin > 0:
                    log.warning(
                        "'%s': %s behind its end are not those of a tar, and are ignored.",
                        *(path, counted(archive.size - begin, "byte")),
                    )
                    break
                begin = _next_part(path, file, end, len(members))
    except OSError as err:
        raise SourceError(f"Cannot read '{path}': {err.strerror or err}.") from err
    return members


def _reading(archive: Archive, file: BinaryIO) -> ReadAt:
    """Return what reads headers without going through the library; the file's place may move."""
    if archive.remote is None:
        return partial(system.read_at, file.fileno())

    def read_at(size: int, at: int) -> bytes:
        file.seek(at)
        return file.read(size)

    return read_at


def _with_label(member: Member, read_at: ReadAt) -> Member:
    """Return a member with its bytes where it may be a label, for which others ask one by one."""
    if member.size > _LABEL_BYTES or not member.path.lower().endswith(_LABELS):
        return member
    content = read_at(member.size, member.start)
    return member._replace(content=content) if len(content) == member.size else member


def _part(path: str, file: BinaryIO, read_at: ReadAt, begin: int) -> Iterator[tuple[Member, int]]:
    """Yield each member of one archive with where it ends; none if there is no archive."""
    at, count = begin, 0
    try:
        file.seek(begin)
        with tarfile.TarFile(fileobj=_Headers(file), encoding="utf-8") as tar:  # type: ignore[arg-type]
            while found := (count and _plain(path, read_at, at)) or _next(path, tar, at):
                if found[1] <= at:
                    raise tarfile.ReadError("a negative size")
                at, count = found[1], count + 1
                yield found
    except (SourceError, GeneratorExit):
        raise
    except Exception as err:  # a damaged archive raises nearly anything
        if begin and not count:
            return
        raise _damaged(path, first_line(err), count) from err


def _next(path: str, tar: tarfile.TarFile, at: int) -> tuple[Member, int] | None:
    """Return the member whose headers begin at an offset, as the library reads them."""
    if tar.firstmember is None:  # type: ignore[attr-defined]  # read when it was opened
        tar.offset = at
    info = tar.next()
    tar.members.clear()  # type: ignore[attr-defined]
    if info is None:
        return None
    if _MOVING & tar.pax_headers.keys():
        raise tarfile.ReadError("a path or size for all members")
    return _member(path, info), tar.offset


def _plain(path: str, read_at: ReadAt, at: int) -> tuple[Member, int] | None:
    """Return an ordinary file's member, ten times as fast; None for what the library has to read.

    Extended headers before it may say what featx does not need, such as times.
    """
    header = read_at(_BLOCK, at)
    try:
        size = _size_in(header)
        if header[156:157] == tarfile.XHDTYPE and size <= _PLAIN_BYTES:
            if not _says_little(read_at(size, at + _BLOCK)):
                return None
            at += _BLOCK + _padded(size)
            header = read_at(_BLOCK, at)
            size = _size_in(header)
    except ValueError:
        return None
    name, prefix = (header[i:j].partition(b"\0")[0] for i, j in ((0, 100), (345, 500)))
    is_posix = header[257:265] == b"ustar\x0000"
    if header[156:157] != tarfile.REGTYPE or (prefix and not is_posix):
        return None
    name = b"/".join(filter(None, (prefix, name)))
    cleaned = clean_path(path, name.decode("utf-8", "surrogateescape"))
    start = at + _BLOCK
    return Member(cleaned, "file", start, size, size), start + _padded(size)


def _size_in(header: bytes) -> int:
    """Return the size that a header has; ``ValueError`` where it is not an ordinary one."""
    size, checksum = (int(header[i:j].partition(b"\0")[0], 8) for i, j in ((124, 136), (148, 156)))
    is_whole = checksum == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if len(header) < _BLOCK or not is_whole or header[257:262] != b"ustar" or size < 0:
        raise ValueError
    return size


def _says_little(records: bytes) -> bool:
    """Return whether an extended header says nothing about where and what a member is."""
    at = 0
    while at < len(records):
        length, _, rest = records[at : at + 80].partition(b" ")
        at += int(length)
        if int(length) < 5 or at > len(records) or not rest.startswith(_LITTLE):
            return False
    return True


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _next_part(path: str, file: BinaryIO, end: int, count: int) -> int:
    """Return where the next archive begins behind an end marker, or the size of the file."""
    file.seek(end)
    start = file.read(_BLOCK)
    if len(start) < _BLOCK:
        raise _damaged(path, "it has no end marker, and seems to be cut short", count)
    if start.strip(b"\0"):
        raise _damaged(path, "what follows is not a header", count)
    while data := file.read(_SCAN_BYTES):
        if rest := data.lstrip(b"\0"):
            return (file.tell() - len(rest)) // _BLOCK * _BLOCK
    return file.tell()


def _damaged(path: str, problem: str, count: int) -> SourceError:
    return SourceError(
        f"'{path}' is not a whole tar archive: {problem}, after {counted(count, 'member')}. "
        "Copy or download it again."
    )


def _member(path: str, info: tarfile.TarInfo) -> Member:
    kind = "other"
    if info.isdir():
        kind = "folder"
    elif info.islnk() or info.issym():
        kind = "link"
    elif info.isreg():
        kind = "file"
    name = clean_path(path, info.name)
    target = beside(name, info.linkname) if info.issym() else info.linkname
    return Member(
        *(name, kind, info.offset_data, info.size, info.size),
        refusal=_SPARSE if info.issparse() else "",
        target=target if kind == "link" else "",
    )
