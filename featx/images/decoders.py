"""Decoding in processes, for where a GPU waits for the images.

Threads of one process contend for Python's lock, which Pillow and the files need some twelve times
an image. Eight of them decode as fast as they ever will, however many cores there are.

Files go to a process through its pipe. Crops come back in memory that all of them share: through
the pipe they would be copied four times, a part at a time.
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
from dataclasses import dataclass

import numpy as np

from featx.errors import ImageError, SourceError
from featx.images.decode import decoded
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.isolation.processes import Answer, Processes

NO_MEMORY = "there is too little memory to resize it."


@dataclass(frozen=True)
class Outcome:
    """Decoding of some encoded images: the errors by image number, and the time of the process."""

    num_crops: int
    errors: dict[int, ImageError]
    decode_seconds: float
    preprocess_seconds: float


class Decoders:
    """Processes that make crops of encoded images, as ``decoded`` and ``preprocess`` do.

    Args:
        spec: From pixels to crops.
        max_pixels: Images with more cannot be used.
        batch_size: Most images that a process is given at once.
        workers: Processes.

    Raises:
        SourceError: A process does not start, or there is no memory to share.
    """

    def __init__(
        self, spec: PreprocessSpec, max_pixels: int, *, batch_size: int, workers: int
    ) -> None:
        shape = (workers, batch_size, spec.image_size, spec.image_size, 3)
        settings = {"spec": spec.to_dict(), "max_pixels": max_pixels, "shape": shape}
        self.batch_size = batch_size
        with _memory(math.prod(shape)) as descriptor:
            self._shared = _shared(descriptor, shape)
            self._processes = Processes(
                f"{__name__}:begin",
                workers * [[json.dumps(settings | {"descriptor": descriptor}).encode()]],
                names=workers * ["that decodes images"],
                error=SourceError,
                advice="with fewer workers if the machine ran out of memory",
                descriptors=[descriptor],
            )
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(workers):
            self._free.put(number)

    def crops(self, contents: Sequence[bytes], into: np.ndarray) -> Outcome:
        """Make crops of encoded images, in one of the processes.

        Args:
            contents: At most ``batch_size``.
            into: ``(n, size, size, 3)`` uint8; its first are overwritten by the crops of those
                that can be used, in their order.

        Raises:
            SourceError: The process is gone.
        """
        block = self._free.get()
        try:
            head = [block, len(contents), *map(len, contents)]
            answer = self._processes.ask(b"".join([np.array(head, np.int64).tobytes(), *contents]))
            reply = json.loads(bytes(answer))
            outcome = Outcome(
                len(contents) - len(reply["errors"]),
                {
                    int(number): ImageError("", reason, is_permanent=is_permanent)
                    for number, (reason, is_permanent) in reply["errors"].items()
                },
                *reply["seconds"],
            )
            into[: outcome.num_crops] = self._shared[block, : outcome.num_crops]
        finally:
            self._free.put(block)
        return outcome

    def close(self) -> None:
        """End the processes, and give back the memory."""
        self._processes.close()
        self._shared = np.empty(0, np.uint8)


@contextmanager
def _memory(num_bytes: int) -> Iterator[int]:
    """Yield a file in memory, whose pages live as long as they are mapped."""
    with _refused():
        descriptor = os.memfd_create("crops")
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
    spec, max_pixels = PreprocessSpec.from_dict(settings["spec"]), settings["max_pixels"]
    shared = _shared(settings["descriptor"], settings["shape"])

    def answer(message: bytes) -> bytes:
        block, count = np.frombuffer(message, np.int64, 2).tolist()
        crops, errors, seconds = shared[block], dict[int, tuple[str, bool]](), [0.0, 0.0]
        for number, content in enumerate(_contents(message, count)):
            start = time.perf_counter()
            try:
                image = decoded(content, sample_id="", max_pixels=max_pixels, preprocess=spec)
                between = time.perf_counter()
                crops[number - len(errors)] = preprocess(image, spec)
            except ImageError as err:
                errors[number] = err.reason, err.is_permanent
                continue
            except MemoryError:
                errors[number] = NO_MEMORY, False
                continue
            seconds[0] += between - start
            seconds[1] += time.perf_counter() - between
        return json.dumps({"errors": errors, "seconds": seconds}).encode()

    return answer


def _contents(message: bytes, count: int) -> Iterator[bytes]:
    lengths = np.frombuffer(message, np.int64, count, offset=16).tolist()
    start = 8 * (2 + count)
    for length in lengths:
        yield message[start : start + length]
        start += length
