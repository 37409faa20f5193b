"""Opening a feature file with HDF5, and reading its columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from featx.artifact import Header, is_unfinished, other_kind, partial_path, require_file
from featx.errors import ArtifactBusy, ArtifactIncomplete, ArtifactInvalid, counted
from featx.features.journal import read_progress
from featx.features.schema import (
    columns_of,
    read_header,
    require_plain_root,
    require_schema,
    without_plugins,
)
from featx.images.sources import SPLITS, UNKNOWN_TIME, Stamp

BLOCK_BYTES = 2**25


@contextmanager
def opened_hdf5(path: Path) -> Iterator[tuple[h5py.File, Header]]:
    """Yield the HDF5 file, and its header once both are checked; translate h5py's errors."""
    file, header = open_hdf5(path)
    with file, translated(path):
        yield file, header


def open_hdf5(path: Path) -> tuple[h5py.File, Header]:
    _require_finished(path)
    require_file(path, made_by="featx extract")
    with translated(path), without_plugins():
        require_plain_root(path)
        file = _open_any_lock(path)
        try:
            header = read_header(file, path)
            require_schema(file, header, path)
        except BaseException:
            file.close()
            raise
    return file, header


_OTHER_LOCKING = "flag values don't match"
_LOCKED = ("unable to lock file", "already open for")


def _open_any_lock(path: Path) -> h5py.File:
    """Return an HDF5 file, open for reading, also where other programs have it open.

    It needs no lock, because it changes only by being replaced. But a process can have a file open
    with one way of locking only, and the notebook that calls featx may have chosen another.
    """
    for locking in (False, "best-effort", True):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as err:
            if any(words in str(err) for words in _LOCKED):
                raise ArtifactBusy(
                    path,
                    f"'{path}' is open in a program that may change it. Close it there, and run "
                    "the same again.",
                ) from err
            if _OTHER_LOCKING not in str(err):
                raise
    raise ArtifactBusy(
        path,
        f"'{path}' is open in this process, locked in another way than featx can share. Close it "
        "first, or open it with h5py.File(…, locking=False).",
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what h5py makes of a file that is not ours as ``ArtifactInvalid``."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as err:
        if isinstance(err, ArtifactInvalid):
            raise
        raise ArtifactInvalid(
            path,
            f"'{path}' is not a featx feature file, or is damaged ({err})."
            f"{other_kind(path, 'features')}",
        ) from err


def _require_finished(path: Path) -> None:
    """Raise ``ArtifactIncomplete`` where only the journal of an extraction is there."""
    if is_unfinished(path):
        done, total = read_progress(partial_path(path))
        raise ArtifactIncomplete(
            path,
            f"'{path}' is unfinished: {done:,} of {counted(total, 'image')}. Run the same featx "
            "extract again to resume.",
        )


def require_digests(file: h5py.File, header: Header, path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        digest = hashlib.sha256()
        for block in blocks_of(file[name]):
            digest.update(block.data)
        require_digest(path, header, name, digest)


def require_digest(path: Path, header: Header, column: str, digest: hashlib._Hash) -> None:
    if header.details["sha256"][column] != digest.hexdigest():
        raise ArtifactInvalid(
            path,
            f"'{path}': column '{column}' does not have the sha256 it was written with; the file "
            "is damaged or was altered. Run featx extract again.",
        )


def blocks_of(column: h5py.Dataset, num_bytes: int | None = None) -> Iterator[np.ndarray]:
    """Yield a column in blocks of whole chunks, of at most so many bytes if a row is smaller."""
    row_bytes = max(1, column.dtype.itemsize * math.prod(column.shape[1:]))
    rows = max(1, (num_bytes or BLOCK_BYTES) // row_bytes)
    if column.chunks and rows > column.chunks[0]:
        rows -= rows % column.chunks[0]
    for start in range(0, column.shape[0], rows):
        yield np.ascontiguousarray(column[start : start + rows])


def rows_of(column: h5py.Dataset, numbers: np.ndarray) -> np.ndarray:
    """Return rows in any order, by one read for each run without a gap of more than a chunk.

    Vectors are float32, activations as they are stored.
    """
    dtype = np.float32 if column.ndim == 2 else column.dtype
    rows = np.empty((len(numbers), *column.shape[1:]), dtype)
    order = np.argsort(numbers, kind="stable")
    gaps = np.flatnonzero(np.diff(numbers[order]) > column.chunks[0]) + 1
    for wanted in np.split(order, gaps):
        if len(wanted):
            first, last = int(numbers[wanted[0]]), int(numbers[wanted[-1]])
            rows[wanted] = column[first : last + 1][numbers[wanted] - first]
    return rows


def stamps_of(file: h5py.File) -> np.ndarray:
    """Return the stamps, ``(N, 3)`` int64; files of version 2 have no change times."""
    stored: np.ndarray = file["stamps"][:]
    missing = len(Stamp._fields) - stored.shape[1]
    return np.pad(stored, ((0, 0), (0, missing)), constant_values=UNKNOWN_TIME)


def groups_of(file: h5py.File, header: Header) -> np.ndarray:
    """Return the groups, ``(N,)`` int64; files of version 2 have none."""
    if "groups" not in columns_of(header):
        return np.full(len(file["labels"]), -1, dtype=np.int64)
    return np.asarray(file["groups"][:])


def ranges_of(header: Header, num_rows: int) -> dict[str, tuple[int, int]]:
    """Return the lowest value and the end of the range of each column of indices."""
    return {
        "labels": (-1, len(header.classes)),
        "splits": (0, len(SPLITS)),
        "groups": (-1, num_rows),
    }


def require_range(path: Path, name: str, values: np.ndarray, low: int, stop: int) -> None:
    """Check that a column holds indices of something."""
    if ((values < low) | (values >= stop)).any():
        raise ArtifactInvalid(path, f"'{path}' has {name} outside {low} to {stop - 1}.")
