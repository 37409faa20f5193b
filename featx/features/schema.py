"""The layout of a feature file, checked on its structure before any value is read.

A root group can keep its links and attributes in heaps whose blocks pass through filters, which may
be plug-ins. h5py does not tell, so ``require_plain_root`` reads the bytes first: superblock, root
group and their heaps, as in the "HDF5 File Format Specification Version 3.0".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from h5py._objects import phil  # what h5py itself holds in each call

from featx.artifact import MAX_HEADER_BYTES, Header, other_kind
from featx.errors import ArtifactIncomplete, ArtifactInvalid, ConfigError
from featx.images.decode import DIGEST_BYTES
from featx.images.views import ViewsSpec

COLUMNS = ("features", "labels", "splits", "sample_ids", "digests", "stamps", "groups")
"""The features come first; version 2 has no groups. ``views`` are a column where there are any."""
_WITHOUT_GROUPS = 2
_WITHOUT_CUT = 3
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_NOWHERE = 2**64 - 1
_MAX_MESSAGES = 1000
_MAX_BLOCK_BYTES = 2**24
_LINK_INFO, _FILTERS, _CONTINUATION, _ATTRIBUTE_INFO = 0x02, 0x0B, 0x10, 0x15
_SHARED = 0x02


def columns_of(header: Header) -> tuple[str, ...]:
    """Return the names of the columns that a file of this header has."""
    columns = COLUMNS[:-1] if header.schema_version == _WITHOUT_GROUPS else COLUMNS
    return (*columns, "views") if "views" in header.details else columns


def row_shape_of(header: Header) -> tuple[int, ...]:
    """Return the shape of a row's features."""
    return tuple(header.spec.get("shape") or (header.spec["num_features"],))


def views_of(header: Header) -> ViewsSpec | None:
    """Return how the views of a file were drawn; None where it has none."""
    return ViewsSpec.from_dict(header.details["views"]) if "views" in header.details else None


def read_header(file: h5py.File, path: Path) -> Header:
    """Return the header of a file that was written to its end."""
    if "header" not in file.attrs:
        raise ArtifactInvalid(path, f"'{path}' is an HDF5 file, but not one of featx's.")
    stored = file.attrs.get_id("header")
    if stored.dtype.kind != "S" or stored.shape != ():
        raise ArtifactInvalid(path, f"'{path}': its featx header is not text of fixed length.")
    if stored.dtype.itemsize > MAX_HEADER_BYTES:
        raise ArtifactInvalid(
            path, f"'{path}': its header is {stored.dtype.itemsize} bytes, over {MAX_HEADER_BYTES}."
        )
    header = Header.from_json(bytes(file.attrs["header"]), path=path, kind="features")
    if not _is_complete(file):
        raise ArtifactIncomplete(
            path, f"'{path}' is incomplete: the extraction did not finish. Run featx extract again."
        )
    return header


def _is_complete(file: h5py.File) -> bool:
    """Return whether the mark that is written last is there, and true."""
    if "complete" not in file.attrs:
        return False
    stored = file.attrs.get_id("complete")  # text of variable length would be read from elsewhere
    return stored.dtype.kind == "b" and stored.shape == () and bool(file.attrs["complete"])


def require_schema(file: h5py.File, header: Header, path: Path) -> None:
    """Look at links, layout, filters, types and shapes before any value is read."""
    num_rows, row_shape = header.details["num_rows"], row_shape_of(header)
    dtype = np.dtype(header.details["dtype"]).newbyteorder("<").str
    any_float = header.schema_version <= _WITHOUT_CUT
    expected: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
        "features": ((num_rows, *row_shape), ("<f4", "<f2") if any_float else (dtype,)),
        "labels": ((num_rows,), ("<i8",)),
        "splits": ((num_rows,), ("|u1",)),
        "sample_ids": ((num_rows,), ("|S",)),
        "digests": ((num_rows, DIGEST_BYTES), ("|u1",)),
        "stamps": ((num_rows, 2 if header.schema_version == _WITHOUT_GROUPS else 3), ("<i8",)),
        "groups": ((num_rows,), ("<i8",)),
    }
    try:
        views = views_of(header)
    except ConfigError as err:
        raise ArtifactInvalid(path, f"'{path}': its views cannot be read: {err}") from err
    if views:  # of how many rows the splits say, which are read later
        expected["views"] = ((None, views.num_views, *row_shape), (dtype,))
    for name in columns_of(header):
        shape, dtypes = expected[name]
        problem = _column_problem(file, name, shape, dtypes)
        if problem:
            raise ArtifactInvalid(path, f"'{path}': column '{name}' {problem}.")


def _column_problem(
    file: h5py.File, name: str, shape: tuple[object, ...], dtypes: tuple[str, ...]
) -> str | None:
    """Return the fault of a column, or None. Links are checked before they are followed."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return "is missing, or a link to somewhere else"
    column = file[name]
    if not isinstance(column, h5py.Dataset):
        return "is not a dataset"
    layout = column.id.get_create_plist()  # looked at first: a virtual shape is read elsewhere
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        return "keeps its values in another file"
    if not column.shape or column.shape != (shape[0] or column.shape[0], *shape[1:]):
        return f"has shape {column.shape}, expected {shape}"
    if column.dtype.hasobject or not column.dtype.str.startswith(dtypes):
        return f"has type {column.dtype.str}, expected {' or '.join(dtypes)}"
    return _storage_problem(column)


def _storage_problem(column: h5py.Dataset) -> str | None:
    """Return the fault in how a column is stored, or None."""
    layout = column.id.get_create_plist()
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if filters - {h5py.h5z.FILTER_FLETCHER32}:
        return "uses a filter that featx does not write"
    stored = column.id.get_storage_size()  # nothing is compressed: all of it must be there
    if not column.nbytes <= stored <= column.file.id.get_filesize():
        return "declares values that the file does not hold"
    return None


# --- the bytes of the root group ---------------------------------------------------------------


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
                path,
                f"'{path}' is not a featx feature file, or is damaged: {err}."
                f"{other_kind(path, 'features')}",
            ) from err


def _root(file: BinaryIO) -> int:
    start = file.read(48)
    if start[:8] != _SIGNATURE or len(start) < 48:
        raise _Unusual("it is not an HDF5 file")
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
    """Disable the plug-ins of HDF5; other threads wait for h5py meanwhile."""
    with phil:
        paths = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        for _ in paths:
            h5py.h5pl.remove(0)
        try:
            yield
        finally:
            for path in paths:
                h5py.h5pl.append(path)
