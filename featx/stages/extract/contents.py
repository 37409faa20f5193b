"""Images with the same content: which of them the backbone has to see, and what they are called."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from featx.features.known import KnownRows
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import ImageSource

log = logging.getLogger(__name__)

NO_DIGEST = bytes(DIGEST_BYTES)
"""Of an image that could not be read."""


class Failure(NamedTuple):
    """Why a content has no row, and whether the reason lies in the content itself."""

    reason: str
    is_permanent: bool


class Contents:
    """What became of each content: the number of its row, or the reason why it has none.

    It takes some 200 bytes for each. Pixels that come without a file have one shape in a source,
    so that those with the same hash are the same.

    Args:
        known: The rows so far.
    """

    def __init__(self, known: KnownRows) -> None:
        self._outcomes: dict[bytes, int | Failure | None] = {}
        for block in known.images():
            digests = block.digests.tobytes()
            for number, row in enumerate(block.rows.tolist()):
                if row >= 0:
                    start = number * DIGEST_BYTES
                    self._outcomes[digests[start : start + DIGEST_BYTES]] = row

    def is_new(self, digest: bytes) -> bool:
        """Return whether a content was never seen; from now on it was."""
        if digest == NO_DIGEST:
            return True
        is_new = digest not in self._outcomes
        if is_new:
            self._outcomes[digest] = None
        return is_new

    def settle(self, digest: bytes, outcome: int | Failure) -> None:
        """Note what became of a new content."""
        if digest != NO_DIGEST:
            self._outcomes[digest] = outcome

    def outcome(self, digest: bytes) -> int | Failure:
        """Return what became of a content that is settled."""
        outcome = self._outcomes[digest]
        if outcome is None:
            raise KeyError(digest)
        return outcome


def warn_of_two_labels(images: ImageSource, rows: np.ndarray, digests: np.ndarray) -> None:
    """Say how many contents have several labels, and which are the first two images of one.

    Args:
        images: The source.
        rows: Number of each sample's row, -1 where it has none; ``(num_samples,)`` int64.
        digests: Content hash of each row, ``(num_rows, 16)`` uint8.
    """
    samples = images.samples
    labels = np.fromiter((sample.label for sample in samples), np.int64, len(samples))
    positions = np.flatnonzero((rows >= 0) & (labels >= 0))
    contents = np.ascontiguousarray(digests[rows[positions]]).view(np.uint64)  # (n, 2)
    order = np.lexsort((labels[positions], *contents.T))
    positions, contents = positions[order], contents[order]
    is_same = (contents[1:] == contents[:-1]).all(axis=1)
    differs = np.flatnonzero(is_same & (labels[positions[1:]] != labels[positions[:-1]]))
    if not len(differs):
        return
    count = len(np.unique(np.cumsum(~is_same)[differs]))
    pair = min(sorted(positions[i : i + 2].tolist()) for i in differs.tolist())
    one, two = (f"'{samples[i].sample_id}' ({images.classes[samples[i].label]})" for i in pair)
    log.warning(
        "%s: %s and %s have the same content. Keep the right one.",
        "1 image has several labels" if count == 1 else f"{count:,} images have several labels",
        *(one, two),
    )
