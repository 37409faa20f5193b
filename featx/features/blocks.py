"""The features of a file that need not fit into memory: read block by block, again and again.

HDF5 says where each chunk lies, and its bytes come straight into a buffer, the next block while the
last is worked on. The first pass over all of them compares their sha256 with the header's and
notes a sum of each chunk. Every later pass compares the sums, which costs less than HDF5's own
checksums and tells as well whether a byte has changed since.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager

import h5py
import numpy as np

from featx.errors import ArtifactInvalid
from featx.features.file import FeatureFile, require_digest, translated
from featx.images.reading import map_ahead

_BLOCK_BYTES = 2**22
"""Size of a block; large enough for a fast product, small enough for the cache."""
_AHEAD = 3
"""Blocks that are read while one is worked on."""


@contextmanager
def reading_blocks(cache: FeatureFile) -> Iterator[FeatureRows]:
    """Yield all rows of a feature file, for reading block by block."""
    with cache.same_file() as file, translated(cache.path):
        yield FeatureRows(_Column(cache, file), np.arange(len(cache)))


class FeatureRows:
    """Some rows of a feature file, by their ascending numbers."""

    def __init__(self, column: _Column, rows: np.ndarray) -> None:
        self._column, self._rows = column, rows
        self._pieces = np.unique(rows // column.chunk_rows)
        starts = np.arange(-(-(column.num_rows + 1) // column.chunk_rows) + 1) * column.chunk_rows
        self._bounds = np.searchsorted(rows, starts).tolist()  # of each piece's rows among these

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and features of a row."""
        return len(self._rows), self._column.num_features

    @property
    def num_pieces(self) -> int:
        """Parts of the file that can be read in any order."""
        return len(self._pieces)

    @property
    def bytes_read(self) -> int:
        """Bytes of features read from the file, by this and all others made from it."""
        return self._column.bytes_read

    def only(self, rows: np.ndarray) -> FeatureRows:
        """Return some of these rows; ``rows`` ``(n,)`` are their positions here, ascending."""
        return FeatureRows(self._column, self._rows[rows])

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield positions and values ``(n, num_features)`` float32, block by block.

        Values may be changed in place, and are overwritten when the next block is asked for.

        Args:
            order: Of the pieces; None for one after the other, several at once.
        """
        column = self._column
        groups = (
            self._in_sequence() if order is None else [[piece] for piece in self._pieces[order]]
        )
        with closing(column.read(groups)) as blocks:
            for group, values in blocks:
                low, high = self._bounds[group[0]], self._bounds[group[-1] + 1]
                if high - low < len(values):
                    first = group[0] * column.chunk_rows
                    values = values[self._rows[low:high] - first]  # noqa: PLW2901
                yield slice(low, high), values

    def _in_sequence(self) -> list[list[int]]:
        """Return runs of neighbouring chunks, each of a block's size at most."""
        at_once = self._column.pieces_at_once
        groups: list[list[int]] = []
        for piece in self._pieces.tolist():
            if groups and groups[-1][-1] == piece - 1 and len(groups[-1]) < at_once:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        return groups


class _Column:
    """Reads whole chunks of the features, and checks them."""

    def __init__(self, cache: FeatureFile, file: h5py.File) -> None:
        column = file["features"]
        self._cache, self._column = cache, column
        self.num_rows, self.num_features = column.shape
        row_bytes = column.dtype.itemsize * self.num_features
        self._descriptor = file.id.get_vfd_handle()
        self._identity = _identity(os.fstat(self._descriptor))
        self._is_plain = column.chunks is not None and column.chunks[1] == self.num_features
        self._is_plain &= not file.userblock_size
        self.chunk_rows = column.chunks[0] if self._is_plain else max(1, 2**20 // row_bytes)
        self._num_pieces = -(-self.num_rows // self.chunk_rows)
        self.pieces_at_once = max(1, _BLOCK_BYTES // (4 * self.chunk_rows * self.num_features))
        self._places = self._find() if self._is_plain else []
        self._sums: dict[int, int] = {}
        self._checked = cache.features_checked
        self.bytes_read = 0

    def _find(self) -> list[int]:
        starts = [(piece * self.chunk_rows, 0) for piece in range(self._num_pieces)]
        places = [self._column.id.get_chunk_info_by_coord(start).byte_offset for start in starts]
        if None in places:
            raise self._damaged()
        return places

    def read(
        self, groups: Sequence[Sequence[int]]
    ) -> Generator[tuple[Sequence[int], np.ndarray], None, None]:
        """Yield groups of neighbouring pieces with their rows, float32, reading one ahead."""
        self._require_same()
        check = not self._checked and sum(map(len, groups)) == self._num_pieces
        digest = hashlib.sha256() if check else None
        rows = max(map(len, groups), default=1) * self.chunk_rows
        shape = (min(rows, self.num_rows), self.num_features)
        raw = np.empty(shape if self._column.dtype != np.float32 else (0, 0), self._column.dtype)
        buffers = np.empty((_AHEAD + 1, *shape), np.float32)

        def fill(number: int) -> np.ndarray:
            return self._fill(groups[number], raw, buffers[number % len(buffers)], digest)

        with closing(map_ahead(fill, range(len(groups)), workers=1, window=_AHEAD)) as ahead:
            yield from zip(groups, ahead, strict=True)
        if digest:
            require_digest(self._cache.path, self._cache.header, "features", digest)
            self._checked = True

    def _fill(
        self,
        group: Sequence[int],
        raw: np.ndarray,
        values: np.ndarray,
        digest: hashlib._Hash | None,
    ) -> np.ndarray:
        """Return the rows of neighbouring pieces, in ``values``."""
        first, stop = group[0] * self.chunk_rows, (group[-1] + 1) * self.chunk_rows
        num_rows = min(stop, self.num_rows) - first
        values = values[:num_rows]
        stored = values if self._column.dtype == values.dtype else raw[:num_rows]
        with translated(self._cache.path):
            for number, piece in enumerate(group):
                part = stored[number * self.chunk_rows : (number + 1) * self.chunk_rows]
                self._read_piece(piece, part)
                self._compare(piece, part)
        if digest:
            digest.update(stored.data)
        if stored is not values:
            values[:] = stored
        self.bytes_read += stored.nbytes
        return values

    def _read_piece(self, piece: int, part: np.ndarray) -> None:
        if not self._is_plain:
            first = piece * self.chunk_rows
            self._column.read_direct(part, np.s_[first : first + len(part)])
            return
        rest, place = part.data.cast("B"), self._places[piece]
        while rest:
            count = os.preadv(self._descriptor, [rest], place)
            if not count:
                raise self._damaged()
            rest, place = rest[count:], place + count

    def _compare(self, piece: int, part: np.ndarray) -> None:
        """Check that a piece is what it was when it was first read."""
        content = part.reshape(-1).view(np.uint8)
        whole = len(content) // 8 * 8
        total = int(content[:whole].view(np.uint64).sum(dtype=np.uint64))
        total += int(content[whole:].sum(dtype=np.uint64))
        if self._sums.setdefault(piece, total) != total:
            raise self._damaged()

    def _require_same(self) -> None:
        path = self._cache.path
        try:
            same = _identity(path.stat()) == self._identity
        except OSError:
            same = False
        if not same:
            raise ArtifactInvalid(
                path, f"'{path}' was replaced or removed while it was read. Train again."
            )

    def _damaged(self) -> ArtifactInvalid:
        path = self._cache.path
        return ArtifactInvalid(
            path,
            f"'{path}' was changed or damaged while it was read: its features are not what they "
            "were. Check it with featx check, or extract again.",
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_size
