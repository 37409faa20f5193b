"""The members of a tar archive, from the headers before each of them."""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from featx.errors import SourceError, counted, first_line
from featx.images.sources.members import Archive, Member, beside, clean_path

log = logging.getLogger(__name__)

_BLOCK = tarfile.BLOCKSIZE
_SCAN_BYTES = 2**20
_MAX_HEADER_BYTES = 2**20
_MAX_DIGITS = 100
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
    path, members, begin = Path(archive.path), list[Member](), 0
    try:
        with path.open("rb") as file:
            while begin < archive.stamp.size or not begin:
                end = begin
                for member, end in _part(path, file, begin):
                    members += [member] if member.path else []
                    if end > archive.stamp.size:
                        raise _damaged(path, members, f"it ends in the middle of '{member.path}'")
                if end == begin > 0:
                    log.warning(
                        "'%s': %s behind its end are not those of a tar, and are ignored.",
                        *(path, counted(archive.stamp.size - begin, "byte")),
                    )
                    break
                begin = _next_part(path, file, end, members)
    except OSError as err:
        raise SourceError(f"Cannot read '{path}': {err.strerror or err}.") from err
    return members


def _part(path: Path, file: BinaryIO, begin: int) -> Iterator[tuple[Member, int]]:
    """Yield each member of one archive with where it ends; none if there is no archive."""
    before, count = begin, 0
    try:
        file.seek(begin)
        with tarfile.TarFile(fileobj=_Headers(file), encoding="utf-8") as tar:  # type: ignore[arg-type]
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if tar.offset <= before or info.size < 0:
                    raise tarfile.ReadError("a negative size")
                before, count = tar.offset, count + 1
                yield _member(path, info), tar.offset
    except (SourceError, GeneratorExit):
        raise
    except Exception as err:  # a damaged archive raises nearly anything
        if begin and not count:
            return
        raise SourceError(
            f"'{path}' is not a whole tar archive: {first_line(err)}, after "
            f"{counted(count, 'member')}. Copy or download it again."
        ) from err


def _next_part(path: Path, file: BinaryIO, end: int, members: list[Member]) -> int:
    """Return where an archive goes on behind an end marker, or the size of the file."""
    file.seek(end)
    start = file.read(_BLOCK)
    if len(start) < _BLOCK:
        raise _damaged(path, members, "it has no end marker, and seems to be cut short")
    if start.strip(b"\0"):
        raise _damaged(path, members, "what follows is no header")
    while data := file.read(_SCAN_BYTES):
        if rest := data.lstrip(b"\0"):
            return (file.tell() - len(rest)) // _BLOCK * _BLOCK
    return file.tell()


def _damaged(path: Path, members: list[Member], problem: str) -> SourceError:
    return SourceError(
        f"'{path}' is not a whole tar archive: {problem}, after "
        f"{counted(len(members), 'member')}. Copy or download it again."
    )


def _member(path: Path, info: tarfile.TarInfo) -> Member:
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
