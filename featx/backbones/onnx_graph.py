"""A frozen network as an ONNX graph: from cropped uint8 pixels to features."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from featx.backbones.network import Network
from featx.errors import ExportError

OPSET = 20


def export_network(network: Network, *, image_size: int) -> onnx.ModelProto:
    """Return the graph ``pixels (batch, size, size, 3) uint8 → features (batch, D) float32``.

    The batch size is free, the image size fixed.

    Raises:
        ExportError: torch's exporter cannot translate the network.
    """
    pixels = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with _silent_exporter():
            program = torch.onnx.export(
                network.cpu().eval(),
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**20)},),
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as err:
        reason = str(err).strip().partition("\n")[0]
        raise ExportError(f"torch's exporter cannot translate the backbone: {reason}") from err
    if program is None:
        raise ExportError("torch's exporter returned nothing.")
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _silent_exporter() -> Iterator[None]:
    """Keep the exporter's progress lines and warnings about itself from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
