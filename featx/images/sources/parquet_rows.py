"""Images in Parquet files, read by row without holding more than one row group of them.

A row group can only be read from its beginning. One stream for all threads moves through it, and
the rows that it passed are kept as bytes, at most half as many as the largest row group has.
"""

from __future__ import annotations

import base64
import binascii
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from featx.errors import ImageError, SourceError, lies_in_machine
from featx.images.decode import MAX_FILE_BYTES, read_image_file
from featx.images.sources.members import Archive
from featx.packages import install_command, needed

_BATCH_BYTES = 2**23
_MAX_BATCH = 32
_BUFFER_BYTES = 2**20
_LEAST_KEPT, _MOST_KEPT = 2**25, 2**29
_LONGEST_PATH = 255
"""A longer text is not a path but base64."""


class Group(NamedTuple):
    """A row group: its first row in the file, its rows, and the bytes that its images take."""

    start: int
    num_rows: int
    size: int


class ImageFile(NamedTuple):
    """A Parquet file with images.

    Attributes:
        archive: The file as it was when it was opened.
        column: The path of the column of images; of a struct, that of its field of bytes.
        groups: Its row groups.
        paths: The paths that rows have, where their images may not be in the file.
    """

    archive: Archive
    column: str
    groups: tuple[Group, ...]
    paths: dict[int, str]


def open_parquet_file(archive: Archive) -> Any:
    """Return a ``pyarrow.parquet.ParquetFile`` that checks what it reads.

    Raises:
        SourceError: pyarrow is not installed, or the file is damaged or no Parquet file.
    """
    path = archive.path
    try:
        import pyarrow as _  # noqa: F401
        import pyarrow.parquet
    except ImportError as err:
        why = needed(err, "pyarrow", install_command("parquet"))
        raise SourceError(f"'{path}' is read by {why}") from err
    try:
        return pyarrow.parquet.ParquetFile(
            archive.opened() if archive.remote else path,
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES,
        )
    except (OSError, ValueError, MemoryError) as err:  # ArrowException is one of these
        raise SourceError(f"Cannot read '{path}': {told(err)}.") from err


def told(err: BaseException) -> str:
    """Return the first line of what pyarrow says, without the stop at its end."""
    text = str(err).strip().splitlines()
    return text[0][:200].rstrip(". ") if text else type(err).__name__


