"""The journal of an extraction, ``OUT.partial``: its rows are safe as soon as they are appended.

An append-only file of records (``records`` has their layout). It is made at the first batch, lies
beside the output while the extraction runs, and is deleted when its rows are published.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from featx import system
from featx.artifact import canonical_json, partial_path, sync
from featx.errors import (
    ArtifactError,
    ArtifactInvalid,
    ArtifactMismatch,
    ArtifactMissing,
    counted,
)
from featx.features import storage
from featx.features.records import (
    Batch,
    RowBlock,
    RowLayout,
    Scan,
    count_images,
    pack,
    read_record,
    record,
    unpack,
    unpack_digests,
)
from featx.images.decode import DIGEST_BYTES

log = logging.getLogger(__name__)

_SYNC_SECONDS = 1.0
_SYNC_IMAGES = 4096
_NONE = -1
_LAYOUT = "layout"


class Journal:
    """The journal of one output: opened if it exists, else made at the first batch.

    Its settings are what the rows depend on, JSON values; None until ``begin`` in a new one. Its
    images include those without a row. The disk's failures are ``ArtifactError``; rows of another
    layout than its own can be forgotten by ``begin``, and are else an ``ArtifactMismatch``.
    """

    def __init__(self, output: Path, *, layout: RowLayout) -> None:
        self.output = output
        self.path = partial_path(output)
        self.layout = layout
        self.settings: Mapping[str, Any] | None = None
        self.num_rows = 0
        self.num_images = 0
        self._descriptor = _NONE
        self._end = 0
        self._unsynced = 0
        self._synced_at = time.monotonic()
        self._offsets = array("q")  # of each batch's record
        self._first_rows = array("q")  # number of each batch's first row
        self._has_views = array("b")  # each batch
        self._last: tuple[int, Batch] | None = None  # that was read for its rows
        if os.path.lexists(self.path):
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Forget every batch, and begin with these settings at the next one."""
        self._last = None
        own = {} if self.layout.is_plain else {_LAYOUT: self.layout.to_dict()}
        self.settings, self.num_rows, self.num_images, self._end = {**settings, **own}, 0, 0, 0
        self._offsets, self._first_rows, self._has_views = array("q"), array("q"), array("b")
        if self._descriptor != _NONE:
            try:
                storage.truncate(self._descriptor, 0)
                storage.sync(self._descriptor)  # or a power failure may bring the old rows back
            except OSError as err:
                raise self._error(err) from err

    def append(self, batch: Batch) -> None:
        """Add a batch; on the disk within about a second, or 4,096 rows."""
        self._require_layout()
        try:
            if not self._end:
                self._create()
            offset = self._end
            self._write_record(len(self._offsets) + 1, pack(batch, self.layout))
            has_views = batch.views is not None
            self._note(offset, len(batch.features), len(batch.sample_ids), has_views=has_views)
            self._unsynced += len(batch.sample_ids)
            waited = time.monotonic() - self._synced_at
            if self._unsynced >= _SYNC_IMAGES or waited >= _SYNC_SECONDS:
                self.sync()
        except OSError as err:
            raise self._error(err) from err

    def sync(self) -> None:
        """Wait until every batch is on the disk; an ``OSError`` is passed on."""
        if self._unsynced:
            storage.sync(self._descriptor)
        self._unsynced, self._synced_at = 0, time.monotonic()

    def batches(self) -> Iterator[Batch]:
        for number in range(len(self._offsets)):
            yield self._batch(number)

    def rows(self, numbers: np.ndarray) -> RowBlock:
        """Return rows; ``numbers`` ``(n,)`` count over all batches, cheapest when ascending."""
        block = RowBlock.empty(len(numbers), self.layout)
        owners = np.searchsorted(np.frombuffer(self._first_rows, "q"), numbers, side="right") - 1
        for owner in np.unique(owners):
            if self._last is None or self._last[0] != owner:
                self._last = int(owner), self._batch(int(owner))
            batch, wanted = self._last[1], owners == owner
            local = numbers[wanted] - self._first_rows[owner]
            block.features[wanted] = batch.features[local]
            block.stamps[wanted] = batch.stamps[batch.has_row][local]
            block.digests[wanted] = batch.digests[batch.has_row][local]
            if block.views is not None and batch.views is not None:
                block.views[wanted], block.has_views[wanted] = batch.views[local], True
        return block

    def has_views(self) -> np.ndarray:
        """Return which rows have views, ``(num_rows,)`` bool; no row is read."""
        counts = np.diff(np.append(np.frombuffer(self._first_rows, "q"), self.num_rows))
        return np.repeat(np.frombuffer(self._has_views, "?"), counts)

    def digests(self) -> np.ndarray:
        """Return the content hashes of all rows, ``(num_rows, 16)`` uint8; no row is read."""
        try:
            parts = [unpack_digests(self._descriptor, offset) for offset in self._offsets]
        except (OSError, ValueError, struct.error) as err:
            raise ArtifactError(self.output, f"Cannot read '{self.path}': {err}.") from err
        return np.concatenate([np.empty((0, DIGEST_BYTES), dtype=np.uint8), *parts])

    def remove(self) -> None:
        """Delete the journal: its rows are published."""
        self.close()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as err:
            raise self._error(err) from err

    def close(self) -> None:
        """Close the journal; what it holds stays."""
        if self._descriptor != _NONE:
            with contextlib.suppress(OSError):  # a disk that fails has been reported by append
                self.sync()
            os.close(self._descriptor)
            self._descriptor = _NONE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self) -> None:
        """Make the file and write record 0; a process that dies in between leaves no batches."""
        if self._descriptor == _NONE:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | system.NO_LINK
            self._descriptor = os.open(self.path, flags, 0o666)
        self._end = 0
        self._write_record(0, canonical_json(self.settings).encode())
        storage.sync(self._descriptor)
        with contextlib.suppress(OSError):  # the folder's entries, where the file system can
            sync(self.path.parent)

    def _open(self) -> None:
        """Read every record up to the first that does not verify, and cut the file there."""
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | system.NO_LINK | system.NO_WAIT)
            scan = Scan(self._descriptor, self.path)
            self.settings = scan.settings()  # None if record 0 is not whole
            for offset, num_images, num_rows, num_bytes in scan.batches():
                has_views = num_bytes > num_rows * self.layout.row_bytes
                self._note(offset, num_rows, num_images, has_views=has_views)
            self._end = scan.end
            dropped = os.fstat(self._descriptor).st_size - scan.end
            if dropped:
                storage.truncate(self._descriptor, scan.end)
                log.info(
                    "'%s' ends in %s of a record that is not whole; %s before it.",
                    *(self.path, counted(dropped, "byte")),
                    counted(self.num_images, "image is kept", "images are kept"),
                )
        except OSError as err:
            if isinstance(err, ArtifactError):
                raise
            raise self._error(err) from err

    def _note(self, offset: int, num_rows: int, num_images: int, *, has_views: bool) -> None:
        self._offsets.append(offset)
        self._has_views.append(has_views)
        self._first_rows.append(self.num_rows)
        self.num_rows += num_rows
        self.num_images += num_images

    def _write_record(self, number: int, payload: bytes) -> None:
        """Write a record at the end; after a failure the file ends where it ended before."""
        content = record(number, payload)
        try:
            storage.write(self._descriptor, content, self._end)
        except OSError:
            with contextlib.suppress(OSError):
                storage.truncate(self._descriptor, self._end)
            raise
        self._end += len(content)

    def _require_layout(self) -> None:
        """Check that the rows have this layout; journals of vectors do not name theirs."""
        own = None if self.layout.is_plain else self.layout.to_dict()
        if (self.settings or {}).get(_LAYOUT) != own:
            raise ArtifactMismatch(
                self.path,
                f"'{self.path}' holds rows of another layout than {self.layout}. Finish that "
                "extraction with its own options, or discard it with restart=True.",
            )

    def _batch(self, number: int) -> Batch:
        self._require_layout()
        try:
            payload = read_record(self._descriptor, self._offsets[number], number + 1, self.path)
        except OSError as err:
            if isinstance(err, ArtifactError):
                raise
            raise self._error(err) from err
        try:
            return unpack(payload, self.layout)
        except ValueError as err:
            raise ArtifactInvalid(
                self.path, f"'{self.path}' holds rows of another length than {self.layout}."
            ) from err

    def _error(self, err: OSError) -> ArtifactError:
        return ArtifactError(
            self.output,
            f"Cannot write the features of '{self.output}' to '{self.path}': "
            f"{err.strerror or err}. {counted(self.num_images, 'image is', 'images are')} kept in "
            "it; run the same command again to resume.",
        )


