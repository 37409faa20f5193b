"""Batches of images, read, decoded and run, in order.

reading threads         files → bytes and content hashes                   a few batches ahead
the caller's thread     which contents are new, in order
workers                 bytes → pixels → squares → features                a batch each
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from featx.backbones.engines import Engine
from featx.errors import ImageError
from featx.extraction.crops import SquareMaker
from featx.extraction.deduplication import Contents
from featx.extraction.image import KEPT_BYTES, Image
from featx.extraction.profile import Spent
from featx.images.decode import content_digest, is_animated
from featx.images.reading import map_ahead
from featx.images.sources import ImageSource

_MIN_READERS = 2
_WAITING = 2  # batches between two steps


@dataclass
class ImageBatch:
    """Some images, and what the backbone makes of those that are new and can be used.

    Attributes:
        images: In source order.
        pixels: ``(m, size, size, 3)`` uint8.
        features: ``(m, num_features)`` float32, once the backbone saw them.
        spent: Time by step.
    """

    images: list[Image]
    pixels: np.ndarray | None = None
    features: np.ndarray | None = None
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class Loader:
    """Makes batches of a source's images.

    Attributes:
        engine: Runs the backbone.
        source: The images.
        maker: From contents to squares.
        batch_size: Images of a batch, whether they can be used or not.
        workers: Threads.
    """

    engine: Engine
    source: ImageSource
    maker: SquareMaker
    batch_size: int
    workers: int

    def batches(
        self, positions: np.ndarray, contents: Contents
    ) -> Generator[ImageBatch, None, None]:
        """Yield the batches of images at ``positions``, ``(n,)`` int64, with their features.

        Raises:
            BackboneError: The engine fails.
            SourceError: A process that decodes images is gone.
        """
        size = self.batch_size
        chunks = [positions[i : i + size].tolist() for i in range(0, len(positions), size)]
        readers = max(_MIN_READERS, self.workers)
        read = map_ahead(self._read, chunks, workers=readers, window=_WAITING)

        def marked() -> Iterator[ImageBatch]:
            for future in read:
                batch = future.result()
                for image in batch.images:
                    image.is_new = contents.is_new(image.digest)
                yield batch

        prepared = map_ahead(self._prepare, marked(), workers=self.workers, window=_WAITING)
        with closing(read), closing(prepared):
            for future in prepared:
                yield future.result()

    def _read(self, positions: list[int]) -> ImageBatch:
        batch, room = ImageBatch([]), KEPT_BYTES
        with batch.spent.on("read"):
            for position in positions:
                # The stamp comes before the content: a change in between shows next time.
                stamp = self.source.stamp(position)
                image = Image(position, self.source.samples[position].sample_id, stamp)
                batch.images.append(image)
                try:
                    content = self.source.read(position)
                except ImageError as err:
                    image.fail(err)
                    continue
                image.digest = content_digest(content)
                image.is_animated = isinstance(content, bytes) and is_animated(content)
                if isinstance(content, bytes):  # an array is of what is in memory already
                    room -= len(content)
                image.content = content if room >= 0 else None
        return batch

    def _prepare(self, batch: ImageBatch) -> ImageBatch:
        wanted = [image for image in batch.images if image.is_new and not image.reason]
        batch.pixels = self.maker.squares(wanted, batch.spent)
        for image in batch.images:
            image.content = None
        if len(batch.pixels):
            with batch.spent.on("inference"):
                batch.features = self.engine.features(batch.pixels)
        batch.pixels = None
        return batch
