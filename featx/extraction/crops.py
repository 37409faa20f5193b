"""From the encoded images of a batch to the crops that the backbone sees.

Threads of one process share Python's lock, which Pillow needs some twelve times an image, and each
wait for it costs. So the smaller the images, the fewer threads should decode at once; and beside a
GPU, where decoding is all that the cores do, processes do it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Semaphore

import numpy as np

from featx import system
from featx.errors import ImageError, SourceError
from featx.images.decode import DIGEST_BYTES, NO_DIGEST, content_digest, decoded
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.sources import ImageSource, Stamp
from featx.images.views import ViewsSpec, draw_view, render_view
from featx.isolation.processes import Answer, Processes

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
_NO_MEMORY = "there is too little memory to resize it."
STEPS = ("read", "decode", "preprocess", "inference", "journal")


@dataclass(slots=True)
class Image:
    """An image on its way through an extraction; ``reason`` says why it cannot be used.

    Its content is kept as long as it is needed, or is None where it has to be read again.
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
        """The digest; none for an image that the next run is to try again."""
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
    """Makes the crops of a source's images, in the calling thread or by ``decoders``.

    With ``views`` an image has several versions: the evaluation view, then each view.
    """

    source: ImageSource
    spec: PreprocessSpec
    max_pixels: int
    decoders: Decoders | None = None
    views: ViewsSpec | None = None
    _small: Semaphore = field(default_factory=Semaphore, init=False)
    _large: Semaphore = field(default_factory=lambda: Semaphore(_DECODING), init=False)

    @property
    def num_versions(self) -> int:
        return 1 if self.views is None else 1 + self.views.num_views

    def crops(self, images: Sequence[Image], spent: Spent) -> np.ndarray:
        """Return the crops of usable images; others get their reason.

        They are ``(m · num_versions, size, size, 3)``, the versions of an image side by side.
        """
        size = self.spec.image_size
        crops = np.empty((len(images) * self.num_versions, size, size, 3), dtype=np.uint8)
        are_encoded = not any(isinstance(image.content, np.ndarray) for image in images)
        if self.decoders and are_encoded:
            return crops[: self._fill_by_processes(self.decoders, crops, images, spent)]
        with self._semaphore_for(images):
            return crops[: self._fill(crops, images, spent)]

    def _semaphore_for(self, images: Sequence[Image]) -> Semaphore:
        contents = [image.content for image in images]
        sizes = [
            len(content) if isinstance(content, bytes) else getattr(content, "nbytes", math.inf)
            for content in contents
        ]
        return self._small if sum(sizes) <= _SMALL_BYTES * len(sizes) else self._large

    def _fill(self, crops: np.ndarray, images: Sequence[Image], spent: Spent) -> int:
        renderer, count = Renderer(self.spec, self.max_pixels, self.views), 0
        for image in images:
            try:
                content = self._content(image, spent)
                into = crops[count : count + self.num_versions]
                renderer.fill(into, content, image.digest, image.sample_id, spent)
                count += len(into)
            except ImageError as err:
                image.fail(err)
        return count

    def _fill_by_processes(
        self, decoders: Decoders, crops: np.ndarray, images: Sequence[Image], spent: Spent
    ) -> int:
        count, most = 0, max(1, decoders.batch_size // self.num_versions)
        for some in self._in_groups(images, most, spent):
            digests = [image.digest for image, _ in some] if self.views else None
            outcome = decoders.crops([content for _, content in some], crops[count:], digests)
            for number, error in outcome.errors.items():
                some[number][0].fail(error)
            spent.add(outcome.spent)
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


@dataclass(frozen=True)
class Renderer:
    """Makes the versions of one image, which is decoded once."""

    spec: PreprocessSpec
    max_pixels: int
    views: ViewsSpec | None = None

    def fill(
        self,
        into: np.ndarray,
        content: bytes | np.ndarray,
        digest: bytes,
        sample_id: str,
        spent: Spent,
    ) -> None:
        """Overwrite ``into``, ``(n, size, size, 3)``, by the evaluation view and views 1 to n-1.

        What is drawn for a view depends on the digest of the content alone.
        """
        spec = self.spec
        try:
            with spent.on("decode"):
                image = decoded(
                    content, sample_id=sample_id, max_pixels=self.max_pixels, preprocess=spec
                )
            with spent.on("preprocess"):
                into[0] = preprocess(image, spec)
                if self.views is None or len(into) == 1:
                    return
                pixels = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
                width, height = pixels
                for number in range(1, len(into)):
                    view = draw_view(self.views, digest, number, height=height, width=width)
                    into[number] = render_view(image, view, spec)
        except MemoryError as err:
            raise ImageError(sample_id, _NO_MEMORY, is_permanent=False) from err


@dataclass(frozen=True)
class Outcome:
    """Number of crops of some encoded images, and errors by image number."""

    num_crops: int
    errors: dict[int, ImageError]
    spent: Spent


class Decoders:
    """Processes that make crops of encoded images, at most ``batch_size`` crops at once.

    Files go to a process through its pipe. Crops come back in memory that all of them share:
    through the pipe they would be copied four times, a part at a time.
    """

    def __init__(
        self,
        spec: PreprocessSpec,
        max_pixels: int,
        *,
        batch_size: int,
        workers: int,
        views: ViewsSpec | None = None,
    ) -> None:
        shape = (workers, batch_size, spec.image_size, spec.image_size, 3)
        settings = {"spec": spec.to_dict(), "max_pixels": max_pixels, "shape": shape}
        settings["views"] = views and views.to_dict()
        self._num_versions = 1 + (views.num_views if views else 0)
        self.batch_size = batch_size
        with _memory(math.prod(shape)) as descriptor:
            self._shared = _shared(descriptor, shape)
            self._processes = Processes(
                f"{__name__}:begin",
                workers * [[json.dumps(settings | {"descriptor": descriptor}).encode()]],
                names=workers * ["that decodes images"],
                error=SourceError,
                advice="Run the command again to resume; with fewer workers if the machine ran out "
                "of memory",
                descriptors=[descriptor],
            )
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(workers):
            self._free.put(number)

    def crops(
        self, contents: Sequence[bytes], into: np.ndarray, digests: Sequence[bytes] | None = None
    ) -> Outcome:
        """Overwrite the first of ``into``, ``(n, size, size, 3)``, by crops of usable images.

        With their digests, 16 bytes each, every image has all of its versions side by side.
        """
        block, versions = self._free.get(), 1 if digests is None else self._num_versions
        try:
            head = [block, versions, len(contents), *map(len, contents)]
            digests = digests or [NO_DIGEST] * len(contents)
            message = [np.array(head, np.int64).tobytes(), *digests, *contents]
            answer = self._processes.ask(b"".join(message))
            reply = json.loads(bytes(answer))
            outcome = Outcome(
                versions * (len(contents) - len(reply["errors"])),
                {
                    int(number): ImageError("", reason, is_permanent=is_permanent)
                    for number, (reason, is_permanent) in reply["errors"].items()
                },
                Spent(reply["seconds"]),
            )
            into[: outcome.num_crops] = self._shared[block, : outcome.num_crops]
        finally:
            self._free.put(block)
        return outcome

    def close(self) -> None:
        self._processes.close()
        self._shared = np.empty(0, np.uint8)


@contextmanager
def _memory(num_bytes: int) -> Iterator[int]:
    """Yield a file in memory, whose pages live as long as they are mapped."""
    with _refused():
        descriptor = system.file_in_memory("crops")
    try:
        with _refused():
            os.truncate(descriptor, num_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


def _shared(descriptor: int, shape: Sequence[int]) -> np.ndarray:
    """Return the shared memory as ``(workers, batch_size, size, size, 3)`` uint8."""
    with _refused():
        memory = mmap.mmap(descriptor, 0)
    return np.frombuffer(memory, np.uint8).reshape(shape)


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise SourceError(f"Cannot share memory with processes: {err.strerror}.") from err


# --- in a process -------------------------------------------------------------------------------


def begin(receive: Callable[[], bytes]) -> Answer:
    """Receive the settings, and return what makes crops of encoded images."""
    settings = json.loads(receive())
    views = settings["views"] and ViewsSpec.from_dict(settings["views"])
    spec = PreprocessSpec.from_dict(settings["spec"])
    renderer = Renderer(spec, settings["max_pixels"], views)
    shared = _shared(settings["descriptor"], settings["shape"])

    def answer(message: bytes) -> bytes:
        block, versions, count = np.frombuffer(message, np.int64, 3).tolist()
        errors, spent = dict[int, tuple[str, bool]](), Spent()
        for number, (digest, content) in enumerate(_contents(message, count)):
            first = versions * (number - len(errors))
            into = shared[block, first : first + versions]
            try:
                renderer.fill(into, content, digest, "", spent)
            except ImageError as err:
                errors[number] = err.reason, err.is_permanent
        return json.dumps({"errors": errors, "seconds": spent.seconds}).encode()

    return answer


def _contents(message: bytes, count: int) -> Iterator[tuple[bytes, bytes]]:
    lengths = np.frombuffer(message, np.int64, count, offset=24).tolist()
    digests = 8 * (3 + count)
    start = digests + DIGEST_BYTES * count
    for number, length in enumerate(lengths):
        at = digests + DIGEST_BYTES * number
        yield message[at : at + DIGEST_BYTES], message[start : start + length]
        start += length
