"""Where rows wait until the extraction is complete.

Features are appended to a nameless temporary file beside the output, so memory does not grow with
the number of images and nothing is left behind when the process dies.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from featx.errors import ArtifactError

BLOCK_ROWS = 4096


class Journal:
    """An append-only list of feature rows on disk.

    Args:
        output: The feature file that the rows are for; the journal lies in its folder.
        num_features: Length of a row.

    Raises:
        ArtifactError: The folder cannot be written.
    """

    def __init__(self, output: Path, *, num_features: int) -> None:
        self._output = output
        self.num_features = num_features
        self.num_rows = 0
        try:
            self._file = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115 closed by close()
        except OSError as err:
            raise self._error(err) from err

    def append(self, features: np.ndarray) -> None:
        """Add rows, shape ``(n, num_features)``, float32.

        Raises:
            ArtifactError: The disk is full or failed.
        """
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
            self._file.flush()
        except OSError as err:
            raise self._error(err) from err
        self.num_rows += len(features)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows in order, in arrays ``(up to BLOCK_ROWS, num_features)`` float32."""
        row_bytes = self.num_features * 4
        for start in range(0, self.num_rows, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, self.num_rows - start)
            self._file.seek(start * row_bytes)
            content = self._file.read(rows * row_bytes)
            yield np.frombuffer(content, dtype="<f4").reshape(rows, self.num_features)

    def close(self) -> None:
        """Give the disk space back."""
        with contextlib.suppress(OSError):  # bytes that a full disk refused are tried once more
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _error(self, err: OSError) -> ArtifactError:
        return ArtifactError(
            self._output,
            f"Cannot write features beside '{self._output}': {err.strerror or err}.",
        )
