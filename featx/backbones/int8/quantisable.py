"""What of a graph can run in int8, and which of its activations need a range for that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import onnx
from onnx import TensorProto

PRODUCTS = ("Conv", "Gemm", "MatMul")
_KEEP_UINT8 = ("Add", "Concat", "MaxPool")
_FEW_CHANNELS = 8
_FEW_VALUES = 64


@dataclass
class Candidate:
    """A node that can run in int8.

    Attributes:
        node: Of the graph.
        relu: The ReLU that alone reads its output.
        reads: Its inputs that have to be uint8.
        gives: The output that has to be uint8, the ReLU's where there is one; empty where it
            is float32.
    """

    node: onnx.NodeProto
    relu: onnx.NodeProto | None
    reads: list[str]
    gives: str

    def has(self, ranges: Container[str]) -> bool:
        """Return whether all that has to be uint8 has a range."""
        return all(name in ranges for name in (*self.reads, self.gives) if name)


class Quantisable:
    """What of a graph can run in int8.

    Attributes:
        model: The graph, as it is.
        weights: Its constants by name.
        nodes: Those that can, in order of computation.
        tensors: Activations that have a range for that.
    """

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
        if node.op_type in PRODUCTS:
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
