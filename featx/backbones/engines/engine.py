"""What an engine is, and how many images it takes at once."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import numpy as np

EngineName = Literal["torch", "onnxruntime"]

_BATCH_PIXELS = 2 * 224 * 224


class Engine(Protocol):
    """Runs a network.

    Attributes:
        name: Of the library.
    """

    name: ClassVar[EngineName]

    @property
    def is_parallel(self) -> bool:
        """Several threads may each run a batch at the same time."""

    @property
    def device(self) -> str:
        """What it runs on: ``"cpu"`` or ``"cuda:0"``."""

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        The same batch gives the same bits again.

        Raises:
            BackboneError: The library fails on it.
        """


def default_batch_size(engine: Engine | type[Engine], image_size: int) -> int:
    """Return how many images form a batch.

    Depends on nothing but the library and the size of the images, so that the same command forms
    the same batches on every machine. ONNX Runtime is as fast at any size, and small batches leave
    the other threads less to wait for at the end. torch needs larger ones for its threads.

    >>> from featx.backbones.engines import OnnxEngine
    >>> default_batch_size(OnnxEngine, 224), default_batch_size(OnnxEngine, 32)
    (2, 64)
    """
    if engine.name == "onnxruntime":
        fitting = max(1, _BATCH_PIXELS // image_size**2)
        return min(64, 1 << (fitting.bit_length() - 1))
    return 32
