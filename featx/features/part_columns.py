"""Columns of several files as one: read file by file, or when they are first used."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import h5py
import numpy as np

from featx.artifact import Header
from featx.errors import ArtifactInvalid
from featx.features.hdf5 import open_hdf5, rows_of, translated

_ID_BLOCK = 2**16
_KEPT_BYTES = 2**26


class Part(NamedTuple):
    """One file of a feature file: its rows are those from ``first`` on."""

    path: Path
    header: Header
    first: int
    num_rows: int

    @contextmanager
    def opened(self) -> Iterator[h5py.File]:
        """Yield the HDF5 file, open for reading, unless it was replaced since it was opened."""
        file, header = open_hdf5(self.path)
        with file:
            if header != self.header:  # its checksums tell one content from another
                raise ArtifactInvalid(
                    self.path,
                    f"'{self.path}' was replaced since it was opened. Open it again.",
                )
            yield file


def features_at(files: Sequence[tuple[Part, h5py.File]], numbers: np.ndarray) -> np.ndarray:
    """Return rows of the features in any order, as ``rows_of`` does."""
    if len(files) == 1:
        return rows_of(files[0][1]["features"], numbers)
    firsts = np.array([part.first for part, _ in files])
    owners = np.searchsorted(firsts, numbers, side="right") - 1
    rows: np.ndarray | None = None
    for owner in range(len(files)):
        own = owners == owner
        if own.any() or rows is None:
            found = rows_of(files[owner][1]["features"], numbers[own] - firsts[owner])
            if rows is None:
                rows = np.empty((len(numbers), *found.shape[1:]), found.dtype)
            rows[own] = found
    return rows if rows is not None else np.empty(0)


class StoredIds(Sequence[str]):
    """The names of the images of all parts, read from the files in blocks."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([part.num_rows for part in parts])
        self._block = lru_cache(maxsize=4)(self._read)

    def _read(self, part: int, block: int) -> tuple[str, ...]:
        own = self._parts[part]
        with own.opened() as file, translated(own.path):
            names = file["sample_ids"][block * _ID_BLOCK : (block + 1) * _ID_BLOCK].tolist()
        return tuple(name.decode("utf-8", "surrogateescape") for name in names)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return tuple(self[number] for number in range(*row.indices(len(self))))
        number = range(len(self))[row]
        part = int(np.searchsorted(self._ends, number, side="right"))
        block, place = divmod(number - self._parts[part].first, _ID_BLOCK)
        return self._block(part, block)[place]

    def __iter__(self) -> Iterator[str]:
        for number, part in enumerate(self._parts):
            for block in range(-(-part.num_rows // _ID_BLOCK)):
                yield from self._block(number, block)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class _Later:
    """An array that is made when it is used; a large one is not kept once nobody uses it."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        self.shape, self._make = shape, make
        self._made: Callable[[], np.ndarray | None] = lambda: None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = self._made()
        if made is None:
            made = self._make()
            self._made = weakref.ref(made) if made.nbytes > _KEPT_BYTES else lambda: made
        return np.asarray(made, dtype)

    def __getitem__(self, index: Any) -> Any:
        return self.__array__()[index]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what numpy asks first, whether it is another kind of array
            raise AttributeError(name)
        return getattr(self.__array__(), name)


def later(
    parts: Sequence[Part], shape: tuple[int, ...], read: Callable[[h5py.File], np.ndarray]
) -> np.ndarray:
    """Return a column of all parts, ``(N, *shape)``, which is read when it is first used."""
    count = sum(part.num_rows for part in parts)
    return cast("np.ndarray", _Later((count, *shape), lambda: joined(parts, read)))


def joined(parts: Sequence[Part], read: Callable[[h5py.File], np.ndarray]) -> np.ndarray:
    """Return what is read of each part, one after the other; ``(N, …)``."""
    column: np.ndarray | None = None
    for part in parts:
        with part.opened() as file, translated(part.path):
            values = read(file)
        if column is None:
            count = parts[-1].first + parts[-1].num_rows
            column = np.empty((count, *values.shape[1:]), values.dtype)
        column[part.first : part.first + part.num_rows] = values
    if column is None:
        raise ValueError("there are no parts")
    return column
