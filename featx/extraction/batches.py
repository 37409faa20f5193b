"""Batches on their way through an extraction: read, then computed, in this process or in others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from featx.backbones.engines import Engine
from featx.backbones.spec import INPUT
from featx.errors import ImageError
from featx.extraction.crops import KEPT_BYTES, CropMaker, Decoders, Image, Spent
from featx.extraction.options import ResolvedOptions
from featx.features.records import require_finite, require_float16, require_no_underflow
from featx.images.decode import content_digest, is_animated
from featx.images.preprocess import PreprocessSpec
from featx.images.reading import read_together
from featx.images.sources import ImageSource
from featx.images.views import ViewsSpec


@dataclass
class ImageBatch:
    """Images in source order, and the rows of those that are new and usable.

    They are ``(m, num_versions, D)``, in the journal's type; of several outputs side by side.
    """

    images: list[Image]
    rows: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 0)))
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class Work:
    """How rows are made of a source's images; it can be sent to another process.

    Attributes:
        preprocess: From decoded images to crops.
        views: Drawn beside the evaluation view of each image; None without any.
        size: Crops in a forward pass.
        length: Values of a row, of all outputs together.
        dtype: Of the rows in a journal.
        cut: Where the backbone ends.
        options: Of the extraction.
    """

    preprocess: PreprocessSpec
    views: ViewsSpec | None
    size: int
    length: int
    dtype: str
    cut: str | None
    options: ResolvedOptions

    @property
    def step(self) -> int:
        """Images of a batch, whose versions count."""
        return max(1, self.size // (1 + (self.views.num_views if self.views else 0)))

    def maker(self, source: ImageSource, decoders: Decoders | None = None) -> CropMaker:
        max_pixels = self.options.max_pixels
        return CropMaker(source, self.preprocess, max_pixels, decoders, self.views)


class Cluster(Protocol):
    """Reads and computes batches in processes of other machines."""

    @property
    def num_threads(self) -> int:
        """Threads that compute, once all workers are there."""

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of processors that compute."""

    def batches(
        self,
        source: ImageSource,
        positions: np.ndarray,
        work: Work,
        mark: Callable[[ImageBatch], None],
    ) -> Generator[ImageBatch, None, None]:
        """Yield batches of one or more times ``work.step`` images, in order, with rows.

        ``mark`` is called with each, in order too, once it is read: it says which images are new.
        """


@dataclass(frozen=True)
class Computer:
    """Makes the rows of batches, in any thread."""

    engine: Engine
    maker: CropMaker
    work: Work

    def compute(self, batch: ImageBatch) -> ImageBatch:
        """Return a batch with the rows of its new images; others get their reason."""
        wanted = [image for image in batch.images if image.is_new and not image.reason]
        crops, versions = self.maker.crops(wanted, batch.spent), self.maker.num_versions
        for image in batch.images:
            image.content = None
        size, length = self.work.size, self.work.length
        values = np.empty((len(crops), length), self.work.dtype)
        names = [image.sample_id for image in wanted if not image.reason for _ in range(versions)]
        for start in range(0, len(crops), size):
            with batch.spent.on("inference"):
                found = self.engine.features(crops[start : start + size])
            found = found.reshape(len(found), length)
            _check(found, names[start : start + size], self.work)
            values[start : start + size] = found
        batch.rows = values.reshape(-1, versions, length)
        return batch


def read_batch(
    source: ImageSource, positions: Sequence[int], *, kept: int | None = None
) -> ImageBatch:
    """Return some images of a source with the hashes of their contents, or why they have none.

    ``kept`` bytes of files are kept; what is beyond is read again when it is decoded.
    """
    batch, left = ImageBatch([]), KEPT_BYTES if kept is None else kept
    with batch.spent.on("read"):
        for position, stamp, content in read_together(source, positions):
            image = Image(position, source.samples[position].sample_id, stamp)
            batch.images.append(image)
            if isinstance(content, ImageError):
                image.fail(content)
                continue
            image.digest = content_digest(content)
            if isinstance(content, bytes):  # an array is of what is in memory already
                image.is_animated = is_animated(content)
                left -= len(content)
            image.content = content if left >= 0 else None
    return batch


def _check(features: np.ndarray, sample_ids: Sequence[str], work: Work) -> None:
    """Check that features ``(m, size)``, one for each name, are fit to be stored."""
    if work.cut == INPUT:
        return
    require_finite(features, sample_ids)
    if work.options.precision == "fp16":
        require_no_underflow(features)
    if work.options.dtype == "float16":
        require_float16(features, sample_ids, cut=work.cut)
