"""ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from featx.backbones.engines.choice import EngineName
from featx.errors import BackboneError, first_line

if TYPE_CHECKING:
    import onnxruntime as ort


# One MatMulInteger of uint8 (rows, depth) and int8 (depth, columns), as onnx serialises it.
_PRODUCT = (
    b'\x08\x08\x12\x00:P\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x01gZ\x0f\n\x01a\x12\n\n'
    b"\x08\x08\x02\x12\x04\n\x00\n\x00Z\x0f\n\x01b\x12\n\n\x08\x08\x03\x12\x04\n\x00\n\x00b\x0f\n"
    b"\x01c\x12\n\n\x08\x08\x06\x12\x04\n\x00\n\x00B\x04\n\x00\x10\r"
)
_SIDE = 64


class OnnxEngine:
    """Runs a network's graph with ONNX Runtime, each batch in the thread that brings it.

    Args:
        graph: What ``export_network`` made, serialised.

    Raises:
        BackboneError: ONNX Runtime does not take the graph.
    """

    name: ClassVar[EngineName] = "onnxruntime"

    def __init__(self, graph: bytes) -> None:
        import onnxruntime as ort

        try:
            self._session = ort.InferenceSession(
                graph,
                session_options(threads=1),
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise BackboneError(
                f"ONNX Runtime does not take the backbone's graph: {first_line(err)} Use "
                "engine='torch'."
            ) from err

    @property
    def device(self) -> str:
        """``"cpu"``."""
        return "cpu"

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        Raises:
            BackboneError: ONNX Runtime fails on it.
        """
        try:
            features: np.ndarray = self._session.run(["features"], {"pixels": pixels})[0]
        except Exception as err:  # as above
            raise BackboneError(f"ONNX Runtime cannot run the backbone: {first_line(err)}") from err
        return features


def session_options(*, threads: int) -> ort.SessionOptions:
    """Return the options of a session.

    Without VNNI, x86 processors add pairs of products of uint8 and int8 in 16 bits, which overflow.
    ONNX Runtime can take wider products there. That option also keeps it from using VNNI and AMX
    where they are, at a third of their speed, so it is set only where sums come out wrong. int8
    features are then the same on every processor.

    Args:
        threads: For one call, at least 1.
    """
    options = _quiet(threads)
    if not _sums_are_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@functools.cache
def _sums_are_exact() -> bool:
    """Return whether ONNX Runtime adds up the largest products there are without overflow."""
    import onnxruntime as ort

    session = ort.InferenceSession(_PRODUCT, _quiet(1), providers=["CPUExecutionProvider"])
    largest = np.full((_SIDE, _SIDE), 255, np.uint8), np.full((_SIDE, _SIDE), 127, np.int8)
    (sums,) = session.run(None, dict(zip("ab", largest, strict=True)))
    return bool((sums == 255 * 127 * _SIDE).all())


def _quiet(threads: int) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    return options
