"""The columns of a feature file as they are written: shapes, chunks, bytes, and blocks of rows.

A chunk is about a mebibyte of consecutive rows; of the views, of one view of consecutive rows, so
that an epoch that takes one view of each image reads nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from featx.features.records import RowLayout
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import Stamp

BLOCK_ROWS = 4096
_BLOCK_BYTES = 2**25
_VIEWS_BYTES = 2**24  # of the chunks that are written side by side, one of each view
_CHUNK_BYTES = 2**20
_HDF5_CHUNK_BYTES = 128  # checksum and place in the index; measured: below 50
_HDF5_BYTES = 2**16  # superblock, groups, the roots of six indices; measured: below 20 kB


class Column(NamedTuple):
    """Shape, type and chunks of a column."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its chunks, whole, with HDF5's own."""
        counts = [-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]
        chunk_bytes = math.prod(self.chunks) * self.dtype.itemsize + _HDF5_CHUNK_BYTES
        return math.prod(counts) * chunk_bytes


def schema_of(layout: RowLayout, num_rows: int, num_train: int, id_bytes: int) -> dict[str, Column]:
    """Return the columns of a file, in the order they are made."""
    rows = {
        "features": (layout.stored, layout.shape),
        "labels": (np.dtype("<i8"), ()),
        "splits": (np.dtype("u1"), ()),
        "sample_ids": (np.dtype(f"S{id_bytes}"), ()),
        "digests": (np.dtype("u1"), (DIGEST_BYTES,)),
        "stamps": (np.dtype("<i8"), (len(Stamp._fields),)),
        "groups": (np.dtype("<i8"), ()),
    }
    schema = {}
    for name, (dtype, shape) in rows.items():
        at_once = chunk_rows_of(dtype.itemsize * math.prod(shape), num_rows)
        schema[name] = Column((num_rows, *shape), dtype, (at_once, *shape))
    if layout.num_views:
        most = max(layout.row_bytes, _VIEWS_BYTES // layout.num_views)
        at_once = min(chunk_rows_of(layout.row_bytes, num_train), most // layout.row_bytes)
        shape, chunks = (num_train, layout.num_views, *layout.shape), (at_once, 1, *layout.shape)
        schema["views"] = Column(shape, layout.stored, chunks)
    return schema


def block_sizes(
    is_train: np.ndarray, layout: RowLayout, schema: dict[str, Column]
) -> Iterator[int]:
    """Yield the rows of each block, which ends where chunks of the views do if there are any.

    ``is_train`` says which rows have views, ``(N,)`` bool.
    """
    num_rows, row_bytes = len(is_train), layout.row_bytes * (1 + layout.num_views)
    most = BLOCK_ROWS
    if layout.num_views or len(layout.shape) > 1:
        most = max(1, min(most, _BLOCK_BYTES // row_bytes))
    step = schema["views"].chunks[0] if layout.num_views else 1
    before = np.append(np.cumsum(is_train), 0)  # [-1] is none
    start = 0
    while start < num_rows:
        stop = min(num_rows, start + most)
        if stop < num_rows and step > 1:
            whole = int(before[stop - 1]) // step * step
            if whole > before[start - 1]:
                stop = int(np.searchsorted(before[:-1], whole)) + 1
        yield stop - start
        start = stop


def file_size(schema: dict[str, Column], header_bytes: int) -> int:
    """Return the bytes that the file takes at most: whole chunks, header, HDF5's own."""
    return header_bytes + _HDF5_BYTES + sum(column.stored_bytes for column in schema.values())


def chunk_rows_of(row_bytes: int, num_rows: int) -> int:
    """Return the rows of a chunk."""
    return max(1, min(num_rows, _CHUNK_BYTES // row_bytes))
