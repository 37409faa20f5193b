"""Contents of images by their hashes: numbered, and a set of them as a text in heads and models."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from featx.errors import ArtifactInvalid

MAX_HELD_OUT = 2**20
"""Images that a head lists: more would not fit into its header."""
_PREFIX_BYTES = 6


def number_contents(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each hash's content, ascending by hash, and a row of each content.

    Memory is about 20 bytes for each hash, beside the two.

    Args:
        digests: Hashes, ``(n, 16)`` uint8.

    Returns:
        Numbers, ``(n,)`` int32, or int64 of more than 2³¹; the first row of each content, ``(C,)``
        int64.

    >>> hashes = np.array([[3] * 16, [1] * 16, [3] * 16], np.uint8)
    >>> numbers, rows = number_contents(hashes)
    >>> numbers.tolist(), rows.tolist()
    ([1, 0, 1], [1, 0])
    """
    words = np.ascontiguousarray(digests).view(">u8")
    order = np.lexsort((words[:, 1], words[:, 0]))
    is_later = np.zeros(len(order), dtype=bool)  # than the first of all: begins another content
    for column in words.T:
        values = column[order]
        is_later[1:] |= values[1:] != values[:-1]
        del values
    counts = is_later.astype(np.int32 if len(order) < 2**31 else np.int64)
    numbers = np.empty_like(counts)
    numbers[order] = np.cumsum(counts, out=counts)
    del counts
    is_later[:1] = True
    return numbers, order[is_later]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The contents that a head was not trained on because featx kept them for validation.

    A head and its model carry them, so that they can be scored on their source again: the first 6
    bytes of each content hash, ascending, ``(M,)`` uint64.
    """

    prefixes: np.ndarray

    @classmethod
    def of(cls, digests: np.ndarray) -> Self:
        """Return a set of content hashes, ``(M, 16)`` uint8."""
        return cls(np.unique(_prefixes(digests)))

    @classmethod
    def from_text(cls, text: Any, *, path: Path) -> Self:
        """Return the set that ``to_text`` wrote into a file."""
        try:
            content = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
            return cls.of(content.reshape(-1, _PREFIX_BYTES))
        except (TypeError, ValueError) as err:
            raise ArtifactInvalid(
                path, f"'{path}' does not list the images that were held out as featx does ({err})."
            ) from err

    def to_text(self) -> str:
        """Return the set as text, 8 characters for each content."""
        content = self.prefixes.astype(">u8").view(np.uint8).reshape(-1, 8)
        return base64.b64encode(content[:, -_PREFIX_BYTES:].tobytes()).decode()

    def contains(self, digests: np.ndarray) -> np.ndarray:
        """Return which content hashes ``(n, 16)`` are in the set, ``(n,)`` bool."""
        return np.isin(_prefixes(digests), self.prefixes)


def _prefixes(digests: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(digests), 8), dtype=np.uint8)
    padded[:, -_PREFIX_BYTES:] = digests[:, :_PREFIX_BYTES]
    return padded.view(">u8")[:, 0].astype(np.uint64)
