"""Measuring which ranges a graph's activations take, and how many of them int8 may use."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featx.backbones.engines import OnnxEngine
from featx.backbones.int8.quantize import Quantisable, quantize_graph
from featx.backbones.spec import Calibration
from featx.errors import BackboneError
from featx.images.reading import map_ahead

MIN_MEAN_COSINE, MIN_COSINE = 0.999, 0.99
"""Between the features of int8 and fp32, over images and of each."""
_LEFT_OUT = (0.0, 0.25, 0.5, 0.75)
_SHARE = 0.95
"""Of the images whose values a range holds; those of the others are cut off."""


def calibrate(graph: bytes, batches: Iterable[np.ndarray]) -> Calibration:
    """Return the ranges that a graph's activations take over some images.

    Args:
        graph: What ``build_graph`` made.
        batches: Pixels, ``(n, size, size, 3)`` uint8 each; at least one image in all.

    Raises:
        BackboneError: The graph gives values that are not finite, or has nothing to quantise.
    """
    model = onnx.load_from_string(graph)
    tensors = sorted(Quantisable(model).tensors)
    if not tensors:
        raise BackboneError(
            "The backbone has no layer that can run in int8; use another precision."
        )
    engine = OnnxEngine(_measuring(model, tensors).SerializeToString())
    # One by one: some graphs have the images of a batch on another axis, or mixed with tokens.
    singles = (pixels[None] for batch in batches for pixels in batch)
    found = _on_all_cores(engine, singles)  # (n, 2 · tensors)
    if not np.isfinite(found).all():
        raise BackboneError("The backbone gives values that are not finite; int8 cannot hold them.")
    lowest, highest = np.split(found.astype(np.float64), 2, axis=1)
    lowest = np.quantile(lowest, 1 - _SHARE, axis=0)
    highest = np.quantile(highest, _SHARE, axis=0)
    ranges = zip(tensors, lowest.tolist(), highest.tolist(), strict=True)
    return Calibration(tuple((name, _short(a), _short(b)) for name, a, b in ranges))


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _measuring(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """Return a graph whose features are an image's lowest values, then its highest ones."""
    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    graph = measuring.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{name}/own" if name == output else name for name in node.output]
        node.input[:] = [f"{name}/own" if name == output else name for name in node.input]
    one_by_one = numpy_helper.from_array(np.array([1, 1], np.int64), "measured/shape")
    graph.initializer.append(one_by_one)
    parts = []
    for op in ("ReduceMin", "ReduceMax"):
        for name in tensors:
            parts.append(f"{name}/{op}")
            graph.node.append(helper.make_node(op, [name], [f"{parts[-1]}/0"], keepdims=0))
            inputs = [f"{parts[-1]}/0", one_by_one.name]
            graph.node.append(helper.make_node("Reshape", inputs, [parts[-1]]))
    graph.node.append(helper.make_node("Concat", parts, [output], axis=1))
    graph.output[0].CopyFrom(
        helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, len(parts)])
    )
    return measuring


def narrowed(
    graph: bytes, calibration: Calibration, pixels: np.ndarray, backbone: str
) -> Calibration:
    """Return as much of a table as keeps the features near those of float32.

    Errors of the first layers go through all the others, so where the whole table loses too much,
    the first quarter of the layers is left to float32, then half, then three quarters.

    Args:
        graph: What ``build_graph`` made.
        calibration: Ranges of that graph's activations.
        pixels: To compare on, ``(n, size, size, 3)`` uint8.
        backbone: For the message.

    Raises:
        BackboneError: No part of it does: the cosines of the images' features stay below what
            int8 is held to.
    """
    nodes, expected = Quantisable(onnx.load_from_string(graph)).nodes, _features(graph, pixels)
    for share in _LEFT_OUT:
        rest = nodes[round(share * len(nodes)) :]
        names = {name for part in rest for name in (*part.reads, part.gives)}
        table = Calibration(tuple(entry for entry in calibration.ranges if entry[0] in names))
        cosines = cosine(_features(quantize_graph(graph, table), pixels), expected)
        if cosines.mean() >= MIN_MEAN_COSINE and cosines.min() >= MIN_COSINE:
            return table
    raise BackboneError(
        f"{backbone} loses too much in int8: with {_LEFT_OUT[-1]:.0%} of its layers left in "
        f"float32, the cosine between its features and those of fp32 is {cosines.mean():.4f} on "
        f"average, {cosines.min():.4f} at worst; at least {MIN_MEAN_COSINE} and {MIN_COSINE} are "
        "needed. Use precision='fp32'."
    )


def _features(graph: bytes, pixels: np.ndarray) -> np.ndarray:
    return _on_all_cores(OnnxEngine(graph), (one[None] for one in pixels))


def _on_all_cores(engine: OnnxEngine, batches: Iterable[np.ndarray]) -> np.ndarray:
    with closing(map_ahead(engine.features, batches)) as found:
        return np.concatenate(list(found))


def cosine(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the cosine between rows ``(n, num_features)``, ``(n,)`` float64; 1 for two zeros."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(lengths, 1e-30))
