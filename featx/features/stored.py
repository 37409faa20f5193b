"""A column of one HDF5 file, read chunk by chunk past HDF5.

HDF5 says where each chunk lies, and its bytes come straight into a buffer.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featx import system


class StoredColumn:
    """A column of one HDF5 file, whose chunks are read as bytes where they lie plainly."""

    def __init__(self, file: h5py.File, name: str, path: Path, shape: tuple[int, ...]) -> None:
        column = file[name]
        self.path, self._column, self._row_shape = path, column, shape
        self.num_rows, self.dtype = column.shape[0], column.dtype
        self._num_views = math.prod(column.shape[1 : -len(shape)])
        self._has_views = column.ndim > 1 + len(shape)
        self._descriptor = file.id.get_vfd_handle()
        self._identity = _identity(os.fstat(self._descriptor))
        views = (1,) * (column.ndim - 1 - len(shape))
        self.is_plain = not file.userblock_size and column.chunks is not None
        self.is_plain &= hasattr(column.id, "chunk_iter")  # not with HDF5 before 1.10.10
        self.is_plain &= (column.chunks or ())[1:] == (*views, *shape)
        row_bytes = self.dtype.itemsize * math.prod(shape)
        self.chunk_rows = column.chunks[0] if self.is_plain else max(1, 2**20 // row_bytes)
        self._num_chunks = -(-self.num_rows // self.chunk_rows)
        self._places = self._find() if self.is_plain else []

    def _find(self) -> list[int]:
        """Return where each chunk lies, view after view; fewer where some are missing."""
        places: list[int | None] = [None] * (self._num_views * self._num_chunks)

        def note(chunk: Any) -> None:  # of all at once: HDF5 takes as long for each by itself
            view = chunk.chunk_offset[1] if self._has_views else 0
            number = chunk.chunk_offset[0] // self.chunk_rows
            places[view * self._num_chunks + number] = chunk.byte_offset

        self._column.id.chunk_iter(note)
        found = [place for place in places if place is not None]
        self.is_whole = len(found) == len(places)
        return found

    def read(self, first: int, view: int, values: np.ndarray) -> bool:
        """Fill ``values`` ``(n, size)`` with rows; return False where the file ends too early."""
        if not self.is_plain:
            rows = np.s_[first : first + len(values)]
            source = (rows, view) if self._has_views else rows
            self._column.read_direct(values.reshape(-1, *self._row_shape), source)
            return True
        while len(values):
            chunk, row = divmod(first, self.chunk_rows)
            count = min(len(values), self.chunk_rows - row)
            place = self._places[view * self._num_chunks + chunk] + row * values[:1].nbytes
            if not self._read_bytes(values[:count], place):
                return False
            first, values = first + count, values[count:]
        return True

    def _read_bytes(self, values: np.ndarray, place: int) -> bool:
        rest = values.data.cast("B")
        while rest:
            count = system.read_into(self._descriptor, rest, place)
            if not count:
                return False
            rest, place = rest[count:], place + count
        return True

    def is_same(self) -> bool:
        """Return whether the file at the path is the one that is open."""
        try:
            return _identity(self.path.stat()) == self._identity
        except OSError:
            return False


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_size
