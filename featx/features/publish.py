"""From file and journal to the next file: written, verified in a fresh process, moved in place."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featx.artifact import MAX_HEADER_BYTES, Header, publishing, target_of
from featx.errors import ArtifactError, ArtifactInvalid
from featx.features import storage
from featx.features.file import FeatureFile
from featx.features.journal import Journal
from featx.features.records import RowBlock
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import Sample, Stamp, group_numbers, own_splits
from featx.isolation.call import IsolatedCall, Limits

BLOCK_ROWS = 4096
_VERIFY_SECONDS = 600
_SLOWEST_BYTES_PER_SECOND = 5e6
_CHUNK_BYTES = 2**20
_HDF5_CHUNK_BYTES = 128  # checksum and place in the index; measured: below 50
_HDF5_BYTES = 2**16  # superblock, groups, the roots of six indices; measured: below 20 kB


@dataclass(frozen=True)
class ExistingImages:
    """Images of previous runs, columns as in ``Batch``; their rows' numbers, -1 where none."""

    sample_ids: tuple[str, ...]
    rows: np.ndarray
    stamps: np.ndarray
    digests: np.ndarray
    reasons: tuple[str, ...]


class ExistingRows:
    """Rows under one numbering: the file's, then the journal's in the order they were added."""

    def __init__(self, file: FeatureFile | None, journal: Journal) -> None:
        self.file, self.journal = file, journal
        self.num_in_file = 0 if file is None else len(file)

    @property
    def next_row(self) -> int:
        """The number of the next row that is added to the journal."""
        return self.num_in_file + self.journal.num_rows

    def digests(self) -> np.ndarray:
        """Return the content hash of each row, ``(next_row, 16)`` uint8."""
        journal = self.journal.digests()
        return journal if self.file is None else np.concatenate([self.file.digests, journal])

    def images(self) -> Iterator[ExistingImages]:
        """Yield the images of the file, then those of the journal."""
        if self.file is not None:
            yield from images_in_file(self.file)
        first = self.num_in_file
        for batch in self.journal.batches():
            has_row = batch.has_row
            rows = np.where(has_row, first + np.cumsum(has_row) - 1, -1)
            first += int(has_row.sum())
            yield ExistingImages(batch.sample_ids, rows, batch.stamps, batch.digests, batch.reasons)

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], RowBlock]]:
        """Yield a function from row numbers ``(n,)`` int64 to their rows."""
        with nullcontext() if self.file is None else self.file.reading() as rows_in_file:
            yield lambda numbers: self._rows_at(numbers, rows_in_file)

    def _rows_at(
        self, numbers: np.ndarray, rows_in_file: Callable[[np.ndarray], np.ndarray] | None
    ) -> RowBlock:
        old = numbers < self.num_in_file
        block = RowBlock(
            features=np.empty((len(numbers), self.journal.num_features), dtype=np.float32),
            digests=np.empty((len(numbers), DIGEST_BYTES), dtype=np.uint8),
            stamps=np.empty((len(numbers), len(Stamp._fields)), dtype=np.int64),
        )
        if self.file is not None and rows_in_file is not None and old.any():
            block.features[old] = rows_in_file(numbers[old])
            block.digests[old] = self.file.digests[numbers[old]]
            block.stamps[old] = self.file.stamps[numbers[old]]
        if not old.all():
            added = self.journal.rows(numbers[~old] - self.num_in_file)
            for column, values in zip(block, added, strict=True):
                column[~old] = values
        return block


def images_in_file(file: FeatureFile) -> Iterator[ExistingImages]:
    """Yield the rows of a file, then the images it was made without."""
    yield ExistingImages(
        file.sample_ids, np.arange(len(file)), file.stamps, file.digests, ("",) * len(file)
    )
    skipped = file.skipped
    if skipped:
        yield ExistingImages(
            tuple(image.sample_id for image in skipped),
            np.full(len(skipped), -1),
            np.array([image.stamp for image in skipped], dtype=np.int64),
            np.array([list(image.digest) for image in skipped], dtype=np.uint8),
            tuple(image.reason for image in skipped),
        )


