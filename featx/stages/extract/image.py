"""One image on its way through an extraction."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import numpy as np

from featx.errors import ImageError
from featx.images.sources import NO_FILE, Stamp
from featx.stages.extract.contents import NO_DIGEST

_LASTING = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO),
)
"""What the system says of a file that stays as it is until somebody changes it."""

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
    """

    position: int
    sample_id: str
    stamp: Stamp
    digest: bytes = NO_DIGEST
    content: bytes | np.ndarray | None = None
    is_animated: bool = False
    is_new: bool = True
    reason: str = ""

    @property
    def num_bytes(self) -> int:
        """Of the content that is at hand."""
        if isinstance(self.content, np.ndarray):
            return self.content.nbytes
        return len(self.content or b"")

    def fail(self, err: ImageError) -> None:
        """Note why it cannot be used; what was the system's fault is to be tried again."""
        self.reason = err.reason
        cause = err.__cause__
        if isinstance(cause, OSError) and cause.errno not in (None, *_LASTING):
            self.stamp = NO_FILE  # no file looks like that, so it counts as changed next time
