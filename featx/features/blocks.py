"""The rows of a file that need not fit into memory: read block by block, again and again.

HDF5 says where each chunk lies, and its bytes come straight into a buffer, the next block while the
last is worked on. The first pass over all of them compares their sha256 with the header's and
notes a sum of each chunk, or of each row where rows are read one by one. Every later pass compares
the sums, which costs less than HDF5's own checksums and tells as well whether a byte has changed
since.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from typing import TypeVar

import h5py
import numpy as np

from featx.errors import ArtifactInvalid
from featx.features.columns import chunk_rows_of
from featx.features.file import TRAIN, FeatureFile
from featx.features.hdf5 import require_digest, require_digests, translated
from featx.features.part_columns import Part
from featx.features.stored import StoredColumn
from featx.images.reading import map_ahead

T = TypeVar("T")
_BLOCK_BYTES = 2**22
"""Size of a block; large enough for a fast product, small enough for the cache."""
_AHEAD = 3
"""Blocks that are read while one is worked on."""


@contextmanager
def reading_blocks(cache: FeatureFile) -> Iterator[FeatureRows]:
    """Yield all rows of a feature file as vectors, for reading block by block.

    At a cut each pass runs the rest of the network; ``ArtifactMismatch`` without one.
    """
    cache.require_network()
    with reading_stored(cache) as rows:
        yield FeatureRows(rows._column, rows._rows, cache)


@contextmanager
def reading_stored(cache: FeatureFile) -> Iterator[FeatureRows]:
    """Yield all rows of a feature file block by block: vectors, or activations as stored."""
    with cache.same_files() as files:
        with translated(cache.path):  # and not what the caller raises
            column = _Column(cache, files, "features")
        yield FeatureRows(column, np.arange(len(cache)))


@contextmanager
def reading_part(part: Part, sums: np.ndarray | None = None) -> Iterator[FeatureRows]:
    """Yield all vectors of a part by itself, for reading block by block.

    Args:
        part: The file; its labels and other columns are not read.
        sums: Its ``FeatureRows.sums``, ``(pieces,)`` uint64, once all of it had been read, in any
            process; None where it never was.
    """
    none = np.broadcast_to(np.int64(0), (part.num_rows,))
    alone = FeatureFile(part.path, part.header, none, none, (), none, none, none, False)
    with reading_blocks(alone) as rows:
        if sums is not None:
            rows._column.expect(sums)
        yield rows


@contextmanager
def reading_activations(cache: FeatureFile) -> Iterator[Activations]:
    """Yield the stored rows of a feature file and their views, for reading in any order.

    Where features and views were not compared with their sha256 yet, they are first.
    """
    with cache.same_files() as files:
        with translated(cache.path):  # and not what the caller raises
            names = ("features", "views") if cache.num_views else ("features",)
            for part, file in files if not cache.features_checked else ():
                require_digests(file, part.header, part.path, names)
            columns = [_Column(cache, files, name, by_row=True) for name in names]
        yield Activations(cache, columns)


class Activations:
    """Rows of a feature file as they are stored, by number and view; several threads may read.

    Attributes:
        shape: Of a row.
        dtype: Of its values.
        block_rows: Consecutive training rows that lie side by side in the file, in one chunk of
            about a mebibyte for each view. Rows are read fastest in such blocks.
    """

    def __init__(self, cache: FeatureFile, columns: Sequence[_Column]) -> None:
        self._cache, self._columns = cache, columns
        self._viewed = cache.viewed_rows
        self.shape = cache.row_shape
        self.dtype = columns[0].dtype
        self.block_rows = columns[-1].chunk_rows

    @property
    def bytes_read(self) -> int:
        """Bytes of rows read from the file."""
        return sum(column.bytes_read for column in self._columns)

    def read(self, rows: np.ndarray, view: int = 0) -> np.ndarray:
        """Return rows, ``(n, *shape)`` in the stored type.

        Args:
            rows: Numbers in the file, ascending; ``(n,)``.
            view: 0 for the evaluation view, 1 to ``num_views`` for one of training rows.

        Raises:
            ArtifactInvalid: A value is NaN or infinite, or the file was changed.
        """
        column, places = self._columns[0], rows
        if view:
            column, places = self._columns[1], np.searchsorted(self._viewed, rows)
            if (self._cache.splits[rows] != TRAIN).any():
                raise ValueError("rows outside the training split have no views")
        values = np.empty((len(rows), column.size), self.dtype)
        for start, stop in column.runs(places):
            column.read_rows(int(places[start]), max(0, view - 1), values[start:stop])
        return values.reshape(len(rows), *self.shape)


class FeatureRows:
    """Some rows of a feature file, by their ascending numbers."""

    def __init__(
        self, column: _Column, rows: np.ndarray, network: FeatureFile | None = None
    ) -> None:
        self._column = column
        self._through = network.through if network else None
        self._num_features = network.num_features if network else column.size
        self._told: Callable[[str], None] = lambda _: None
        self._choose(rows)

    def _choose(self, rows: np.ndarray) -> None:
        column, self._rows = self._column, rows
        self._pieces = np.unique(rows // column.chunk_rows)
        starts = np.arange(-(-(column.num_rows + 1) // column.chunk_rows) + 1) * column.chunk_rows
        self._bounds = np.searchsorted(rows, starts).tolist()  # of each piece's rows among these

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and features of a row."""
        return len(self._rows), self._num_features

    @property
    def num_pieces(self) -> int:
        """Parts of the file that can be read in any order."""
        return len(self._pieces)

    @property
    def bytes_read(self) -> int:
        """Bytes of features read from the file, by this and all others made from it."""
        return self._column.bytes_read

    @property
    def sums(self) -> np.ndarray | None:
        """Sums that tell whether a byte has changed, uint64; None until all was read."""
        return self._column.sums

    def only(self, rows: np.ndarray) -> FeatureRows:
        """Return some of these rows; ``rows`` ``(n,)`` are their positions here, ascending."""
        some = copy(self)
        some._choose(self._rows[rows])
        return some

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield positions and values ``(n, num_features)`` float32, block by block.

        Stored activations are ``(n, size)`` in their own type. Values may be changed in place, and
        are overwritten when the next block is asked for.

        Args:
            order: Of the pieces; None for one after the other, several at once.
        """
        column, (num_rows, _) = self._column, self.shape
        groups = (
            self._in_sequence() if order is None else [[piece] for piece in self._pieces[order]]
        )
        with closing(column.read(groups)) as blocks:
            for group, values in blocks:
                low, high = self._bounds[group[0]], self._bounds[group[-1] + 1]
                if high - low < len(values):
                    first = group[0] * column.chunk_rows
                    values = values[self._rows[low:high] - first]  # noqa: PLW2901
                if self._through:
                    values = self._through(values.reshape(-1, *column.shape))  # noqa: PLW2901
                yield slice(low, high), values
                self._told(f"{high:,} of {num_rows:,} samples")

    def each_part(
        self,
        work: Callable[..., T],
        *columns: np.ndarray,
        step: Callable[[str], None] = lambda _: None,
    ) -> Iterator[T]:
        """Yield ``work(blocks, *columns)`` once; ``step`` is told how many rows are done."""
        telling = copy(self)
        telling._told = step
        yield work(telling, *columns)

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
    """Reads the features, or the views, of all files, and checks them.

    A piece is what a sum is noted of: a whole chunk, or a row. Those of the views are counted view
    after view. Several files are read in the chunks of the one file that they would make, so that
    what is computed from blocks is the same.
    """

    def __init__(
        self,
        cache: FeatureFile,
        files: Sequence[tuple[Part, h5py.File]],
        name: str,
        *,
        by_row: bool = False,
    ) -> None:
        self._cache, self._name = cache, name
        self._parts = [part for part, _ in files]
        self.shape = cache.row_shape
        self._files = [StoredColumn(file, name, part.path, self.shape) for part, file in files]
        if not all(each.is_whole for each in self._files if each.is_plain):
            raise self._damaged()
        self.size, self.dtype = math.prod(self.shape), self._files[0].dtype
        self._firsts = np.cumsum([0, *(each.num_rows for each in self._files)])
        self.num_rows = int(self._firsts[-1])
        self.chunk_rows = self._files[0].chunk_rows
        if len(files) > 1:
            self.chunk_rows = chunk_rows_of(self.dtype.itemsize * self.size, self.num_rows)
        self.piece_rows = 1 if by_row else self.chunk_rows
        self._num_pieces = -(-self.num_rows // self.piece_rows)
        self.pieces_at_once = max(1, _BLOCK_BYTES // (4 * self.chunk_rows * self.size))
        num_views = cache.num_views if name == "views" else 1
        self._sums = np.zeros(num_views * self._num_pieces, np.uint64)
        self._known = np.zeros(len(self._sums), bool)
        self._checked = cache.features_checked
        self.bytes_read = 0

    @property
    def sums(self) -> np.ndarray | None:
        """The sum of each piece, where all were compared with the header's sha256."""
        return self._sums if self._checked else None

    def expect(self, sums: np.ndarray) -> None:
        """Take over the sums that were noted of all pieces when they were first read."""
        self._sums[:], self._known[:], self._checked = sums, True, True

    def _spans(self, first: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """Yield the files of consecutive rows, the first row in each, and places among the rows."""
        number = int(np.searchsorted(self._firsts, first, side="right")) - 1
        start = 0
        while start < count:
            own = first + start - int(self._firsts[number])
            stop = min(count, start + self._files[number].num_rows - own)
            if stop > start:
                yield number, own, slice(start, stop)
            start, number = stop, number + 1

    def runs(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield where consecutive rows of one chunk begin and end in ``rows``, ascending."""
        breaks = np.diff(rows) != 1
        breaks |= np.diff(rows // self.chunk_rows) != 0
        ends = [*(np.flatnonzero(breaks) + 1).tolist(), len(rows)]
        yield from zip([0, *ends], ends, strict=False) if len(rows) else ()

    def read_rows(self, first: int, view: int, values: np.ndarray) -> None:
        """Fill ``values`` ``(n, size)`` with rows of one chunk, and check them."""
        with translated(self._cache.path):
            for number, row, places in self._spans(first, len(values)):
                if not self._files[number].read(row, view, values[places]):
                    raise self._damaged()
        self.bytes_read += values.nbytes
        pieces = -(-len(values) // self.piece_rows)
        piece = view * self._num_pieces + first // self.piece_rows
        is_new = self._compare(piece, sums := _sums(values.reshape(pieces, -1)))
        if is_new and self.piece_rows == 1 and self.dtype.kind == "f":
            self._require_finite(first, values)
        at = slice(piece, piece + pieces)
        self._sums[at], self._known[at] = sums, True

    def read(
        self, groups: Sequence[Sequence[int]]
    ) -> Generator[tuple[Sequence[int], np.ndarray], None, None]:
        """Yield groups of neighbouring pieces with their rows, reading one ahead.

        Pieces are chunks; vectors become float32.
        """
        self._require_same()
        check = not self._checked and sum(map(len, groups)) == self._num_pieces
        digests = [hashlib.sha256() for _ in self._files] if check else []
        rows = max(map(len, groups), default=1) * self.chunk_rows
        shape = (min(rows, self.num_rows), self.size)
        wanted = np.dtype(np.float32) if len(self.shape) == 1 else self.dtype
        raw = np.empty(shape if self.dtype != wanted else (0, 0), self.dtype)
        buffers = np.empty((_AHEAD + 1, *shape), wanted)

        def fill(number: int) -> np.ndarray:
            return self._fill(groups[number], raw, buffers[number % len(buffers)], digests)

        with closing(map_ahead(fill, range(len(groups)), workers=1, window=_AHEAD)) as ahead:
            yield from zip(groups, ahead, strict=True)
        for part, digest in zip(self._parts, digests, strict=bool(digests)):
            require_digest(part.path, part.header, "features", digest)
        self._checked |= check

    def _fill(
        self,
        group: Sequence[int],
        raw: np.ndarray,
        values: np.ndarray,
        digests: Sequence[hashlib._Hash],
    ) -> np.ndarray:
        """Return the rows of neighbouring pieces, in ``values``."""
        first, stop = group[0] * self.chunk_rows, (group[-1] + 1) * self.chunk_rows
        num_rows = min(stop, self.num_rows) - first
        values = values[:num_rows]
        stored = values if self.dtype == values.dtype else raw[:num_rows]
        for number, piece in enumerate(group):
            part = stored[number * self.chunk_rows : (number + 1) * self.chunk_rows]
            self.read_rows(piece * self.chunk_rows, 0, part)
        for file, _, places in self._spans(first, num_rows) if digests else ():
            digests[file].update(stored[places].data)
        if stored is not values:
            values[:] = stored
        return values

    def _compare(self, first: int, sums: np.ndarray) -> bool:
        """Check that pieces are what they were when first read; return whether one is new."""
        at = slice(first, first + len(sums))
        known = self._known[at]
        if (known & (self._sums[at] != sums)).any():
            raise self._damaged()
        return not known.all()

    def _require_finite(self, first: int, values: np.ndarray) -> None:
        is_finite = _are_finite(values)
        if is_finite.all():
            return
        row = first + int(np.argmin(is_finite))
        number = row if self._name == "features" else self._cache.viewed_rows[row]
        path = self._cache.path
        raise ArtifactInvalid(
            path,
            f"'{path}' has NaN or infinite values of '{self._cache.sample_ids[number]}'. Run featx "
            "extract again.",
        )

    def _require_same(self) -> None:
        for file in self._files:
            if not file.is_same():
                path = file.path
                raise ArtifactInvalid(
                    path, f"'{path}' was replaced or removed while it was read. Train again."
                )

    def _damaged(self) -> ArtifactInvalid:
        path = self._cache.path
        return ArtifactInvalid(
            path,
            f"'{path}' was changed or damaged while it was read: its {self._name} are not what "
            "they were. Check it with featx check, or extract again.",
        )


def _are_finite(rows: np.ndarray) -> np.ndarray:
    """Return which rows of float16 or float32 are all numbers: sixty times as fast as isfinite."""
    unsigned, exponent = {2: ("<u2", 0x7C00), 4: ("<u4", 0x7F800000)}[rows.dtype.itemsize]
    largest = (rows.view(unsigned) & np.dtype(unsigned).type(exponent)).max(axis=1)
    return np.asarray(largest < exponent)


def _sums(pieces: np.ndarray) -> np.ndarray:
    """Return a sum of the bytes of each piece ``(n, …)``, which another byte changes."""
    content = pieces.view(np.uint8)
    whole = content.shape[1] // 8 * 8
    words = content[:, :whole] if whole == content.shape[1] else content[:, :whole].copy()
    sums = words.view(np.uint64).sum(axis=1, dtype=np.uint64)
    sums += content[:, whole:].sum(axis=1, dtype=np.uint64)
    return np.asarray(sums)
