"""Feature vectors by the content of their images, in two files that several processes append to.

``keys`` has 20 bytes a vector: the digest of the image, then a CRC-32 of digest and vector.
``vectors`` has float32. A vector is written before its key, and nothing is ever changed, so that
reading needs no lock. What a killed process left half written is cut off by the next that writes;
a damaged vector is calculated again.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from featx import system
from featx.errors import ArtifactBusy, ArtifactError
from featx.features.lock import locked
from featx.images.decode import DIGEST_BYTES

log = logging.getLogger(__name__)

_KEY_BYTES = DIGEST_BYTES + 4
_POLL_SECONDS = 0.02
_STALLED_SECONDS = 300.0


class VectorStore:
    """Vectors of one kind by the digests of their images, on the disk or in memory.

    Args:
        folder: Where the two files are; None keeps vectors in memory alone.
        num_features: Length of a vector.
    """

    def __init__(self, folder: Path | None, num_features: int) -> None:
        self._folder, self._size = folder, num_features
        self._rows: dict[bytes, tuple[int, int]] = {}  # digest to row and CRC-32
        self._num_read, self._is_writable = 0, True
        self._in_memory: dict[bytes, np.ndarray] = {}

    @property
    def is_on_disk(self) -> bool:
        """Whether vectors are kept for other processes and later calls."""
        return self._folder is not None

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return those that have no vector, each once."""
        self._refresh()
        known = (self._rows, self._in_memory)
        unique = dict.fromkeys(digests)
        return [digest for digest in unique if not any(digest in each for each in known)]

    def read(self, digests: Sequence[bytes]) -> np.ndarray | None:
        """Return the vectors, ``(len(digests), num_features)`` float32.

        None where one is missing, or damaged; that one counts as missing from then on.
        """
        self._refresh()
        found = np.empty((len(digests), self._size), np.float32)
        stored = dict(self._stored(set(digests) - self._in_memory.keys()))
        for position, digest in enumerate(digests):
            if digest in self._in_memory:
                found[position] = self._in_memory[digest]
            elif digest in stored:
                found[position] = stored[digest]
            else:
                return None
        return found

    def _stored(self, digests: Iterable[bytes]) -> Iterator[tuple[bytes, np.ndarray]]:
        """Yield vectors from the disk, without those that are damaged."""
        wanted = sorted((self._rows[each], each) for each in digests if each in self._rows)
        if self._folder is None or not wanted:
            return
        try:
            with self._vectors.open("rb", buffering=0) as file:
                for (row, code), digest in wanted:
                    content = system.read_at(file.fileno(), self._bytes, row * self._bytes)
                    if len(content) == self._bytes and zlib.crc32(digest + content) == code:
                        yield digest, np.frombuffer(content, "<f4")
                    else:
                        del self._rows[digest]
        except OSError as err:
            self._give_up(err)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to add vectors; wait while another process or thread has it.

        Where that one adds nothing for five minutes, or the disk refuses the lock, what is added is
        kept in memory alone.
        """
        if self._folder is None or not self._is_writable:
            yield
            return
        with ExitStack() as stack:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._wait(stack)
                self._cut()
            except (OSError, ArtifactError) as err:
                self._keep_in_memory(err)
            yield

    def add(self, digests: Sequence[bytes], vectors: np.ndarray) -> None:
        """Add vectors ``(len(digests), num_features)`` that are missing, inside ``writing``."""
        if self._folder is not None and self._is_writable:
            rows = [row.tobytes() for row in vectors.astype("<f4")]
            pairs = list(zip(digests, rows, strict=True))
            keys = [own + zlib.crc32(own + row).to_bytes(4, "little") for own, row in pairs]
            try:
                for path, parts in ((self._vectors, rows), (self._keys, keys)):
                    with path.open("ab", buffering=0) as file:
                        _write_all(file.fileno(), b"".join(parts))
            except OSError as err:
                self._keep_in_memory(err)
            else:
                self._refresh()
                return
        self._in_memory |= zip(digests, vectors, strict=True)

    @property
    def _bytes(self) -> int:
        return 4 * self._size

    @property
    def _keys(self) -> Path:
        return (self._folder or Path()) / "keys"

    @property
    def _vectors(self) -> Path:
        return (self._folder or Path()) / "vectors"

    def _num_written(self) -> int:
        try:
            sizes = self._keys.stat().st_size, self._vectors.stat().st_size
        except FileNotFoundError:
            return 0
        return min(sizes[0] // _KEY_BYTES, sizes[1] // self._bytes)

    def _refresh(self) -> None:
        """Read the keys that were written since."""
        if self._folder is None:
            return
        try:
            count = self._num_written()
            if count < self._num_read:  # the folder was emptied
                self._rows, self._num_read = {}, 0
            if count == self._num_read:
                return
            with self._keys.open("rb") as file:
                file.seek(self._num_read * _KEY_BYTES)
                content = file.read((count - self._num_read) * _KEY_BYTES)
        except OSError as err:
            self._give_up(err)
            return
        for start in range(0, len(content), _KEY_BYTES):
            key = content[start : start + _KEY_BYTES]
            code = int.from_bytes(key[DIGEST_BYTES:], "little")
            self._rows[key[:DIGEST_BYTES]] = self._num_read + start // _KEY_BYTES, code
        self._num_read = count

    def _wait(self, stack: ExitStack) -> None:
        """Take the lock, once it is free."""
        written, since = self._num_written(), time.monotonic()
        while True:
            try:
                stack.enter_context(locked(self._keys))
            except ArtifactBusy:
                if self._num_written() != written:
                    written, since = self._num_written(), time.monotonic()
                if time.monotonic() - since > _STALLED_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _cut(self) -> None:
        """Cut off what a killed process left half written."""
        count = self._num_written()
        for path, size in ((self._keys, _KEY_BYTES), (self._vectors, self._bytes)):
            if path.exists() and path.stat().st_size != count * size:
                os.truncate(path, count * size)

    def _keep_in_memory(self, err: Exception) -> None:
        """Write nothing more; what is there is still read."""
        log.warning("New features are not cached in '%s' from here on: %s", self._folder, err)
        self._is_writable = False

    def _give_up(self, err: Exception) -> None:
        log.warning("The cached features in '%s' cannot be read: %s", self._folder, err)
        self._folder, self._rows, self._num_read = None, {}, 0


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
