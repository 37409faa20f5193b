"""What a feature file is made of, checked on its structure before its content is read."""

from __future__ import annotations

from pathlib import Path

import h5py

from featx.artifact import MAX_HEADER_BYTES, Header
from featx.errors import ArtifactIncomplete, ArtifactInvalid
from featx.images.decode import DIGEST_BYTES

COLUMNS = ("features", "labels", "splits", "sample_ids", "digests", "stamps", "groups")
"""The features come first; version 2 has no groups."""
_WITHOUT_GROUPS = 2


def columns_of(header: Header) -> tuple[str, ...]:
    """Return the names of the columns that a file of this header has."""
    return COLUMNS[:-1] if header.schema_version == _WITHOUT_GROUPS else COLUMNS


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
    num_rows, num_features = header.details["num_rows"], header.spec["num_features"]
    expected = {
        "features": ((num_rows, num_features), ("<f4", "<f2")),
        "labels": ((num_rows,), ("<i8",)),
        "splits": ((num_rows,), ("|u1",)),
        "sample_ids": ((num_rows,), ("|S",)),
        "digests": ((num_rows, DIGEST_BYTES), ("|u1",)),
        "stamps": ((num_rows, 2 if header.schema_version == _WITHOUT_GROUPS else 3), ("<i8",)),
        "groups": ((num_rows,), ("<i8",)),
    }
    for name in columns_of(header):
        shape, dtypes = expected[name]
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
    layout = column.id.get_create_plist()  # looked at first: a virtual shape is read elsewhere
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        return "keeps its values in another file"
    if column.shape != shape:
        return f"has shape {column.shape}, expected {shape}"
    if column.dtype.hasobject or not column.dtype.str.startswith(dtypes):
        return f"has type {column.dtype.str}, expected {' or '.join(dtypes)}"
    return _storage_problem(column)


def _storage_problem(column: h5py.Dataset) -> str | None:
    """Return what is wrong with how a column is stored, or None."""
    layout = column.id.get_create_plist()
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if filters - {h5py.h5z.FILTER_FLETCHER32}:
        return "uses a filter that featx does not write"
    stored = column.id.get_storage_size()  # nothing is compressed: all of it must be there
    if not column.nbytes <= stored <= column.file.id.get_filesize():
        return "declares values that the file does not hold"
    return None
