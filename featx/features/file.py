"""The feature file: its schema and its reader.

Anyone can read one with ``h5py.File("features.h5")["features"][:]``. ``open_features`` looks before
it reads: whatever is not exactly this schema is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np

from featx.artifact import Header, require_file
from featx.errors import ArtifactIncomplete, ArtifactInvalid, ConfigError
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import SPLITS

COLUMNS = ("features", "labels", "splits", "sample_ids", "digests")
_BLOCK_BYTES = 2**25


@dataclass(frozen=True)
class FeatureFile:
    """An opened, checked feature file.

    Attributes:
        path: The file.
        header: What it says about itself.
        labels: Index into ``classes``, -1 where unlabelled; ``(N,)`` int64.
        splits: Index into ``split_names``; ``(N,)`` uint8.
        sample_ids: Path of each image relative to the source; N strings.
        digests: Content hash of each image; ``(N, 16)`` uint8.
    """

    path: Path
    header: Header
    labels: np.ndarray
    splits: np.ndarray
    sample_ids: tuple[str, ...]
    digests: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.header.classes

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names that ``splits`` indexes."""
        return SPLITS

    @property
    def num_features(self) -> int:
        """Length of a row."""
        return int(self.header.spec["num_features"])

    @cached_property
    def features(self) -> np.ndarray:
        """All rows, ``(N, num_features)`` float32; read when first asked for.

        Raises:
            ArtifactMissing: The file is gone.
            ArtifactInvalid: It was damaged or replaced since it was opened.
        """
        with _opened(self.path) as (file, header):
            if header != self.header:  # its checksums tell one content from another
                raise ArtifactInvalid(
                    self.path, f"'{self.path}' was replaced since it was opened. Open it again."
                )
            rows: np.ndarray = file["features"][:].astype(np.float32, copy=False)
        return rows

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of a split, ascending, int64.

        Raises:
            ConfigError: There is no split of that name.
        """
        if split not in SPLITS:
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}; got '{split}'.")
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def __len__(self) -> int:
        return len(self.labels)


def open_features(path: str | Path, *, verify: bool = True) -> FeatureFile:
    """Open a feature file and check all of it.

    Args:
        path: The HDF5 file.
        verify: Compare each column with its sha256; leave out only for a file you have verified.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a feature file, damaged, altered, or of another schema.
        ArtifactIncomplete: The extraction that wrote it did not finish.
    """
    path = Path(path)
    with _opened(path) as (file, header):
        if verify:
            _require_digests(file, header, path)
        opened = FeatureFile(
            path=path,
            header=header,
            labels=file["labels"][:],
            splits=file["splits"][:],
            sample_ids=tuple(
                name.decode("utf-8", "surrogateescape") for name in file["sample_ids"][:]
            ),
            digests=file["digests"][:],
        )
    _require_ranges(opened)
    return opened


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, Header]]:
    """Yield the HDF5 file, its header and schema checked, and translate h5py's errors."""
    require_file(path, made_by="featx extract")
    try:
        with h5py.File(path, "r", locking=False) as file:
            header = _read_header(file, path)
            _require_schema(file, header, path)
            yield file, header
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as err:
        if isinstance(err, ArtifactInvalid):
            raise
        raise ArtifactInvalid(
            path, f"'{path}' is not a featx feature file, or is damaged ({err})."
        ) from err


def _read_header(file: h5py.File, path: Path) -> Header:
    if "header" not in file.attrs:
        raise ArtifactInvalid(path, f"'{path}' is an HDF5 file, but not one of featx's.")
    stored = file.attrs.get_id("header")
    if stored.dtype.kind != "S" or stored.shape != ():
        raise ArtifactInvalid(path, f"'{path}': its featx header is not text of fixed length.")
    header = Header.from_json(bytes(file.attrs["header"]), path=path, kind="features")
    if not bool(file.attrs.get("complete", False)):
        raise ArtifactIncomplete(
            path, f"'{path}' is incomplete: the extraction did not finish. Run featx extract again."
        )
    return header


def _require_schema(file: h5py.File, header: Header, path: Path) -> None:
    """Look at links, layout, filters, types and shapes before any value is read."""
    num_rows, num_features = header.details.get("num_rows"), header.spec.get("num_features")
    expected = {
        "features": ((num_rows, num_features), ("<f4", "<f2")),
        "labels": ((num_rows,), ("<i8",)),
        "splits": ((num_rows,), ("|u1",)),
        "sample_ids": ((num_rows,), ("|S",)),
        "digests": ((num_rows, DIGEST_BYTES), ("|u1",)),
    }
    for name, (shape, dtypes) in expected.items():
        problem = _column_problem(file, name, shape, dtypes)
        if problem:
            raise ArtifactInvalid(path, f"'{path}': column '{name}' {problem}.")


def _column_problem(
    file: h5py.File, name: str, shape: tuple[object, ...], dtypes: tuple[str, ...]
) -> str | None:
    """Return what is wrong with a column, or None. Links are judged before they are followed."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return "is missing, or a link to somewhere else"
    column = file[name]
    if not isinstance(column, h5py.Dataset):
        return "is not a dataset"
    if column.shape != shape:
        return f"has shape {column.shape}, expected {shape}"
    if column.dtype.hasobject or not column.dtype.str.startswith(dtypes):
        return f"has type {column.dtype.str}, expected {' or '.join(dtypes)}"
    return _storage_problem(column)


def _storage_problem(column: h5py.Dataset) -> str | None:
    """Return what is wrong with how a column is stored, or None."""
    layout = column.id.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        return "keeps its values in another file"
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if filters - {h5py.h5z.FILTER_FLETCHER32}:
        return "uses a filter that featx does not write"
    stored = column.id.get_storage_size()  # nothing is compressed: all of it must be there
    if not column.nbytes <= stored <= column.file.id.get_filesize():
        return "declares values that the file does not hold"
    return None


def _require_digests(file: h5py.File, header: Header, path: Path) -> None:
    stored = header.details.get("sha256")
    if not isinstance(stored, dict):
        raise ArtifactInvalid(path, f"'{path}': its header lists no sha256 of its columns.")
    for name in COLUMNS:
        digest = hashlib.sha256()
        for block in _blocks(file[name]):
            digest.update(block)
        if stored.get(name) != digest.hexdigest():
            raise ArtifactInvalid(
                path,
                f"'{path}': column '{name}' does not have the sha256 it was written with; the "
                "file is damaged or was altered. Run featx extract again.",
            )


def _require_ranges(opened: FeatureFile) -> None:
    """Check that labels and splits are indices of something."""
    num_classes, path = len(opened.classes), opened.path
    if ((opened.labels < -1) | (opened.labels >= num_classes)).any():
        raise ArtifactInvalid(
            path, f"'{path}' has labels outside -1 to {num_classes - 1}, its {num_classes} classes."
        )
    if (opened.splits >= len(SPLITS)).any():
        raise ArtifactInvalid(path, f"'{path}' has splits outside 0 to {len(SPLITS) - 1}.")


def _blocks(column: h5py.Dataset) -> Iterator[bytes]:
    row_bytes = max(1, column.dtype.itemsize * int(np.prod(column.shape[1:])))
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, column.shape[0], rows):
        yield np.ascontiguousarray(column[start : start + rows]).tobytes()
