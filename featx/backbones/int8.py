"""A backbone's graph in int8: static, uint8 activations and int8 weights per output channel.

The quantised graph is the float graph with pairs of ``QuantizeLinear`` and ``DequantizeLinear``
(QDQ), standard operators that ONNX Runtime fuses to integer kernels. Convolutions take and give
uint8; products with a weight matrix take uint8 and give float32; sums, concatenations and poolings
are done on uint8 where all they read is. The rest, above all normalisation, attention, the
activations other than ReLU, and the last pooling, stays float32.

Everything is computed here in numpy, so the same graph and table give the same bytes with any
version of ONNX Runtime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_builder import rename
from featx.backbones.spec import Calibration
from featx.errors import BackboneError
from featx.images.reading import map_ahead

MIN_MEAN_COSINE, MIN_COSINE = 0.999, 0.99
"""Between the features of int8 and fp32, over images and of each."""
_LEFT_OUT = (0.0, 0.25, 0.5, 0.75)
_SHARE = 0.95
"""Share of the images whose values a range holds; those of the others are cut off."""

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_KEEP_UINT8 = ("Add", "Concat", "MaxPool")
_FEW_CHANNELS = 8
_FEW_VALUES = 64
_LEVELS = 255
_WEIGHT_LIMIT = 127


@dataclass
class Candidate:
    """A node that can run in int8."""

    node: onnx.NodeProto
    relu: onnx.NodeProto | None
    reads: list[str]
    gives: str

    def has(self, ranges: Container[str]) -> bool:
        """Return whether every tensor that has to be uint8 has a range."""
        return all(name in ranges for name in (*self.reads, self.gives) if name)


class Quantisable:
    """The nodes of a graph that can run in int8."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[Candidate] = []
        self.tensors: dict[str, None] = {}
        self._uses: Counter[str] = Counter()
        self._readers: dict[str, onnx.NodeProto] = {}
        self._givers: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            self._uses.update(node.input)
            self._readers.update(dict.fromkeys(node.input, node))
            self._givers.update(dict.fromkeys(node.output, node))
        self._outputs = {output.name for output in model.graph.output}
        self._uses.update(self._outputs)
        self._given: set[str] = set()
        for node in model.graph.node:
            if found := self._found(node):
                self.nodes.append(found)
                self.tensors.update(dict.fromkeys(found.reads))
                if found.gives:
                    self._given.add(found.gives)
                    self.tensors[found.gives] = None

    def _found(self, node: onnx.NodeProto) -> Candidate | None:
        """Return a node with what it reads and gives if it can run in int8."""
        if node.op_type in _PRODUCTS:
            weight = self.weights.get(node.input[1])
            if weight is None or weight.data_type != TensorProto.FLOAT:
                return None
            if node.op_type == "Conv":
                return None if self._is_slow(node) else self._with_output(node, [node.input[0]])
            if len(weight.dims) == 2 and not attribute(node, "transA", 0):
                return Candidate(node, None, [node.input[0]], "")
        elif node.op_type in _KEEP_UINT8 and self._given.issuperset(node.input):
            return self._with_output(node, list(dict.fromkeys(node.input)))
        return None

    def _is_slow(self, node: onnx.NodeProto) -> bool:
        """Return whether a convolution takes longer in int8 than in float32.

        That is one with few values to add up, such as the first of most networks. ONNX Runtime
        quantises before a pooling rather than behind it, and pools such uint8 slowly.
        """
        name = node.input[0]
        giver = self._givers.get(name)
        if giver is not None and giver.op_type == "MaxPool" and name not in self._given:
            return True
        shape = self.weights[node.input[1]].dims
        is_first = shape[1] < _FEW_CHANNELS and attribute(node, "group", 1) == 1
        return is_first and math.prod(shape[1:]) < _FEW_VALUES

    def _with_output(self, node: onnx.NodeProto, reads: list[str]) -> Candidate | None:
        output = node.output[0]
        relu = self._readers.get(output) if self._uses[output] == 1 else None
        if relu is not None and relu.op_type != "Relu":
            relu = None
        gives = relu.output[0] if relu else output
        return None if {output, gives} & self._outputs else Candidate(node, relu, reads, gives)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return a node's integer attribute, the default where it has none."""
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def quantize_graph(graph: bytes, calibration: Calibration) -> bytes:
    """Return the graph of ``build_graph`` in int8; what the table leaves out stays float32.

    Equal arguments give equal bytes.

    Raises:
        BackboneError: The table belongs to another graph.
    """
    model = onnx.load_from_string(graph)
    chosen = Quantisable(model)
    ranges = {name: (lowest, highest) for name, lowest, highest in calibration.ranges}
    if unknown := ranges.keys() - chosen.tensors.keys():
        raise BackboneError(
            f"The int8 ranges belong to another graph: this one has no '{min(unknown)}'. Use the "
            "versions of torch and torchvision that extracted the features."
        )
    added, scales = _Additions(), {}
    for name, (lowest, highest) in ranges.items():
        scales[name], zero = _grid(lowest, highest)
        added.add_pair(name, scales[name], zero)
    parts = {part.node.output[0]: part for part in chosen.nodes if part.has(ranges)}
    given = {part.gives for part in parts.values() if part.gives}
    merged = {part.gives for part in parts.values() if part.relu and ranges[part.gives][0] >= 0}
    nodes = []
    for original in model.graph.node:
        node, part = onnx.NodeProto(), parts.get(original.output[0])
        node.CopyFrom(original)
        if node.op_type == "Relu" and node.output[0] in merged:
            continue
        if part and part.gives in merged:  # uint8 cuts off what is below its range
            node.output[0] = part.gives
        if part and node.op_type in _PRODUCTS:
            _quantize_weights(added, node, chosen.weights, scales[node.input[0]])
        taken = given.union(part.reads if part else ())
        node.input[:] = [_pair(name) if name in taken else name for name in node.input]
        nodes += [node, *added.pairs.get(node.output[0], [])]
    result = _assembled(model, [*added.weights, *nodes], added.constants)
    content: bytes = result.SerializeToString(deterministic=True)
    return content


