"""The members of a zip archive, from its directory at the end."""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from collections.abc import Iterator
from itertools import pairwise

from featx.errors import SourceError, first_line
from featx.images.sources.members import Archive, Member, beside, clean_path, read_member

log = logging.getLogger(__name__)

_LOCAL_BYTES = 30
_IS_UTF8 = 0x800
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_AES = 99
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 20: "Zstandard", 93: "Zstandard", 95: "XZ"}
_UNIX = 3
_MAX_TARGET = 4096


def list_zip(archive: Archive, *, encoding: str = "") -> list[Member]:
    """Return the members of a zip archive in the order of its directory.

    Names are UTF-8, and in archives of old programs whatever they took: UTF-8 where it can be that,
    else ``encoding``, or cp437 without one.

    Raises:
        SourceError: The archive is damaged, or a path in it leads out of it.
    """
    path = archive.path
    try:
        with archive.opened() as raw:
            raw.seek(-min(archive.size, 1), os.SEEK_END)
            raw.read(1)  # what cannot be read at all is no damage
            with zipfile.ZipFile(raw) as file:
                infos = file.infolist()
    except SourceError:
        raise
    except UnicodeDecodeError as err:
        raise SourceError(
            f"'{path}' holds a name that is said to be UTF-8 but is not. Pack the images again."
        ) from err
    except OSError as err:
        raise SourceError(f"Cannot read '{path}': {err.strerror or err}.") from err
    except Exception as err:  # a damaged archive raises nearly anything
        raise SourceError(
            f"'{path}' is not a whole zip archive ({first_line(err)}). Copy or download it again."
        ) from err
    _require_apart(archive, infos)
    members = list(_members(path, infos, encoding))
    return [
        _with_target(archive, member) if member.kind == "link" else member for member in members
    ]


def _require_apart(archive: Archive, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, as those of a bomb do."""
    places = sorted(
        (info.header_offset, info.header_offset + _LOCAL_BYTES + info.compress_size)
        for info in infos
    )
    ends = (*places, (archive.size, 0))
    if any(one[1] > other[0] for one, other in pairwise(ends)) or (places and places[0][0] < 0):
        raise SourceError(
            f"'{archive.path}' has members that share bytes, or that end behind its end: it is a "
            "bomb, or damaged. Copy or download it again, or pack the images again."
        )


def _members(path: str, infos: list[zipfile.ZipInfo], encoding: str) -> Iterator[Member]:
    foreign = 0
    for info in infos:
        name, is_foreign = _name_of(path, info, encoding)
        foreign += is_foreign
        if cleaned := clean_path(path, name):
            yield Member(
                cleaned,
                _kind_of(info, name),
                start=info.header_offset,
                packed=info.compress_size,
                size=info.file_size,
                crc=info.CRC,
                is_deflated=info.compress_type == zipfile.ZIP_DEFLATED,
                refusal=_refusal(info),
            )
    if foreign:
        log.warning(
            "'%s': the encoding of %d names is not known; they are read as cp437, as zip programs "
            "do. If they look wrong, say which it is, as in encoding='cp866'.",
            *(path, foreign),
        )


def _name_of(path: str, info: zipfile.ZipInfo, encoding: str) -> tuple[str, bool]:
    """Return a member's name with ``/``, and whether its encoding is not known."""
    name, is_foreign = info.orig_filename, False
    if not info.flag_bits & _IS_UTF8 and not name.isascii():
        raw = name.encode("cp437")  # as zipfile decoded it
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            is_foreign = not encoding
            try:
                name = raw.decode(encoding or "cp437")
            except (UnicodeDecodeError, LookupError) as err:
                raise SourceError(
                    f"'{path}': the name {raw!r} cannot be read in the encoding '{encoding}' "
                    f"({err}). Give another encoding."
                ) from err
    if info.create_system != _UNIX and "/" not in name:  # .NET before 4.6.1
        name = name.replace("\\", "/")
    return name, is_foreign


def _kind_of(info: zipfile.ZipInfo, name: str) -> str:
    if name.endswith("/"):
        return "folder"
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    if stat.S_ISLNK(mode):
        return "link"
    return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "other"


def _refusal(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED or info.compress_type == _AES:
        return "it is encrypted. Pack the images again without a password."
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        return f"it is compressed by {method}. Pack the images again by Deflate, or uncompressed."
    return ""


def _with_target(archive: Archive, member: Member) -> Member:
    """Return a link with the path that it leads to, which is its content."""
    if member.refusal or member.size > _MAX_TARGET:
        return member
    try:
        target = read_member(archive, member, sample_id=member.path)
    except SourceError as err:
        return member._replace(refusal=f"it is a link that cannot be read ({err}).")
    return member._replace(target=beside(member.path, target.decode("utf-8", "surrogateescape")))