def read_progress(path: Path) -> tuple[int, int]:
    """Return how many images a journal holds, and how many its source has."""
    with _reading(path) as descriptor:
        scan = Scan(descriptor, path)
        settings = scan.settings() or {}
        done, total = count_images(descriptor, scan.end), settings.get("num_samples")
        total = total if isinstance(total, int) else 0
        return min(done, total), total


def read_settings(path: Path) -> dict[str, Any] | None:
    """Return record 0 of a journal; None where there is no journal, or no whole record 0."""
    try:
        with _reading(path) as descriptor:
            return Scan(descriptor, path).settings()
    except ArtifactMissing:
        return None


def has_rows(path: Path) -> bool:
    """Return whether a journal holds a row, and not just images that cannot be used."""
    with _reading(path) as descriptor:
        scan = Scan(descriptor, path)
        return scan.settings() is not None and any(rows for _, _, rows, _ in scan.batches())


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | system.NO_LINK | system.NO_WAIT)
    except FileNotFoundError as err:
        raise ArtifactMissing(path, f"'{path}' does not exist.") from err
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise ArtifactInvalid(path, f"'{path}' is a link; move it away.") from err
        raise ArtifactError(path, f"Cannot read '{path}': {err.strerror}.") from err
    try:
        yield descriptor
    finally:
        os.close(descriptor)
