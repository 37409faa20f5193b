"""The feature file: its schema and its reader.

Anyone can read one with ``h5py.File("features.h5")["features"][:]``. ``open_features`` looks before
it reads: whatever is not exactly this schema is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from featx.artifact import Header, fingerprint_of, is_unfinished, partial_path, require_file
from featx.errors import ArtifactBusy, ArtifactIncomplete, ArtifactInvalid, counted, require_choice
from featx.features.journal import read_progress
from featx.features.schema import (
    columns_of,
    read_header,
    require_plain_root,
    require_schema,
    without_plugins,
)
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import SPLITS, UNKNOWN_TIME, Stamp

EXCLUDED = -2
"""Label of a training image that was left out by its name."""
_BLOCK_BYTES = 2**25


class SkippedImage(NamedTuple):
    """An image without a row.

    Its digest is zeros where its content is not the reason, as of a file that cannot be read, and
    in files of version 2.
    """

    sample_id: str
    reason: str
    stamp: Stamp
    digest: bytes = bytes(DIGEST_BYTES)

    @property
    def is_permanent(self) -> bool:
        """Whether the reason lies in its content, so that it is not tried again."""
        return any(self.digest)

    def to_list(self) -> list[Any]:
        """Return JSON values, for the header."""
        return [self.sample_id, self.reason, list(self.stamp), self.digest.hex()]

    @classmethod
    def of_list(cls, values: Sequence[Any]) -> Self:
        """Return the image of ``to_list``; without a digest in files of version 2."""
        sample_id, reason, stamp, *digest = values
        return cls(sample_id, reason, Stamp(*stamp), *map(bytes.fromhex, digest))


@dataclass(frozen=True)
class FeatureFile:
    """An opened, checked feature file.

    Attributes:
        labels: Index into ``classes``, -1 where unlabelled; ``(N,)`` int64.
        splits: Index into ``split_names``; ``(N,)`` uint8.
        sample_ids: Path of each image relative to the source; N strings.
        digests: Content hash of each image; ``(N, 16)`` uint8.
        stamps: ``Stamp`` of each image's file, whose change time is ``UNKNOWN_TIME`` in files of
            version 2; ``(N, 3)`` int64.
        groups: Index of each image's group, in order of first appearance, -1 where it has none;
            ``(N,)`` int64.
        features_checked: Whether the features were compared with their sha256 when it was opened;
            if not, they are when all of them are first read.
    """

    path: Path
    header: Header
    labels: np.ndarray
    splits: np.ndarray
    sample_ids: tuple[str, ...]
    digests: np.ndarray
    stamps: np.ndarray
    groups: np.ndarray
    features_checked: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names that ``splits`` indexes."""
        return SPLITS

    @property
    def num_features(self) -> int:
        return int(self.header.spec["num_features"])

    @property
    def skipped(self) -> tuple[SkippedImage, ...]:
        return tuple(map(SkippedImage.of_list, self.header.details["skipped"]))

    @property
    def inputs_sha256(self) -> str:
        """The sha256 over what a head is made from: all but the times of the images' files."""
        details = self.header.details
        columns = {name: own for name, own in details["sha256"].items() if name != "stamps"}
        origin = {name: details.get(name) for name in ("source", "weights", "val_fraction")}
        values = {"spec": self.header.spec, "classes": list(self.classes), "columns": columns}
        return fingerprint_of(values | origin)

    @cached_property
    def features(self) -> np.ndarray:
        """All rows, ``(N, num_features)`` float32; read when first asked for."""
        with self.same_file() as file, translated(self.path):
            rows: np.ndarray = file["features"][:]
        if not self.features_checked:
            require_digest(self.path, self.header, "features", hashlib.sha256(rows.data))
        return rows.astype(np.float32, copy=False)

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
        """Yield a function from row numbers ``(n,)`` to rows ``(n, num_features)`` float32.

        It reads from the file what it is asked for; cheapest when the numbers ascend.
        """
        with self.same_file() as file:

            def rows_at(numbers: np.ndarray) -> np.ndarray:
                with translated(self.path):
                    return _rows_at(file["features"], numbers)

            yield rows_at

    @contextmanager
    def same_file(self) -> Iterator[h5py.File]:
        """Yield the HDF5 file, open for reading, unless it was replaced since it was opened."""
        file, header = _open(self.path)
        with file:
            if header != self.header:  # its checksums tell one content from another
                raise ArtifactInvalid(
                    self.path, f"'{self.path}' was replaced since it was opened. Open it again."
                )
            yield file

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of a split, ascending, int64."""
        require_choice("split", split, SPLITS)
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def without(self, sample_ids: Collection[str]) -> Self:
        """Return the file with the training images of these names labelled as ``EXCLUDED``."""
        if not sample_ids:
            return self
        names = frozenset(sample_ids)
        named = np.fromiter((each in names for each in self.sample_ids), bool, len(self))
        excluded = named & (self.splits == SPLITS.index("train"))
        return replace(self, labels=np.where(excluded, EXCLUDED, self.labels))

    def __len__(self) -> int:
        return len(self.labels)


def open_features(
    path: str | Path, *, verify: bool = True, features_later: bool = False
) -> FeatureFile:
    """Open a feature file and check all of it.

    Args:
        path: The HDF5 file.
        verify: Compare each column with its sha256; leave out only for a file you have verified.
        features_later: Compare the features when all of them are first read, which saves reading
            them twice.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a feature file, damaged, altered, or of another schema.
        ArtifactIncomplete: The extraction that wrote it did not finish.
        ArtifactBusy: Another program has it open, and may change it.
    """
    path = Path(path)
    with _opened(path) as (file, header):
        if verify:
            _require_digests(file, header, path, columns_of(header)[1 if features_later else 0 :])
        opened = FeatureFile(
            path=path,
            header=header,
            labels=file["labels"][:],
            splits=file["splits"][:],
            sample_ids=tuple(
                name.decode("utf-8", "surrogateescape") for name in file["sample_ids"][:]
            ),
            digests=file["digests"][:],
            stamps=_stamps(file),
            groups=_groups(file, header),
            features_checked=not (verify and features_later),
        )
    _require_range(path, "labels", opened.labels, -1, len(opened.classes))
    _require_range(path, "splits", opened.splits, 0, len(SPLITS))
    _require_range(path, "groups", opened.groups, -1, len(opened))
    return opened


def verify_features(path: Path) -> None:
    """Check all of a feature file, block by block."""
    with _opened(path) as (file, header):
        columns = columns_of(header)
        _require_digests(file, header, path, columns)
        num_rows = len(file["labels"])
        ranges = {"labels": (-1, len(header.classes)), "splits": (0, len(SPLITS))}
        for name, (low, stop) in (ranges | {"groups": (-1, num_rows)}).items():
            for block in _blocks(file[name]) if name in columns else ():
                _require_range(path, name, block, low, stop)


def _stamps(file: h5py.File) -> np.ndarray:
    """Return the stamps, ``(N, 3)`` int64; files of version 2 have no change times."""
    stored: np.ndarray = file["stamps"][:]
    missing = len(Stamp._fields) - stored.shape[1]
    return np.pad(stored, ((0, 0), (0, missing)), constant_values=UNKNOWN_TIME)


def _groups(file: h5py.File, header: Header) -> np.ndarray:
    """Return the groups, ``(N,)`` int64; files of version 2 have none."""
    if "groups" not in columns_of(header):
        return np.full(len(file["labels"]), -1, dtype=np.int64)
    return np.asarray(file["groups"][:])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, Header]]:
    """Yield the HDF5 file, and its header once both are checked; translate h5py's errors."""
    file, header = _open(path)
    with file, translated(path):
        yield file, header


