"""A backbone's graph in int8: static, uint8 activations and int8 weights per output channel.

The quantised graph is the float graph with pairs of ``QuantizeLinear`` and ``DequantizeLinear``
(QDQ), standard operators that ONNX Runtime fuses to integer kernels. Convolutions take and give
uint8; products with a weight matrix take uint8 and give float32; sums, concatenations and poolings
are done on uint8 where all they read is. The rest, above all normalisation, attention, the
activations that are no ReLU, and the last pooling, stays float32.

Everything is computed here in numpy, so the same graph and table give the same bytes with any
version of ONNX Runtime.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featx.backbones.spec import Calibration
from featx.errors import BackboneError

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
        self.model = model
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[Candidate] = []
        self.tensors: dict[str, None] = {}
        self._uses: Counter[str] = Counter()
        self._readers: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            self._uses.update(node.input)
            self._readers.update(dict.fromkeys(node.input, node))
        self._outputs = {output.name for output in model.graph.output}
        self._uses.update(self._outputs)
        self._givers = {name: node for node in model.graph.node for name in node.output}
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
    """Return the graph in int8, without the exporter's notes; equal arguments give equal bytes.

    Args:
        graph: What ``build_graph`` made.
        calibration: Ranges of that graph's activations; what it leaves out stays float32.

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
    result = _quantized(chosen, ranges)
    content: bytes = result.SerializeToString(deterministic=True)
    return content


def _quantized(chosen: Quantisable, ranges: dict[str, tuple[float, float]]) -> onnx.ModelProto:
    """Return the graph with those nodes in int8 whose activations have ranges."""
    added, scales = _Additions(), {}
    for name, (lowest, highest) in ranges.items():
        scale, zero = _grid(lowest, highest)
        scales[name] = scale
        added.add_pair(name, scale, zero)
    parts = {part.node.output[0]: part for part in chosen.nodes if part.has(ranges)}
    given = {part.gives for part in parts.values() if part.gives}
    merged = {part.gives for part in parts.values() if part.relu and ranges[part.gives][0] >= 0}
    nodes = []
    for original in chosen.model.graph.node:
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
    return _assembled(chosen.model, [*added.weights, *nodes], added.constants)


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
