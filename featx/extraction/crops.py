"""From the encoded images of a batch to the crops that the backbone sees.

Threads of one process share Python's lock, which Pillow needs many times an image, and each wait
for it costs. So the smaller the images, the fewer threads should decode at once; and beside a GPU,
where decoding is all that the cores do, processes do it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Semaphore

import numpy as np

from featx.errors import ImageError
from featx.images.decode import NO_DIGEST, content_digest, decoded
from featx.images.decoders import NO_MEMORY, Decoders
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.sources import ImageSource, Stamp

KEPT_BYTES = 8 * 2**20
"""Kept of a batch's files. Files beyond it are read again when they are decoded, so that the memory
does not grow with their size."""
_SMALL_BYTES = 8 * 2**10
"""Up to which Pillow is busier in Python than with pixels, as with a JPEG of 150×150 pixels. Two
threads then decode 1.1 times as fast when they do it one at a time
(benchmarks/small_images.py). Beyond, it would be too few for more cores."""
_DECODING = 8
"""Threads that decode larger images at once. More of them are slower, however many cores there are:
16 cores decode 1,210 photos of 500×375 a second with eight threads, 1,108 with sixteen."""
STEPS = ("read", "decode", "preprocess", "inference", "journal")


@dataclass
class Image:
    """An image on its way through an extraction.

    Attributes:
        position: In the source.
        stamp: Of its file, taken before it was read.
        content: As long as it is needed; None where it has to be read again.
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
    def recorded_digest(self) -> bytes:
        """The digest, but for an image that the next run is to try again."""
        return self.digest if self.is_permanent else NO_DIGEST

    def fail(self, err: ImageError) -> None:
        self.reason, self.is_permanent = err.reason, err.is_permanent


@dataclass
class Spent:
    """Seconds by step, of one thread at a time."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @contextmanager
    def on(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - start

    def add(self, other: Spent) -> None:
        for step, seconds in other.seconds.items():
            self.seconds[step] += seconds


@dataclass(frozen=True)
class CropMaker:
    """Makes the crops of a source's images, in the calling thread or by ``decoders``."""

    source: ImageSource
    spec: PreprocessSpec
    max_pixels: int
    decoders: Decoders | None = None
    _small: Semaphore = field(default_factory=Semaphore, init=False)
    _large: Semaphore = field(default_factory=lambda: Semaphore(_DECODING), init=False)

    def crops(self, images: Sequence[Image], spent: Spent) -> np.ndarray:
        """Return the crops of the images that can be used, ``(m, size, size, 3)`` uint8.

        The others get their reason; all of them lose their content.
        """
        size = self.spec.image_size
        crops = np.empty((len(images), size, size, 3), dtype=np.uint8)
        are_encoded = not any(isinstance(image.content, np.ndarray) for image in images)
        if self.decoders and are_encoded:
            return crops[: self._fill_by_processes(self.decoders, crops, images, spent)]
        with self._semaphore_for(images):
            return crops[: self._fill(crops, images, spent)]

    def _semaphore_for(self, images: Sequence[Image]) -> Semaphore:
        sizes = [
            math.inf
            if image.content is None
            else len(image.content)
            if isinstance(image.content, bytes)
            else image.content.nbytes
            for image in images
        ]
        return self._small if sum(sizes) <= _SMALL_BYTES * len(sizes) else self._large

    def _fill(self, crops: np.ndarray, images: Sequence[Image], spent: Spent) -> int:
        count = 0
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
                    crops[count] = preprocess(pixels, self.spec)
                count += 1
            except ImageError as err:
                image.fail(err)
            except MemoryError:
                image.fail(ImageError(image.sample_id, NO_MEMORY, is_permanent=False))
        return count

    def _fill_by_processes(
        self, decoders: Decoders, crops: np.ndarray, images: Sequence[Image], spent: Spent
    ) -> int:
        count = 0
        for some in self._in_groups(images, decoders.batch_size, spent):
            outcome = decoders.crops([content for _, content in some], crops[count:])
            for number, error in outcome.errors.items():
                some[number][0].fail(error)
            spent.seconds["decode"] += outcome.decode_seconds
            spent.seconds["preprocess"] += outcome.preprocess_seconds
            count += outcome.num_crops
        return count

    def _in_groups(
        self, images: Sequence[Image], most: int, spent: Spent
    ) -> Iterator[list[tuple[Image, bytes]]]:
        """Yield images with their contents, ``most`` at once or as many as may be kept."""
        some, left = list[tuple[Image, bytes]](), KEPT_BYTES
        for image in images:
            try:
                content = self._content(image, spent)
            except ImageError as err:
                image.fail(err)
                continue
            assert isinstance(content, bytes)
            some.append((image, content))
            left -= len(content)
            if left <= 0 or len(some) == most:
                yield some
                some, left = [], KEPT_BYTES
        if some:
            yield some

    def _content(self, image: Image, spent: Spent) -> bytes | np.ndarray:
        """Return the content of an image, read once more where it was not kept."""
        content, image.content = image.content, None
        if content is None:
            with spent.on("read"):
                content = self.source.read(image.position)
                if content_digest(content) != image.digest:
                    reason = "the file changes while it is read."
                    raise ImageError(image.sample_id, reason, is_permanent=False)
        return content
