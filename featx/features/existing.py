"""The rows there are already: those of the published file, then those of the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np

from featx.features.file import FeatureFile
from featx.features.journal import Journal
from featx.features.records import RowBlock
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import Stamp


@dataclass(frozen=True)
class ExistingImages:
    """Images of previous runs.

    Attributes:
        rows: Number of each image's row, -1 where it has none; ``(n,)`` int64.
        stamps: ``(n, 3)`` int64.
        digests: ``(n, 16)`` uint8; zeros where none is recorded.
        reasons: Why an image has no row; empty where it has one.
    """

    sample_ids: tuple[str, ...]
    rows: np.ndarray
    stamps: np.ndarray
    digests: np.ndarray
    reasons: tuple[str, ...]


class ExistingRows:
    """Rows under one numbering: first the file's, then the journal's in the order they were added.

    Args:
        file: The published file, where there is one with the same settings.
        journal: That of the output.
    """

    def __init__(self, file: FeatureFile | None, journal: Journal) -> None:
        self.file = file
        self.journal = journal
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
