"""An image that an extraction left out, as a header lists it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from featx.images.decode import DIGEST_BYTES
from featx.images.sources import Stamp


class SkippedImage(NamedTuple):
    """An image without a row.

    Its digest is zeros where its content is not the reason, as of a file that cannot be read, and
    in files of version 2.
    """

    sample_id: str
    reason: str
    stamp: Stamp
    digest: bytes = bytes(DIGEST_BYTES)

    @property
    def is_permanent(self) -> bool:
        """Whether the reason lies in its content, so that it is not tried again."""
        return any(self.digest)

    def to_list(self) -> list[Any]:
        """Return JSON values, for the header."""
        return [self.sample_id, self.reason, list(self.stamp), self.digest.hex()]

    @classmethod
    def of_list(cls, values: Sequence[Any]) -> Self:
        """Return the image of ``to_list``; without a digest in files of version 2."""
        sample_id, reason, stamp, *digest = values
        return cls(sample_id, reason, Stamp(*stamp), *map(bytes.fromhex, digest))
