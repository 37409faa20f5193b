"""From the log to the feature file: written once, verified by a fresh process, moved into place.

HDF5 writes through ``_Disk``: the library takes a disk that fails for one that works, or crashes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featx.artifact import MAX_HEADER_BYTES, Header, publishing, target_of
from featx.errors import ArtifactError, ArtifactInvalid
from featx.features import storage
from featx.features.existing import ExistingRows, RowBlock
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import Sample, Stamp, group_numbers, own_splits
from featx.isolation.call import IsolatedCall, Limits

BLOCK_ROWS = 4096
_VERIFY_SECONDS = 600
_SLOWEST_BYTES_PER_SECOND = 5e6
_CHUNK_BYTES = 2**20
_HDF5_CHUNK_BYTES = 128  # checksum and place in the index; measured: below 50
_HDF5_BYTES = 2**16  # superblock, groups, the roots of six indices; measured: below 20 kB


def publish_features(
    path: Path,
    header: Header,
    known: ExistingRows,
    *,
    samples: Sequence[Sample],
    rows: np.ndarray,
    verifier: IsolatedCall,
    splits: np.ndarray | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Header:
    """Write a feature file and return its header, completed by row count and checksums.

    Memory does not grow with the number of rows.

    Args:
        path: Where to; its lock is held.
        header: Everything but row count and checksums.
        known: The rows.
        samples: All of the source, in the order of the file.
        rows: Number of each sample's row, -1 where it has none; ``(num_samples,)`` int64, at least
            one of them 0 or more.
        verifier: What ``start_verifier`` gives, entered; it reads the file before it gets its name.
        splits: Of each sample, an index into ``SPLITS``, ``(num_samples,)`` uint8; None takes those
            that the source gives.
        dtype: What the features are stored as, ``"float32"`` or ``"float16"``.
        overwrite: Replace what is there.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactError: The disk is full or failed; nothing is left behind.
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
        "features": np.dtype((np.dtype(dtype).newbyteorder("<"), (known.journal.num_features,))),
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
            _Disk.open(
                temporary, room=_file_size(schema, len(kept), header_bytes), output=path
            ) as disk,
            known.reading() as rows_at,
        ):
            blocks = _blocks(kept, samples, splits, lambda i: rows_at(rows[i]), schema)
            complete = _write(disk, header, schema, blocks, num_rows=len(kept))
        verifier.run(temporary)
    return complete


def start_verifier(num_bytes: int = 0) -> IsolatedCall:
    """Return a process, not yet begun, that checks a feature file as any reader will.

    Entered early, it starts up while there is other work.

    Args:
        num_bytes: About the size of the file, which decides how long reading it may take.
    """
    limits = Limits(seconds=_VERIFY_SECONDS + num_bytes / _SLOWEST_BYTES_PER_SECOND)
    return IsolatedCall("featx.features.file:verify_features", limits=limits)


def _free_name(output: Path) -> Path:
    """Return a name for the next file that nothing has, and delete what killed runs left.

    Their names tell them: nobody else makes one with this hash of the output's name and 16 random
    digits, and the output's lock is held.
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
    disk: _Disk,
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


@dataclass(eq=False)
class _Disk:
    """A file as HDF5 uses one, whose space is claimed first and whose first failure is kept.

    After a failure it goes on as if nothing had happened, and ``check`` raises: what HDF5 makes of
    an error depends on where it is and can be a crash.
    """

    descriptor: int
    position: int = 0
    length: int = 0
    failure: OSError | None = field(default=None)

    @classmethod
    def open(cls, path: Path, *, room: int, output: Path) -> _Disk:
        """Make the file and claim ``room`` bytes for it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            _claim(descriptor, room, output)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> _Disk:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.check()
            storage.truncate(self.descriptor, self.length)
            storage.sync(self.descriptor)
        finally:
            os.close(self.descriptor)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; HDF5 itself calls ``readinto``."""
        size = self.length - self.position if size < 0 else size
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        content = b""
        try:
            content = os.pread(self.descriptor, len(buffer), self.position)
        except OSError as err:
            self.failure = self.failure or err
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def write(self, data: memoryview) -> int:
        try:
            if self.failure is None:
                storage.write(self.descriptor, data, self.position)
        except OSError as err:
            self.failure = err
        self.position += len(data)
        self.length = max(self.length, self.position)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Note the length; the claimed space stays until the file is closed."""
        self.length = self.position if size is None else size
        return self.length

    def flush(self) -> None:
        pass


_CANNOT_CLAIM = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
"""What a file system answers that cannot set space aside. Then the first failed write tells."""


def _claim(descriptor: int, room: int, output: Path) -> None:
    free = _free_bytes(descriptor)
    if free and free < room:
        raise ArtifactError(
            output,
            f"'{output}' needs {room:,} bytes, but its disk has {free:,} free. Free some and run "
            "the same command again; nothing is lost.",
        )
    try:
        os.posix_fallocate(descriptor, 0, room)
    except OSError as err:
        if err.errno in _CANNOT_CLAIM:
            return
        raise ArtifactError(
            output,
            f"Cannot write '{output}': it needs {room:,} bytes, which cannot be had "
            f"({err.strerror}). Run the same command again when they can; nothing is lost.",
        ) from err


def _free_bytes(descriptor: int) -> int:
    """Return how many bytes a disk says to have free; 0 where it is full or does not know."""
    try:
        status = os.fstatvfs(descriptor)
    except OSError:
        return 0
    return int(status.f_bavail * status.f_frsize)
