"""Contents of images by their hashes: numbered, found among rows, a set of them as a text."""

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
_FEWEST_SLOTS = 1024
_NARROW_ROWS = 2**31
_AT_ONCE = 2**16
"""Rows that move to a larger table at a time, which bounds the memory beside the two."""
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, near 2⁶⁴ divided by the golden ratio


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


class RowsByContent:
    """The rows of an output by the hashes of their contents, in 24 to 33 bytes a row.

    The hashes lie in the order of the rows. A table with linear probing, at most half full, has the
    number of a row in each slot (D. E. Knuth, The Art of Computer Programming, volume 3, section
    6.4, algorithm L). Each call takes many hashes at once.

    >>> rows = RowsByContent()
    >>> rows.add(np.array([[3] * 16, [1] * 16], np.uint8), np.array([True, True]))
    >>> rows.find(np.array([[1] * 16, [2] * 16], np.uint8)).tolist()
    [1, -1]
    """

    def __init__(self) -> None:
        self._num_rows = self._num_found = 0
        self._words = np.empty((_FEWEST_SLOTS // 2, 2), np.uint64)
        self._table = np.full(_FEWEST_SLOTS, -1, np.int32)

    def __len__(self) -> int:
        return self._num_rows

    def add(self, digests: np.ndarray, which: np.ndarray) -> None:
        """Add the next rows; of several with one content the last is found.

        Args:
            digests: Of their contents, ``(n, 16)`` uint8.
            which: Those that can be found, ``(n,)`` bool.
        """
        first, end = self._num_rows, self._num_rows + len(digests)
        if end > len(self._words):  # in place: the memory is never there twice
            self._words.resize((end + end // 16, 2), refcheck=False)
        self._words[first:end] = _words_of(digests)
        rows = first + np.flatnonzero(which)
        self._num_rows, self._num_found = end, self._num_found + len(rows)
        self._make_room()
        self._enter(rows)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Return a row of each content ``(n, 16)`` uint8, -1 where none has it; ``(n,)`` int64."""
        found = np.full(len(digests), -1, np.int64)
        words, left = _words_of(digests), np.arange(len(digests))
        slots = self._slots_of(words)
        while len(left):
            there = self._table[slots]
            is_same = (there >= 0) & (self._words[there] == words).all(axis=1)
            found[left[is_same]] = there[is_same]
            going = (there >= 0) & ~is_same
            left, words, slots = left[going], words[going], self._next(slots[going])
        return found

    def _enter(self, rows: np.ndarray) -> None:
        words = self._words[rows]
        slots = self._slots_of(words)
        while len(rows):
            is_free = self._table[slots] < 0
            self._table[slots[is_free]] = rows[is_free]  # at one slot, the last of them
            is_same = (self._words[self._table[slots]] == words).all(axis=1)
            self._table[slots[is_same]] = rows[is_same]
            rows, words, slots = rows[~is_same], words[~is_same], self._next(slots[~is_same])

    def _make_room(self) -> None:
        size = len(self._table)
        while size < 2 * self._num_found:
            size *= 2
        dtype = np.int32 if self._num_rows <= _NARROW_ROWS else np.int64
        if size == len(self._table) and dtype == self._table.dtype:
            return
        before, self._table = self._table, np.full(size, -1, dtype)
        for start in range(0, len(before), _AT_ONCE):
            rows = before[start : start + _AT_ONCE]
            self._enter(rows[rows >= 0])

    def _slots_of(self, words: np.ndarray) -> np.ndarray:
        """Return where to look first, by the upper bits of a product: ``(n,)`` int64."""
        mixed = (words[:, 0] ^ (words[:, 1] * _MIX)) * _MIX
        return (mixed >> np.uint64(65 - len(self._table).bit_length())).astype(np.int64)

    def _next(self, slots: np.ndarray) -> np.ndarray:
        return (slots + 1) & (len(self._table) - 1)


def _words_of(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view(np.uint64)
