"""From file and journal to the next file: written, verified in a fresh process, moved in place."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featx.artifact import MAX_HEADER_BYTES, Header, publishing, target_of
from featx.errors import ArtifactError, ArtifactInvalid
from featx.features import storage
from featx.features.blocks import reading_activations
from featx.features.columns import Column, block_sizes, file_size, schema_of
from featx.features.file import TRAIN, FeatureFile
from featx.features.journal import Journal
from featx.features.records import ENTRY, RowBlock, RowLayout
from featx.images.sources import Sample, group_numbers, own_splits
from featx.isolation.call import IsolatedCall, Limits

_VERIFY_SECONDS = 600
_SLOWEST_BYTES_PER_SECOND = 5e6
_ID_BYTES = 100  # of a name, on average


@dataclass(frozen=True)
class ExistingImages:
    """Images of previous runs, columns as in ``Batch``; their rows' numbers, -1 where none."""

    sample_ids: Sequence[str]
    rows: np.ndarray
    stamps: np.ndarray
    digests: np.ndarray
    reasons: tuple[str, ...]


class ExistingRows:
    """Rows under one numbering: the file's, then the journal's in the order they were added.

    The file's rows have the journal's shape, and its type unless they are vectors. Their views
    count where the file has as many of each image as the journal's layout.
    """

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

    @property
    def has_views(self) -> np.ndarray:
        """Which rows have views, ``(next_row,)`` bool."""
        in_file = np.zeros(self.num_in_file, bool)
        if self.file is not None and self._file_has_views:
            in_file = self.file.splits == TRAIN
        return np.concatenate([in_file, self.journal.has_views()])

    @property
    def _file_has_views(self) -> bool:
        num_views = self.journal.layout.num_views
        return self.file is not None and 0 < num_views == self.file.num_views

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
        with ExitStack() as stack:
            in_file = self._reading_file(stack)

            def rows_at(numbers: np.ndarray) -> RowBlock:
                old = numbers < self.num_in_file
                if not old.any():
                    return self.journal.rows(numbers - self.num_in_file)
                block = RowBlock.empty(len(numbers), self.journal.layout)
                self._fill(block, np.flatnonzero(old), numbers[old], in_file)
                if not old.all():
                    added = self.journal.rows(numbers[~old] - self.num_in_file)
                    for column, values in zip(block, added, strict=True):
                        if column is not None:
                            column[~old] = values
                return block

            yield rows_at

    def _reading_file(self, stack: ExitStack) -> Callable[[np.ndarray, int], np.ndarray]:
        """Return what reads rows of the file by number and view, ``(n, size)``."""
        if self.file is None:
            return lambda numbers, view: np.empty((0, self.journal.layout.size))
        if self.file.cut is None and not self._file_has_views:
            vectors = stack.enter_context(self.file.reading())
            return lambda numbers, view: vectors(numbers)
        stored = stack.enter_context(reading_activations(self.file))

        def read(numbers: np.ndarray, view: int) -> np.ndarray:
            rows = np.empty((len(numbers), self.journal.layout.size), stored.dtype)
            order = np.argsort(numbers, kind="stable")
            rows[order] = stored.read(numbers[order], view).reshape(rows.shape)
            return rows

        return read

    def _fill(
        self,
        block: RowBlock,
        places: np.ndarray,
        numbers: np.ndarray,
        in_file: Callable[[np.ndarray, int], np.ndarray],
    ) -> None:
        """Fill the places of a block with rows of the file."""
        if self.file is None:
            return
        block.digests[places] = self.file.digests[numbers]
        block.stamps[places] = self.file.stamps[numbers]
        block.features[places] = in_file(numbers, 0)
        if block.views is not None and self._file_has_views:
            viewed = self.file.splits[numbers] == TRAIN
            block.has_views[places] = viewed
            for view in range(self.journal.layout.num_views):
                block.views[places[viewed], view] = in_file(numbers[viewed], view + 1)


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

    Memory does not grow with the number of rows. The output's lock is held. Where the journal's
    layout has views, each row of the training split has them, and they are a column of their own,
    in the order of the file; the header says how they were drawn.

    Args:
        path: Where to.
        header: Everything but row count and checksums.
        existing: The rows.
        samples: All of the source, in the order of the file.
        rows: Number of each sample's row, -1 where it has none; ``(num_samples,)`` int64, at least
            one of them 0 or more.
        verifier: From ``start_verifier``, entered; it reads the file before it gets its name.
        splits: Of each sample, ``(num_samples,)`` uint8; None takes those that the source gives.
        dtype: What vectors are stored as, ``"float32"`` or ``"float16"``; activations at a cut are
            stored as they are in the journal.
        overwrite: Replace what is there.
    """
    kept = np.flatnonzero(rows >= 0)
    splits = own_splits(samples) if splits is None else splits
    layout = existing.journal.layout
    if len(layout.shape) == 1 and "cut" not in header.spec:
        layout = replace(layout, dtype=dtype)
    width = max(len(_encoded(samples[int(i)].sample_id)) for i in kept)  # no list: it is long
    is_train = splits[kept] == TRAIN
    schema = schema_of(layout, len(kept), int(is_train.sum()), width)

    @contextmanager
    def blocks() -> Iterator[Iterator[dict[str, np.ndarray]]]:
        sizes = block_sizes(is_train, layout, schema)
        with existing.reading() as rows_at:
            own = kept, samples, splits, lambda i: rows_at(rows[i])
            yield _blocks(*own, sizes=sizes, schema=schema)

    return publish_blocks(path, header, schema, blocks(), verifier=verifier, overwrite=overwrite)


def publish_blocks(
    path: Path,
    header: Header,
    schema: dict[str, Column],
    reading: AbstractContextManager[Iterator[dict[str, np.ndarray]]],
    *,
    verifier: IsolatedCall,
    overwrite: bool,
) -> Header:
    """Write a feature file of blocks of all columns, as ``publish_features`` does.

    What is read is closed before the file gets its name: it may be the one that is replaced.
    """
    header_bytes = len(header.to_json())
    if header_bytes > MAX_HEADER_BYTES // 2:
        raise ArtifactError(
            path,
            f"'{path}' cannot list all the images that were left out; move them out of the source.",
        )
    temporary, num_rows = _free_name(path), schema["features"].shape[0]
    with publishing(path, overwrite=overwrite, temporary=temporary), _reported(path):
        with (
            storage.Disk.open(temporary, room=file_size(schema, header_bytes), output=path) as disk,
            reading as blocks,
        ):
            complete = _write(disk, header, schema, blocks, num_rows=num_rows)
        verifier.run(temporary)
    return complete


def required_bytes(
    layout: RowLayout, num_rows: int, num_viewed: int = 0, *, dtype: str | None = None
) -> tuple[int, int]:
    """Return about how many bytes a journal takes, and the file that is made from it.

    Both are there at once. The file of a source that brings its splits has the views of its
    training images alone.

    Args:
        layout: Of the rows.
        num_rows: Images.
        num_viewed: How many of them have views.
        dtype: What vectors are stored as, where that is not what the journal holds.
    """
    values = layout.row_bytes * (num_rows + num_viewed * layout.num_views)
    stored = replace(layout, dtype=dtype or layout.dtype)
    schema = schema_of(stored, num_rows, num_viewed, _ID_BYTES)
    return values + num_rows * (ENTRY.itemsize + _ID_BYTES), file_size(schema, 0)


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
    *,
    sizes: Iterable[int],
    schema: dict[str, Column],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns at the positions ``kept``, so many rows at a time."""
    groups = group_numbers(samples[i] for i in kept.tolist())
    start = 0
    for size in sizes:
        positions = kept[start : start + size]
        block, chosen = rows_of(positions), [samples[i] for i in positions.tolist()]
        shape = schema["features"].shape[1:]
        columns = {
            "features": block.features.reshape(-1, *shape),
            "labels": np.array([sample.label for sample in chosen], dtype="<i8"),
            "splits": splits[positions],
            "sample_ids": np.array(
                [_encoded(sample.sample_id) for sample in chosen], schema["sample_ids"].dtype
            ),
            "digests": block.digests,
            "stamps": block.stamps,
            "groups": groups[start : start + size],
        }
        if "views" in schema:
            is_train = splits[positions] == TRAIN
            if block.views is None or not block.has_views[is_train].all():
                raise ValueError("a row of the training split has no views")
            views = block.views if is_train.all() else block.views[is_train]
            columns["views"] = views.reshape(len(views), *schema["views"].shape[1:])
        yield {
            name: values.astype(schema[name].dtype, copy=False) for name, values in columns.items()
        }
        start += size


def _encoded(sample_id: str) -> bytes:
    return sample_id.encode("utf-8", "surrogateescape")


def _write(
    disk: storage.Disk,
    header: Header,
    schema: dict[str, Column],
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
                shape=column.shape,
                dtype=column.dtype,
                chunks=column.chunks if column.shape[0] else None,
                fletcher32=bool(column.shape[0]),
            )
            for name, column in schema.items()
        }
        digests = {name: hashlib.sha256() for name in columns}
        starts = dict.fromkeys(columns, 0)
        for block in blocks:
            for name, values in block.items():
                stop = starts[name] + len(values)
                columns[name][starts[name] : stop] = values
                digests[name].update(np.ascontiguousarray(values).data)
                starts[name] = stop
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
