"""From encoded images to the squares that the backbone sees, by as many threads as are fast.

Threads of one process take turns at what Pillow needs of Python's lock, and each time one of them
has to be woken. So the smaller the images, the fewer threads should decode at once; and beside a
GPU, where decoding is all that the cores do, processes do it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Semaphore

import numpy as np

from featx.errors import ImageError
from featx.extraction.image import KEPT_BYTES, Image
from featx.extraction.profile import Spent
from featx.images.decode import content_digest, decoded
from featx.images.decoders import NO_MEMORY, Decoders
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.sources import ImageSource

_SMALL_BYTES = 8 * 2**10
"""Up to which Pillow is busier in Python than with pixels, as with a JPEG of 150 pixels squared.
Threads then only take each other's turn, and with two of them one at a time is 1.1 times as fast
(benchmarks/turns.py). Beyond, it would be too few for more cores."""
_DECODING = 8
"""Threads that decode larger images at once. More of them are slower, however many cores there are:
16 cores decode 1,210 photos of 500×375 a second with eight threads, 1,108 with sixteen."""


@dataclass(frozen=True)
class SquareMaker:
    """Makes the squares of a batch's images.

    Attributes:
        source: The images.
        spec: From pixels to squares.
        max_pixels: Images with more are not used.
        decoders: Make them; None leaves that to the thread that asks.
    """

    source: ImageSource
    spec: PreprocessSpec
    max_pixels: int
    decoders: Decoders | None = None
    _small: Semaphore = field(default_factory=Semaphore, init=False)
    _large: Semaphore = field(default_factory=lambda: Semaphore(_DECODING), init=False)

    def squares(self, images: Sequence[Image], spent: Spent) -> np.ndarray:
        """Return the squares of those that can be used, ``(m, size, size, 3)`` uint8.

        Args:
            images: Get the reason where one cannot, and lose their content.
            spent: Gets the time that it took.

        Raises:
            SourceError: A process that decodes images is gone.
        """
        are_encoded = not any(isinstance(image.content, np.ndarray) for image in images)
        if self.decoders and are_encoded:
            return self._by_processes(self.decoders, images, spent)
        with self._turn(images):
            return self._here(images, spent)

    def _turn(self, images: Sequence[Image]) -> Semaphore:
        """Return what lets as many threads decode such images at once as is fast."""
        sizes = [math.inf if image.content is None else image.num_bytes for image in images]
        return self._small if sum(sizes) <= _SMALL_BYTES * len(sizes) else self._large

    def _here(self, images: Sequence[Image], spent: Spent) -> np.ndarray:
        squares, count = self._empty(images), 0
        for image in images:
            try:
                content = self._content(image, spent)
                with spent.on("decode"):
                    pixels = decoded(
                        content,
                        sample_id=image.sample_id,
                        max_pixels=self.max_pixels,
                        preprocess=self.spec,
                    )
                with spent.on("preprocess"):
                    squares[count] = preprocess(pixels, self.spec)
                count += 1
            except ImageError as err:
                image.fail(err)
            except MemoryError:
                image.fail(ImageError(image.sample_id, NO_MEMORY, is_permanent=False))
        return squares[:count]

    def _by_processes(
        self, decoders: Decoders, images: Sequence[Image], spent: Spent
    ) -> np.ndarray:
        squares, count = self._empty(images), 0
        for some in self._handfuls(images, decoders.batch_size, spent):
            outcome = decoders.squares([content for _, content in some], squares[count:])
            for number, error in outcome.errors.items():
                some[number][0].fail(error)
            spent.seconds["decode"] += outcome.decode_seconds
            spent.seconds["preprocess"] += outcome.preprocess_seconds
            count += outcome.num_squares
        return squares[:count]

    def _empty(self, images: Sequence[Image]) -> np.ndarray:
        size = self.spec.image_size
        return np.empty((len(images), size, size, 3), dtype=np.uint8)

    def _handfuls(
        self, images: Sequence[Image], most: int, spent: Spent
    ) -> Iterator[list[tuple[Image, bytes]]]:
        """Yield images with their contents, ``most`` at once or as many as may be kept."""
        some, room = list[tuple[Image, bytes]](), KEPT_BYTES
        for image in images:
            try:
                content = self._content(image, spent)
            except ImageError as err:
                image.fail(err)
                continue
            assert isinstance(content, bytes)
            some.append((image, content))
            room -= len(content)
            if room <= 0 or len(some) == most:
                yield some
                some, room = [], KEPT_BYTES
        if some:
            yield some

    def _content(self, image: Image, spent: Spent) -> bytes | np.ndarray:
        """Return what an image is decoded from, read once more where it was not kept."""
        content, image.content = image.content, None
        if content is None:
            with spent.on("read"):
                content = self.source.read(image.position)
                if content_digest(content) != image.digest:
                    reason = "the file changes while it is read."
                    raise ImageError(image.sample_id, reason, is_permanent=False)
        return content