def _pair(name: str) -> str:
    """Return the name of a tensor that went through uint8."""
    return f"{name}/uint8"


def _grid(lowest: float, highest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the step, float32, and the number that encodes 0, uint8, of a range."""
    lowest, highest = min(lowest, 0.0), max(highest, 0.0)  # 0 must be exact: it pads
    step = np.float32((highest - lowest) / _LEVELS) or np.float32(1)
    return np.array(step), np.array(round(-lowest / float(step)), np.uint8)


class _Additions:
    """Nodes and constants that quantisation adds to a graph."""

    def __init__(self) -> None:
        self.constants: list[onnx.TensorProto] = []
        self.weights: list[onnx.NodeProto] = []
        self.pairs: dict[str, list[onnx.NodeProto]] = {}

    def add_pair(self, name: str, scale: np.ndarray, zero: np.ndarray) -> None:
        """Add the way of an activation through uint8."""
        grid = self._constants(name, scale=scale, zero=zero)
        self.pairs[name] = [
            helper.make_node("QuantizeLinear", [name, *grid], [f"{name}/int"], f"{name}/quantize"),
            helper.make_node(
                "DequantizeLinear", [f"{name}/int", *grid], [_pair(name)], f"{name}/dequantize"
            ),
        ]

    def add_weight(self, name: str, values: np.ndarray, scale: np.ndarray, *, axis: int) -> str:
        """Add a constant, given in steps of ``scale`` along an axis, and return its name."""
        zero = np.zeros(scale.shape, values.dtype)
        inputs = self._constants(name, int=values, scale=scale, zero=zero)
        self.weights.append(
            helper.make_node(
                "DequantizeLinear", inputs, [_pair(name)], f"{name}/dequantize", axis=axis
            )
        )
        return _pair(name)

    def _constants(self, name: str, **values: np.ndarray) -> list[str]:
        names = [f"{name}/{kind}" for kind in values]
        self.constants += map(numpy_helper.from_array, values.values(), names)
        return names


def _quantize_weights(
    added: _Additions,
    node: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    input_scale: np.ndarray,
) -> None:
    """Give a product int8 weights, and a convolution an int32 bias."""
    weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    others = tuple(number for number in range(weight.ndim) if number != axis)
    largest = np.abs(weight).max(axis=others)  # (channels,)
    scale = (np.where(largest > 0, largest, 1) / _WEIGHT_LIMIT).astype(np.float32)
    steps = np.rint(weight / np.expand_dims(scale.astype(np.float64), others))
    limited = np.clip(steps, -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8)
    name = node.output[0]  # a weight that two nodes share is quantised for each
    node.input[1] = added.add_weight(f"{name}/weight", limited, scale, axis=axis)
    if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in constants:
        bias = numpy_helper.to_array(constants[node.input[2]]).astype(np.float64)
        bias_scale = scale * input_scale  # the scale of what the integers add up to
        bound = 2.0**31 - 1
        steps = np.clip(np.rint(bias / bias_scale.astype(np.float64)), -bound, bound)
        node.input[2] = added.add_weight(f"{name}/bias", steps.astype(np.int32), bias_scale, axis=0)


def _assembled(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]
) -> onnx.ModelProto:
    """Return a model of some nodes, with the constants that they read and no notes."""
    read = {name for node in nodes for name in node.input}
    used = [tensor for tensor in (*model.graph.initializer, *constants) if tensor.name in read]
    graph = helper.make_graph(
        nodes, "featx", list(model.graph.input), list(model.graph.output), initializer=used
    )
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=list(model.functions),
    )


# --- the table of ranges ------------------------------------------------------------------------


def calibrate(graph: bytes, batches: Iterable[np.ndarray]) -> Calibration:
    """Return the ranges that the activations of a graph of ``build_graph`` take.

    Args:
        graph: In float32.
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
    _measure(model.graph, tensors)
    images = (image for batch in batches for image in batch)
    found = _features(model.SerializeToString(), images)  # (n, 2 · tensors)
    if not np.isfinite(found).all():
        raise BackboneError("The backbone gives values that are not finite; int8 cannot hold them.")
    lowest, highest = np.split(found.astype(np.float64), 2, axis=1)
    lowest = np.quantile(lowest, 1 - _SHARE, axis=0)
    highest = np.quantile(highest, _SHARE, axis=0)
    ranges = zip(tensors, lowest.tolist(), highest.tolist(), strict=True)
    return Calibration(tuple((name, _short(a), _short(b)) for name, a, b in ranges))


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _measure(graph: onnx.GraphProto, tensors: list[str]) -> None:
    """Have a graph give, as its features, an image's lowest values, then its highest ones."""
    output = graph.output[0].name
    rename(graph, {output: f"{output}/own"})
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


def narrowed(
    graph: bytes, calibration: Calibration, pixels: np.ndarray, backbone: str
) -> Calibration:
    """Return as much of a table as keeps the features near those of float32.

    Errors of the first layers go through all the others, so where the whole table loses too much,
    the first quarter of the layers is left to float32, then half, then three quarters.

    Args:
        graph: In float32.
        calibration: Ranges of its activations.
        pixels: To compare on, ``(n, size, size, 3)`` uint8.
        backbone: For the message.

    Raises:
        BackboneError: No part of it does.
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


def _features(graph: bytes, images: Iterable[np.ndarray]) -> np.ndarray:
    """Return a graph's output for images ``(size, size, 3)`` uint8, each run alone.

    Some graphs have the images of a batch on another axis, or mixed with tokens.
    """
    singles = (image[None] for image in images)
    with closing(map_ahead(OnnxEngine(graph).features, singles)) as found:
        return np.concatenate(list(found))


def cosine(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the cosine between rows ``(n, num_features)``, ``(n,)`` float64; 1 for two zeros."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(lengths, 1e-30))
