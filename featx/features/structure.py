"""What HDF5 reads of a file before it can be asked: the superblock, the root group, their heaps.

A root group can keep its links and attributes in heaps whose blocks pass through filters, which may
be plug-ins. h5py does not tell, so the bytes are looked at first. They are as the "HDF5 File Format
Specification Version 3.0" has them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
from h5py._objects import phil  # what h5py itself holds in each call

from featx.errors import ArtifactInvalid

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = 2**64 - 1
_MAX_MESSAGES = 1000
_MAX_BLOCK_BYTES = 2**24
_LINK_INFO, _FILTERS, _CONTINUATION, _ATTRIBUTE_INFO = 0x02, 0x0B, 0x10, 0x15
_SHARED = 0x02


class _Unusual(ValueError):
    """The file is not laid out as featx writes it; the text says where."""


def require_plain_root(path: Path) -> None:
    """Check, on the bytes alone, that opening a file and its attributes runs no filter."""
    with path.open("rb") as file:
        try:
            for kind, flags, content in _messages(file, _root(file)):
                if flags & _SHARED:
                    raise _Unusual("the root group shares parts with other objects")
                if kind == _FILTERS:
                    raise _Unusual("the root group has a filter that featx does not write")
                if kind in (_LINK_INFO, _ATTRIBUTE_INFO):
                    _require_plain_heap(file, _heap_of(kind, content))
        except (_Unusual, struct.error) as err:
            raise ArtifactInvalid(
                path, f"'{path}' is not a featx feature file, or is damaged: {err}."
            ) from err


def _root(file: BinaryIO) -> int:
    """Return where the header of the root group is."""
    start = file.read(48)
    if start[:8] != _SIGNATURE or len(start) < 48:
        raise _Unusual("it is no HDF5 file")
    version, offsets, lengths, _, base, extension, _, root = struct.unpack_from("<4B4Q", start, 8)
    if version not in (2, 3) or (offsets, lengths, base) != (8, 8, 0):
        raise _Unusual("it is an HDF5 file, but not one of featx's")
    if extension != _NOWHERE:
        raise _Unusual("its superblock has an extension, which featx does not write")
    return int(root)


def _messages(file: BinaryIO, address: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and content of each message of an object header of version 2."""
    start = _read(file, address, 6)
    flags = start[5]
    if start[:5] != b"OHDR\x02":
        raise _Unusual("the root group is not of the kind that featx writes")
    place = address + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    size = int.from_bytes(_read(file, place, width), "little")
    pending = [_read(file, place + width, size)]
    ordered = 2 * bool(flags & 0x04)  # bytes of a creation order
    count = 0
    while pending:
        block, at = pending.pop(), 0
        while len(block) - at >= 4 + ordered:
            count += 1
            if count > _MAX_MESSAGES:
                raise _Unusual(f"the root group has more than {_MAX_MESSAGES} parts")
            kind, length, own = struct.unpack_from("<BHB", block, at)
            at += 4 + ordered
            content = block[at : at + length]
            at += length
            if len(content) < length:
                raise _Unusual("the root group ends too early")
            if kind == _CONTINUATION:
                pending.append(_continuation(file, content))
            else:
                yield kind, own, content


def _continuation(file: BinaryIO, content: bytes) -> bytes:
    """Return the messages of the block that a header is continued in."""
    address, size = struct.unpack_from("<2Q", content)
    block = _read(file, address, size)
    if block[:4] != b"OCHK" or size < 8:
        raise _Unusual("the root group is continued nowhere")
    return block[4:-4]  # without signature and checksum


def _heap_of(kind: int, content: bytes) -> int:
    """Return where the heap of links or attributes is, ``_NOWHERE`` without one."""
    version, flags = struct.unpack_from("<2B", content)
    if version != 0:
        raise _Unusual("the root group is of a later version of HDF5")
    index_bytes = (8 if kind == _LINK_INFO else 2) if flags & 1 else 0
    (address,) = struct.unpack_from("<Q", content, 2 + index_bytes)
    return int(address)


def _require_plain_heap(file: BinaryIO, address: int) -> None:
    """Check that the blocks of a fractal heap pass through no filter."""
    if address == _NOWHERE:
        return
    start = _read(file, address, 9)
    if start[:5] != b"FRHP\0":
        raise _Unusual("a heap of the root group is not of the kind that featx writes")
    if int.from_bytes(start[7:9], "little"):
        raise _Unusual("a heap of the root group has a filter that featx does not write")


def _read(file: BinaryIO, address: int, size: int) -> bytes:
    if size > _MAX_BLOCK_BYTES:
        raise _Unusual("the root group is of an absurd size")
    if address + size > os.fstat(file.fileno()).st_size:
        raise _Unusual("it ends too early")
    file.seek(address)
    return file.read(size)


@contextmanager
def without_plugins() -> Iterator[None]:
    """Let HDF5 find no plug-ins; no other thread uses h5py meanwhile, and then all is as before."""
    with phil:
        paths = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        for _ in paths:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for path in paths:
                h5py.h5pl.append(path)
