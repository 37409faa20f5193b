"""Contents of images, numbered by their hashes."""

from __future__ import annotations

import numpy as np


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
