"""Images with the same content: which of them the backbone has to see."""

from __future__ import annotations

from typing import NamedTuple

from featx.features.existing import KnownRows
from featx.images.decode import DIGEST_BYTES, NO_DIGEST


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
