"""One image on its way through an extraction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.errors import ImageError
from featx.images.decode import NO_DIGEST
from featx.images.sources import Stamp

KEPT_BYTES = 8 * 2**20
"""Of a batch's files. What is beyond is read again when it is decoded, so that the memory does not
grow with the size of the files."""


@dataclass
class Image:
    """One image on its way.

    Attributes:
        position: In the source.
        sample_id: Its name there.
        stamp: Of its file, before it was read.
        digest: Of its content.
        content: As long as it is needed; None where it has to be read again.
        is_animated: It has more than one frame or page.
        is_new: No image before it has the same content.
        reason: Why it cannot be used.
        is_permanent: Whether the reason lies in its content.
    """

    position: int
    sample_id: str
    stamp: Stamp
    digest: bytes = NO_DIGEST
    content: bytes | np.ndarray | None = None
    is_animated: bool = False
    is_new: bool = True
    reason: str = ""
    is_permanent: bool = True

    @property
    def num_bytes(self) -> int:
        """Of the content that is at hand."""
        if isinstance(self.content, np.ndarray):
            return self.content.nbytes
        return len(self.content or b"")

    @property
    def recorded_digest(self) -> bytes:
        """The content hash, unless the image cannot be used for another reason than its content.

        Such an image is tried again by the next run.
        """
        return self.digest if self.is_permanent else NO_DIGEST

    def fail(self, err: ImageError) -> None:
        """Note why it cannot be used."""
        self.reason, self.is_permanent = err.reason, err.is_permanent
