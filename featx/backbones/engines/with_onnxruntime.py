"""ONNX Runtime on the CPU, without torch."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from featx.backbones.engines.engine import EngineName
from featx.errors import BackboneError


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

        from featx.backbones.session_options import session_options

        try:
            self._session = ort.InferenceSession(
                graph,
                session_options(threads=1),
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except Exception as err:  # ONNX Runtime's errors have no common base below Exception
            raise BackboneError(
                f"ONNX Runtime does not take the backbone's graph: {_first_line(err)} Use --engine "
                "torch."
            ) from err

    @property
    def device(self) -> str:
        """What it runs on."""
        return "cpu"

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return features ``(N, num_features)`` float32 of ``(N, size, size, 3)`` uint8.

        Raises:
            BackboneError: ONNX Runtime fails on it.
        """
        try:
            features: np.ndarray = self._session.run(["features"], {"pixels": pixels})[0]
        except Exception as err:  # as above
            raise BackboneError(
                f"ONNX Runtime cannot run the backbone: {_first_line(err)}"
            ) from err
        return features


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]