def _open(path: Path) -> tuple[h5py.File, Header]:
    _require_finished(path)
    require_file(path, made_by="featx extract")
    with translated(path), without_plugins():
        require_plain_root(path)
        file = _open_hdf5(path)
        try:
            header = read_header(file, path)
            require_schema(file, header, path)
        except BaseException:
            file.close()
            raise
    return file, header


_OTHER_LOCKING = "flag values don't match"
_LOCKED = ("unable to lock file", "already open for")


def _open_hdf5(path: Path) -> h5py.File:
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
            path, f"'{path}' is not a featx feature file, or is damaged ({err})."
        ) from err


def _require_finished(path: Path) -> None:
    """Say so where an extraction has begun to write this file, and only its journal is there."""
    if is_unfinished(path):
        done, total = read_progress(partial_path(path))
        raise ArtifactIncomplete(
            path,
            f"'{path}' is unfinished: {done:,} of {counted(total, 'image')}. Run the same featx "
            "extract again to resume.",
        )


def _require_digests(file: h5py.File, header: Header, path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        digest = hashlib.sha256()
        for block in _blocks(file[name]):
            digest.update(block.data)
        require_digest(path, header, name, digest)


def require_digest(path: Path, header: Header, column: str, digest: hashlib._Hash) -> None:
    if header.details["sha256"][column] != digest.hexdigest():
        raise ArtifactInvalid(
            path,
            f"'{path}': column '{column}' does not have the sha256 it was written with; the file "
            "is damaged or was altered. Run featx extract again.",
        )


def _require_range(path: Path, name: str, values: np.ndarray, low: int, stop: int) -> None:
    """Check that a column holds indices of something."""
    if ((values < low) | (values >= stop)).any():
        raise ArtifactInvalid(path, f"'{path}' has {name} outside {low} to {stop - 1}.")


def _blocks(column: h5py.Dataset) -> Iterator[np.ndarray]:
    row_bytes = max(1, column.dtype.itemsize * int(np.prod(column.shape[1:])))
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, column.shape[0], rows):
        yield np.ascontiguousarray(column[start : start + rows])


def _rows_at(column: h5py.Dataset, numbers: np.ndarray) -> np.ndarray:
    """Return rows in any order, by one read for each run without a gap of more than a chunk."""
    rows = np.empty((len(numbers), column.shape[1]), dtype=np.float32)
    order = np.argsort(numbers, kind="stable")
    gaps = np.flatnonzero(np.diff(numbers[order]) > column.chunks[0]) + 1
    for wanted in np.split(order, gaps):
        if len(wanted):
            first, last = int(numbers[wanted[0]]), int(numbers[wanted[-1]])
            rows[wanted] = column[first : last + 1][numbers[wanted] - first]
    return rows
