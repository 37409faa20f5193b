"""What an engine is, and how many images it takes at once."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import numpy as np

EngineName = Literal["torch", "onnxruntime"]

_BATCH = {"onnxruntime": 2, "torch": 8}
"""Images of 224 pixels squared."""
_GPU_BATCH = 32


class Engine(Protocol):
    """Runs a network; several threads may each bring a batch at the same time.

    Attributes:
        name: Of the library.
    """

    name: ClassVar[EngineName]

    @property
    def device(self) -> str:
        """What it runs on: ``"cpu"`` or ``"cuda:0"``."""

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        The same batch gives the same bits again.

        Raises:
            BackboneError: The library fails on it.
        """


def default_batch_size(name: EngineName, image_size: int, *, device: str = "cpu") -> int:
    """Return how many images form a batch.

    Depends on nothing but the library, the kind of device and the size of the images, so that the
    same command forms the same batches on every machine. On the CPU a batch takes one thread:
    small ones stay in a core's cache, and leave the other threads less to wait for at the end.

    >>> default_batch_size("onnxruntime", 224), default_batch_size("onnxruntime", 32)
    (2, 64)
    """
    if not device.startswith("cpu"):
        return _GPU_BATCH
    fitting = max(1, _BATCH[name] * 224**2 // image_size**2)
    return min(64, 1 << (fitting.bit_length() - 1))
