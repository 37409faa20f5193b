"""From the journal to the feature file: written once, in full, then moved into place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featx.artifact import Header, publishing
from featx.errors import ArtifactError
from featx.features.file import COLUMNS, open_features
from featx.features.journal import Journal

_CHUNK_BYTES = 2**20


def publish_features(
    path: Path,
    header: Header,
    journal: Journal,
    *,
    labels: np.ndarray,
    splits: np.ndarray,
    sample_ids: Iterable[str],
    digests: np.ndarray,
    overwrite: bool = False,
) -> Header:
    """Write a feature file and return its header, completed by row count and checksums.

    Args:
        path: Where to.
        header: Everything but row count and checksums.
        journal: The feature rows.
        labels: ``(N,)`` int64.
        splits: ``(N,)`` uint8.
        sample_ids: N strings.
        digests: ``(N, 16)`` uint8.
        overwrite: Replace what is there.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactError: The disk is full or failed; nothing is left behind.
    """
    encoded = [name.encode("utf-8", "surrogateescape") for name in sample_ids]
    width = max(len(name) for name in encoded)
    columns: dict[str, Iterable[np.ndarray]] = {
        "features": journal.blocks(),
        "labels": [labels.astype("<i8")],
        "splits": [splits.astype("u1")],
        "sample_ids": [np.array(encoded, dtype=f"S{width}")],
        "digests": [digests.astype("u1")],
    }
    with publishing(path, overwrite=overwrite) as temporary:
        _require_room(
            temporary,
            num_rows=journal.num_rows,
            row_bytes=4 * journal.num_features + width + 8 + 1 + digests.shape[1],
            header_bytes=len(header.to_json().encode()),
        )
        try:
            complete = _write(temporary, header, columns, num_rows=journal.num_rows)
        except RuntimeError as err:  # h5py's word for a full disk
            raise ArtifactError(path, f"Cannot write '{path}': {err}") from err
        open_features(temporary)
    return complete


def _require_room(path: Path, *, num_rows: int, row_bytes: int, header_bytes: int) -> None:
    """Claim the space before HDF5 writes: on a full disk the library crashes the process.

    Raises:
        OSError: The disk is full, or the file would be larger than allowed.
    """
    overhead = header_bytes + len(COLUMNS) * 2 * _CHUNK_BYTES  # last chunks, and HDF5's own
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, num_rows * row_bytes + overhead)


def _write(
    path: Path, header: Header, columns: Mapping[str, Iterable[np.ndarray]], *, num_rows: int
) -> Header:
    # v108 and later keep metadata checksummed and allow a header above 64 KiB.
    with h5py.File(path, "w", libver=("v108", "v110")) as file:
        checksums = {
            name: _write_column(file, name, iter(blocks), num_rows)
            for name, blocks in columns.items()
        }
        details: dict[str, Any] = dict(header.details) | {"num_rows": num_rows, "sha256": checksums}
        header = replace(header, details=details)
        # Fixed length: a damaged text of variable length can hang the HDF5 library.
        file.attrs["header"] = np.bytes_(header.to_json().encode())
        file.flush()
        file.attrs["complete"] = True
    return header


def _write_column(file: h5py.File, name: str, blocks: Iterator[np.ndarray], num_rows: int) -> str:
    """Write one column block by block and return its sha256."""
    digest, start = hashlib.sha256(), 0
    column: h5py.Dataset | None = None
    for block in blocks:
        if column is None:
            row_bytes = max(1, block[:1].nbytes)
            rows_per_chunk = min(num_rows, max(1, _CHUNK_BYTES // row_bytes))
            column = file.create_dataset(
                name,
                shape=(num_rows, *block.shape[1:]),
                dtype=block.dtype,
                chunks=(rows_per_chunk, *block.shape[1:]),
                fletcher32=True,
            )
        column[start : start + len(block)] = block
        digest.update(np.ascontiguousarray(block).tobytes())
        start += len(block)
    return digest.hexdigest()
