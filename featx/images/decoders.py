"""Decoding in processes, for where something faster than a core waits for the images.

Threads of one process take turns at what Pillow and the files need of Python's lock: some twelve
times an image, and each time a thread has to be woken. Eight of them decode as fast as they ever
will, however many cores there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featx.errors import ImageError, SourceError
from featx.images.decode import decoded
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.processes import Answer, Processes


@dataclass(frozen=True)
class Squares:
    """What became of some encoded images.

    Attributes:
        pixels: Of those that can be used, in their order, ``(m, size, size, 3)`` uint8.
        reasons: By the number of the image, why it cannot be used.
        decode_seconds: Of the process.
        preprocess_seconds: Of the process.
    """

    pixels: np.ndarray
    reasons: dict[int, str]
    decode_seconds: float
    preprocess_seconds: float


class Decoders:
    """Processes that make squares of encoded images, as ``decoded`` and ``preprocess`` do.

    Args:
        spec: From pixels to squares.
        max_pixels: Images with more cannot be used.
        workers: Processes.

    Raises:
        SourceError: A process does not start.
    """

    def __init__(self, spec: PreprocessSpec, max_pixels: int, *, workers: int) -> None:
        order = json.dumps({"spec": spec.to_dict(), "max_pixels": max_pixels}).encode()
        self._size = spec.image_size
        self._processes = Processes(
            f"{__name__}:begin",
            workers * [[order]],
            names=workers * ["that decodes images"],
            error=SourceError,
            advice="with fewer --workers if the machine ran out of memory",
        )

    def squares(self, contents: Sequence[bytes]) -> Squares:
        """Return the squares of some encoded images, made by one of the processes.

        Raises:
            SourceError: The process is gone.
        """
        lengths = [len(content) for content in contents]
        head = np.array([len(contents), *lengths], np.int64).tobytes()
        answer = self._processes.ask(b"".join([head, *contents]))
        length = int.from_bytes(answer[:8], "little")
        told = json.loads(bytes(answer[8 : 8 + length]))
        pixels = np.frombuffer(answer[8 + length :], np.uint8)
        return Squares(
            pixels.reshape(-1, self._size, self._size, 3),
            {int(number): reason for number, reason in told["reasons"].items()},
            *told["seconds"],
        )


# --- in a process -------------------------------------------------------------------------------


def begin(receive: Callable[[], bytes]) -> Answer:
    """Take the spec, and return what makes squares of encoded images."""
    order = json.loads(receive())
    spec, max_pixels = PreprocessSpec.from_dict(order["spec"]), order["max_pixels"]

    def answer(message: bytes) -> bytes:
        parts, reasons, seconds = list[bytes](), dict[int, str](), [0.0, 0.0]
        for number, content in enumerate(_unpacked(message)):
            start = time.perf_counter()
            try:
                image = decoded(content, sample_id="", max_pixels=max_pixels, preprocess=spec)
                between = time.perf_counter()
                parts.append(preprocess(image, spec).tobytes())
            except ImageError as err:
                reasons[number] = err.reason
                continue
            seconds[0] += between - start
            seconds[1] += time.perf_counter() - between
        told = json.dumps({"reasons": reasons, "seconds": seconds}).encode()
        return b"".join([len(told).to_bytes(8, "little"), told, *parts])

    return answer


def _unpacked(message: bytes) -> Iterator[bytes]:
    count = int.from_bytes(message[:8], "little")
    start = 8 * (1 + count)
    for length in np.frombuffer(message, np.int64, count, offset=8).tolist():
        yield message[start : start + length]
        start += length
