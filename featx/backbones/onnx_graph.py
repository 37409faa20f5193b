"""A frozen network as an ONNX graph: from cropped uint8 pixels to features."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch.overrides import TorchFunctionMode

from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_builder import (
    NORMALISED,
    GraphBuilder,
    add_normalisation,
    drop_unused,
    forget_origin,
    rename,
    side_by_side,
)
from featx.backbones.graph_cache import OPSET
from featx.backbones.network import Network
from featx.backbones.torch_engine import TorchEngine
from featx.errors import BackboneError, ExportError, first_line, only_errors

MAX_RELATIVE_ERROR = 1e-4
"""Largest ‖onnxruntime − torch‖ / ‖torch‖ of an image's features."""


def export_network(network: Network, *, image_size: int, opset: int = OPSET) -> onnx.ModelProto:
    """Return the graph ``pixels (batch, size, size, 3) uint8 → features (batch, D) float32``."""
    pixels = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with _silent_exporter(), _MeansForGlobalPools():
            program = torch.onnx.export(
                network.cpu().eval(),
                (pixels,),
                dynamo=True,
                opset_version=opset,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=2**20)},),
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as err:
        reason = first_line(err)
        raise ExportError(f"torch's exporter cannot translate the backbone: {reason}") from err
    if program is None:
        raise ExportError("torch's exporter returned nothing.")
    model: onnx.ModelProto = program.model_proto
    _replace_arithmetic(model.graph, network, image_size)
    forget_origin(model.graph)
    return model


def _replace_arithmetic(graph: onnx.GraphProto, network: Network, image_size: int) -> None:
    """Put featx's own arithmetic, the same operations on the same numbers, before the trunk."""
    builder, pixels = GraphBuilder(), graph.input[0].name
    trunk = [node for node in graph.node if NORMALISED not in node.output]
    if len(trunk) == len(graph.node):
        raise ExportError(f"torch's exporter gives no tensor the name '{NORMALISED}'.")
    rename(graph, {pixels: NORMALISED})  # some read the size of the batch
    mean, std = (values.cpu().numpy().reshape(3) for values in (network.mean, network.std))
    add_normalisation(
        builder,
        [("Div", "scaled", np.array(255)), ("Sub", "centred", mean), ("Div", "normalised", std)],
        pixels=pixels,
        width=image_size,
        output=NORMALISED,
    )
    del graph.node[:]
    graph.node.extend([*builder.nodes, *trunk])
    graph.initializer.extend(builder.initializers)
    _fix_kernels(graph)
    drop_unused(graph)


def _fix_kernels(graph: onnx.GraphProto) -> None:
    """Put numbers in place of convolution kernels that are standardised in each run, as NFNet's."""
    weights = {tensor.name for tensor in graph.initializer}
    known, fixed = set(weights), []
    for node in graph.node:
        if known.issuperset(filter(None, node.input)):
            fixed.append(node)
            known.update(node.output)
    read = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    wanted = sorted((read & known) - weights)
    if not wanted:
        return
    values = [onnx.ValueInfoProto(name=name) for name in wanted]
    part = onnx.helper.make_graph(fixed, "kernels", [], values, list(graph.initializer))
    kernels = ReferenceEvaluator(part, opsets={"": OPSET}).run(None, {})
    for node in [each for each in fixed if set(each.output) & set(wanted)]:
        graph.node.remove(node)
    for name, kernel in zip(wanted, kernels, strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(kernel.astype(np.float32), name))


def build_graph(network: Network, *, image_size: int, opset: int = OPSET) -> bytes:
    """Return the network's graph for ONNX Runtime, compared with the network itself.

    Raises:
        ExportError: The network cannot be translated, or its graph gives other features.
    """
    model = export_network(network, image_size=image_size, opset=opset)
    try:
        graph: bytes = model.SerializeToString()
        engine = OnnxEngine(graph)
    except (ValueError, BackboneError) as err:  # ValueError: over 2 GiB
        raise ExportError(f"the backbone's graph cannot be run: {err}") from err
    pixels = np.random.default_rng(0).integers(0, 256, (2, image_size, image_size, 3), np.uint8)
    error = relative_error(
        engine.features(pixels), TorchEngine(network, device="cpu").features(pixels)
    )
    if not error <= MAX_RELATIVE_ERROR:
        raise ExportError(
            f"the backbone's graph gives other features than the network: relative error "
            f"{error:.1e}, at most {MAX_RELATIVE_ERROR:.0e} is allowed."
        )
    return graph


def merge_graphs(graphs: Sequence[bytes]) -> bytes:
    """Return a graph for ONNX Runtime that gives the features of several, side by side.

    Raises:
        BackboneError: Together they are over 2 GiB.
    """
    try:
        merged: bytes = side_by_side(list(map(onnx.load_from_string, graphs))).SerializeToString()
    except ValueError as err:
        raise BackboneError(f"The layers' graph cannot be made: {first_line(err)}") from err
    return merged


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest ‖found − expected‖ / ‖expected‖ over rows ``(n, …)``."""
    exact = expected.astype(np.float64).reshape(len(expected), -1)  # squares overflow float32
    difference = np.linalg.norm(found.reshape(exact.shape) - exact, axis=1)
    return float((difference / np.maximum(np.linalg.norm(exact, axis=1), 1e-30)).max())


class _MeansForGlobalPools(TorchFunctionMode):
    """Pools maps to a single value by their mean.

    The exporter writes that as one node. It makes ten of an adaptive pooling, which put every
    value back where it was.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.adaptive_avg_pool2d:
            maps, size = (*args, *kwargs.values())[:2]
            if size in (1, (1, 1), [1, 1]):
                return maps.mean((-2, -1), keepdim=True)
        return func(*args, **kwargs)


@contextlib.contextmanager
def _silent_exporter() -> Iterator[None]:
    """Keep the exporter's progress lines and warnings about itself from the user."""
    silent = only_errors("torch.onnx", "onnxscript", "onnx_ir")
    with silent, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