def publish_features(
    path: Path,
    header: Header,
    existing: ExistingRows,
    *,
    samples: Sequence[Sample],
    rows: np.ndarray,
    verifier: IsolatedCall,
    splits: np.ndarray | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Header:
    """Write a feature file and return its header, completed by row count and checksums.

    Memory does not grow with the number of rows. The output's lock is held.

    Args:
        path: Where to.
        header: Everything but row count and checksums.
        existing: The rows.
        samples: All of the source, in the order of the file.
        rows: Number of each sample's row, -1 where it has none; ``(num_samples,)`` int64, at least
            one of them 0 or more.
        verifier: From ``start_verifier``, entered; it reads the file before it gets its name.
        splits: Of each sample, ``(num_samples,)`` uint8; None takes those that the source gives.
        dtype: What the features are stored as, ``"float32"`` or ``"float16"``.
        overwrite: Replace what is there.
    """
    header_bytes = len(header.to_json())
    if header_bytes > MAX_HEADER_BYTES // 2:
        raise ArtifactError(
            path,
            f"'{path}' cannot list all the images that were left out; move them out of the source.",
        )
    kept = np.flatnonzero(rows >= 0)
    splits = own_splits(samples) if splits is None else splits
    width = max(len(_encoded(samples[int(i)].sample_id)) for i in kept)  # no list: it is long
    schema = {
        "features": np.dtype((np.dtype(dtype).newbyteorder("<"), (existing.journal.num_features,))),
        "labels": np.dtype("<i8"),
        "splits": np.dtype("u1"),
        "sample_ids": np.dtype(f"S{width}"),
        "digests": np.dtype(("u1", (DIGEST_BYTES,))),
        "stamps": np.dtype(("<i8", (len(Stamp._fields),))),
        "groups": np.dtype("<i8"),
    }
    temporary = _free_name(path)
    with publishing(path, overwrite=overwrite, temporary=temporary), _reported(path):
        with (
            storage.Disk.open(
                temporary, room=_file_size(schema, len(kept), header_bytes), output=path
            ) as disk,
            existing.reading() as rows_at,
        ):
            blocks = _blocks(kept, samples, splits, lambda i: rows_at(rows[i]), schema)
            complete = _write(disk, header, schema, blocks, num_rows=len(kept))
        verifier.run(temporary)
    return complete


def start_verifier(num_bytes: int = 0) -> IsolatedCall:
    """Return a process, not yet begun, that checks a feature file of about this size."""
    limits = Limits(seconds=_VERIFY_SECONDS + num_bytes / _SLOWEST_BYTES_PER_SECOND)
    return IsolatedCall("featx.features.file:verify_features", limits=limits)


def _free_name(output: Path) -> Path:
    """Return a name for the next file that nothing has, and delete what killed runs left.

    Their names identify them: no other program makes one with this hash of the output's name and 16
    random digits, and the output's lock is held.
    """
    target = target_of(output)
    own = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    start = f".{target.name[:40]}.{own}-"
    name = re.compile(rf"{re.escape(start)}[0-9a-f]{{16}}\.tmp")
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                Path(entry).unlink()
    return target.with_name(f"{start}{secrets.token_hex(8)}.tmp")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Raise what goes wrong with the temporary as an error about the file it was to become."""
    try:
        yield
    except ArtifactInvalid as err:
        raise ArtifactInvalid(
            path,
            f"What was written for '{path}' does not read as it should: {err} The rows are kept; "
            "run the same command again.",
        ) from err
    except RuntimeError as err:  # h5py's word for what it cannot do
        raise ArtifactError(path, f"Cannot write '{path}': {err}.") from err


def _blocks(
    kept: np.ndarray,
    samples: Sequence[Sample],
    splits: np.ndarray,
    rows_of: Callable[[np.ndarray], RowBlock],
    schema: dict[str, np.dtype[Any]],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns at the positions ``kept``, up to ``BLOCK_ROWS`` rows at a time."""
    groups = group_numbers(samples[i] for i in kept.tolist())
    for start in range(0, len(kept), BLOCK_ROWS):
        positions = kept[start : start + BLOCK_ROWS]
        block, chosen = rows_of(positions), [samples[i] for i in positions.tolist()]
        yield {
            "features": block.features.astype(schema["features"].base, copy=False),
            "labels": np.array([sample.label for sample in chosen], dtype="<i8"),
            "splits": splits[positions],
            "sample_ids": np.array(
                [_encoded(sample.sample_id) for sample in chosen], dtype=schema["sample_ids"]
            ),
            "digests": block.digests,
            "stamps": block.stamps,
            "groups": groups[start : start + BLOCK_ROWS],
        }


def _encoded(sample_id: str) -> bytes:
    return sample_id.encode("utf-8", "surrogateescape")


def _file_size(schema: dict[str, np.dtype[Any]], num_rows: int, header_bytes: int) -> int:
    """Return the bytes that the file takes at most: whole chunks, header, HDF5's own."""
    size = header_bytes + _HDF5_BYTES
    for column in schema.values():
        rows = _chunk_rows(column, num_rows)
        chunks = -(-num_rows // rows)
        size += chunks * (rows * column.itemsize + _HDF5_CHUNK_BYTES)
    return size


def _chunk_rows(column: np.dtype[Any], num_rows: int) -> int:
    return min(num_rows, max(1, _CHUNK_BYTES // column.itemsize))


def _write(
    disk: storage.Disk,
    header: Header,
    schema: dict[str, np.dtype[Any]],
    blocks: Iterator[dict[str, np.ndarray]],
    *,
    num_rows: int,
) -> Header:
    """Write all columns, then the header, then ``complete``."""
    # v108 and later keep metadata checksummed and allow a header above 64 KiB.
    with h5py.File(disk, "w", libver=("v108", "v110")) as file:
        columns = {
            name: file.create_dataset(
                name,
                shape=(num_rows, *column.shape),
                dtype=column.base,
                chunks=(_chunk_rows(column, num_rows), *column.shape),
                fletcher32=True,
            )
            for name, column in schema.items()
        }
        digests = {name: hashlib.sha256() for name in columns}
        start = 0
        for block in blocks:
            for name, values in block.items():
                columns[name][start : start + len(values)] = values
                digests[name].update(np.ascontiguousarray(values).data)
            start += len(block["labels"])
            disk.check()
        checksums = {name: digest.hexdigest() for name, digest in digests.items()}
        details: dict[str, Any] = dict(header.details) | {"num_rows": num_rows, "sha256": checksums}
        header = replace(header, details=details)
        # Fixed length: a damaged text of variable length can hang the HDF5 library.
        file.attrs["header"] = np.bytes_(header.to_json().encode())
        file.flush()
        file.attrs["complete"] = True
    disk.check()
    return header