class RowReader:
    """Reads the images of Parquet files by file and row, from any thread."""

    def __init__(self, files: list[ImageFile]) -> None:
        self._files = files
        largest = max((group.size for file in files for group in file.groups), default=0)
        self._room = min(max(largest // 2, _LEAST_KEPT), _MOST_KEPT)
        self._lock = threading.Lock()
        self._stream: tuple[int, int, Iterator[list[Any]]] | None = None
        self._next = 0  # the row of the file that the stream gives next
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._size = 0
        self._damage: dict[tuple[int, int], tuple[int, str]] = {}

    def read(self, number: int, row: int, *, sample_id: str) -> bytes:
        """Return the encoded image of a row.

        Raises:
            ImageError: It is not there or cannot be read, or the file was changed since.
        """
        file = self._files[number]
        path = file.paths.get(row)
        with self._lock:
            value = self._value(number, row, sample_id)
        if isinstance(value, str) and (len(value) > _LONGEST_PATH or value.startswith("data:")):
            value = _from_base64(value, sample_id)
        if isinstance(value, bytes):
            if len(value) > MAX_FILE_BYTES:
                raise ImageError(
                    sample_id, f"{len(value)} bytes is more than the {MAX_FILE_BYTES} allowed."
                )
            return value
        path = value if isinstance(value, str) else path
        if path is None:
            raise ImageError(sample_id, "the row holds no image (null).")
        beside = path_beside(file.archive.path, path)
        if beside is None:
            raise ImageError(
                sample_id,
                f"its image is not in the file, which has only the path '{path[:200]}'; paths that "
                "lead out of the file's folder are not opened.",
            )
        if not os.path.lexists(beside):
            raise ImageError(
                sample_id,
                f"its image is not in the file, and there is no '{path[:200]}' beside it.",
            )
        return read_image_file(beside, sample_id=sample_id)

    def _value(self, number: int, row: int, sample_id: str) -> Any:
        if (number, row) in self._kept:
            return self._kept[number, row]
        file = self._files[number]
        group = bisect_right(file.groups, row, key=lambda each: each.start) - 1
        damage = self._damage.get((number, group))
        if damage and row >= damage[0]:
            raise ImageError(sample_id, damage[1])
        is_here = self._stream is not None and self._stream[:2] == (number, group)
        if not is_here or self._next > row:
            self._require_same(file, sample_id)
            self._stream = (number, group, _batches(file, group))
            self._next = file.groups[group].start
        try:
            return self._advance(number, row, sample_id)
        except (OSError, ValueError, MemoryError) as err:
            self._stream = None
            self._require_same(file, sample_id)  # or it is not damaged, but another
            reason = f"cannot be read from its Parquet file: {told(err)}."
            if not lies_in_machine(err):
                self._damage[number, group] = self._next, reason
            raise ImageError(sample_id, reason) from err
        except BaseException:
            self._stream = None
            raise

    def _advance(self, number: int, row: int, sample_id: str) -> Any:
        """Move the stream up to a row, and keep what it passes."""
        if self._stream is None:
            raise ValueError("there is nothing to read")
        found = None
        for values in self._stream[2]:
            self._require_same(self._files[number], sample_id)
            for value in values:
                if self._next == row:
                    found = value
                self._keep((number, self._next), value)
                self._next += 1
            if self._next > row:
                return found
        raise ValueError("its row group ends too early")

    def _keep(self, key: tuple[int, int], value: Any) -> None:
        self._drop(key)
        self._kept[key] = value
        self._size += _size_of(value)
        while self._size > self._room:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[int, int]) -> None:
        if key in self._kept:
            self._size -= _size_of(self._kept.pop(key))

    def _require_same(self, file: ImageFile, sample_id: str) -> None:
        if file.archive.remote:
            return  # each part that is read says whether it is of the same file
        path = Path(file.archive.path)
        try:
            is_same = Archive.of(path).identity == file.archive.identity
        except OSError as err:
            reason = f"'{path}' cannot be read: {err.strerror}."
            raise ImageError(sample_id, reason, is_permanent=False) from err
        if not is_same:
            reason = f"'{path}' was changed since its rows were listed."
            raise ImageError(sample_id, reason, is_permanent=False)


def path_beside(file: str, path: str) -> str | None:
    """Return the file that a row's path means; None where it leads out of the file's folder."""
    if not path or "\0" in path or path.startswith(("/", "\\", "~")) or "://" in path:
        return None
    folder = os.path.realpath(Path(file).parent)
    found = os.path.realpath(f"{folder}/{path}")
    return found if found.startswith(f"{folder.rstrip('/')}/") else None


def _size_of(value: Any) -> int:
    return 100 + (len(value) if isinstance(value, bytes | str) else 0)


def _from_base64(text: str, sample_id: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise ImageError(
            sample_id, "the row holds text that is neither a path nor base64."
        ) from err


def _batches(file: ImageFile, group: int) -> Iterator[list[Any]]:
    """Yield the images of a row group in its order: bytes, a path, or None each."""
    opened = open_image_file(file)
    _, num_rows, size = file.groups[group]
    rows = min(max(_BATCH_BYTES * num_rows // max(size, 1), 1), _MAX_BATCH)
    with opened:
        for batch in opened.iter_batches(
            batch_size=rows, row_groups=[group], columns=[file.column], use_threads=False
        ):
            yield [_plain(scalar) for scalar in _flat(batch.column(0))]


def open_image_file(file: ImageFile) -> Any:
    """Return the file opened; one that cannot be opened any more is that image's error."""
    try:
        return open_parquet_file(file.archive)
    except SourceError as err:
        raise ValueError(str(err)) from err


def _flat(array: Any) -> Any:
    """Return an array of a struct's only field, or the array itself."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        return array.flatten()[0]  # null where the struct is
    return array


def _plain(scalar: Any) -> Any:
    """Return a value as bytes, text, or None."""
    value: Any = getattr(scalar, "values", None)
    if value is not None:  # a list of uint8
        return value.to_numpy(zero_copy_only=False).tobytes() if scalar.is_valid else None
    return scalar.as_py()
