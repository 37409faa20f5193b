"""Batches of images, read, decoded and, where the engine lets several threads, run: in order.

reading threads         files → bytes and content hashes                   a few batches ahead
the caller's thread     which contents are new, in order
workers                 bytes → pixels → squares (→ features)              a batch each

Beside a GPU each worker has a process that makes the squares.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from featx.backbones.engines import Engine
from featx.errors import ImageError
from featx.images.decode import content_digest, decoded, is_animated
from featx.images.decoders import Decoders
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.read_ahead import map_ahead, read_ahead
from featx.images.sources import NO_FILE, ImageSource, Stamp
from featx.stages.extract.contents import NO_DIGEST, Contents
from featx.stages.extract.profile import Spent

_LASTING = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO),
)
"""What the system says of a file that stays as it is until somebody changes it."""
_MIN_READERS = 2
_WAITING = 2  # batches between two steps
_KEPT_BYTES = 8 * 2**20
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

    def fail(self, err: ImageError) -> None:
        """Note why it cannot be used; what was the system's fault is to be tried again."""
        self.reason = err.reason
        cause = err.__cause__
        if isinstance(cause, OSError) and cause.errno not in (None, *_LASTING):
            self.stamp = NO_FILE  # no file looks like that, so it counts as changed next time


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
        preprocessing: From pixels to the network's input.
        max_pixels: Images with more are not used.
        batch_size: Images of a batch, whether they can be used or not.
        workers: Threads.
        decoders: Make the squares; None leaves that to the threads.
    """

    engine: Engine
    source: ImageSource
    preprocessing: PreprocessSpec
    max_pixels: int
    batch_size: int
    workers: int
    decoders: Decoders | None = None

    def batches(
        self, positions: np.ndarray, contents: Contents
    ) -> Generator[ImageBatch, None, None]:
        """Yield the batches of images at ``positions``, ``(n,)`` int64, with their features.

        Raises:
            BackboneError: The engine fails.
        """
        size = self.batch_size
        chunks = [positions[i : i + size].tolist() for i in range(0, len(positions), size)]
        readers = max(_MIN_READERS, self.workers)
        read = read_ahead(
            lambda i: self._read(chunks[i]), len(chunks), workers=readers, window=_WAITING
        )

        def marked() -> Iterator[ImageBatch]:
            for future in read:
                batch = future.result()
                for image in batch.images:
                    image.is_new = contents.is_new(image.digest)
                yield batch

        prepared = map_ahead(self._prepare, marked(), workers=self.workers, window=_WAITING)
        with closing(read), closing(prepared):
            for future in prepared:
                batch = future.result()
                if not self.engine.is_parallel:
                    self._run(batch)
                yield batch

    def _read(self, positions: list[int]) -> ImageBatch:
        batch, room = ImageBatch([]), _KEPT_BYTES
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
        size, count = self.preprocessing.image_size, 0
        squares = np.empty((len(wanted), size, size, 3), dtype=np.uint8)
        are_encoded = not any(isinstance(image.content, np.ndarray) for image in wanted)
        if self.decoders and are_encoded:
            made = self._squares_by(self.decoders, wanted, batch.spent)
        else:
            made = self._squares(wanted, batch.spent)
        for some in made:
            squares[count : count + len(some)] = some
            count += len(some)
        for image in batch.images:
            image.content = None
        batch.pixels = squares[:count]
        if self.engine.is_parallel:
            self._run(batch)
        return batch

    def _squares(self, images: Sequence[Image], spent: Spent) -> Iterator[np.ndarray]:
        """Yield the squares of those that can be used, ``(1, size, size, 3)`` uint8 each."""
        for image in images:
            try:
                content = self._content(image, spent)
                with spent.on("decode"):
                    pixels = decoded(
                        content,
                        sample_id=image.sample_id,
                        max_pixels=self.max_pixels,
                        preprocess=self.preprocessing,
                    )
                with spent.on("preprocess"):
                    square = preprocess(pixels, self.preprocessing)
            except ImageError as err:
                image.fail(err)
                continue
            yield square[None]

    def _squares_by(
        self, decoders: Decoders, images: Sequence[Image], spent: Spent
    ) -> Iterator[np.ndarray]:
        """Yield the same, ``(m, size, size, 3)`` uint8, made by processes."""
        for some in self._handfuls(images, spent):
            made = decoders.squares([content for _, content in some])
            for number, reason in made.reasons.items():
                image = some[number][0]
                image.fail(ImageError(image.sample_id, reason))
            spent.seconds["decode"] += made.decode_seconds
            spent.seconds["preprocess"] += made.preprocess_seconds
            yield made.pixels

    def _handfuls(
        self, images: Sequence[Image], spent: Spent
    ) -> Iterator[list[tuple[Image, bytes]]]:
        """Yield images with their contents, as many at once as may be kept."""
        some, room = list[tuple[Image, bytes]](), _KEPT_BYTES
        for image in images:
            try:
                content = self._content(image, spent)
            except ImageError as err:
                image.fail(err)
                continue
            assert isinstance(content, bytes)
            some.append((image, content))
            room -= len(content)
            if room <= 0:
                yield some
                some, room = [], _KEPT_BYTES
        if some:
            yield some

    def _content(self, image: Image, spent: Spent) -> bytes | np.ndarray:
        """Return what an image is decoded from, read once more where it was not kept."""
        content, image.content = image.content, None
        if content is None:
            with spent.on("read"):
                content = self.source.read(image.position)
                if content_digest(content) != image.digest:
                    raise ImageError(image.sample_id, "the file changes while it is read.")
        return content

    def _run(self, batch: ImageBatch) -> None:
        if batch.pixels is not None and len(batch.pixels):
            with batch.spent.on("inference"):
                batch.features = self.engine.features(batch.pixels)
        batch.pixels = None
