"""Building and changing ONNX graphs.

They have no graphs inside of nodes (control flow): ``seal.unwanted_parts`` refuses such models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NORMALISED = "div_1"
"""The normalised images in a backbone's graph ``pixels → features``.

Up to them the graph is ``add_normalisation``; behind them is the trunk. torch's exporter gives the
name, and int8 tables know the tensor by it.
"""
CHANNELS_FIRST = [0, 3, 1, 2]


class GraphBuilder:
    """Nodes and initializers of a graph in the making; new names start with ``featx_``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add an initializer of any shape ``(*shape,)`` and return its name in the graph."""
        self.initializers.append(numpy_helper.from_array(value, f"featx_{name}"))
        return f"featx_{name}"

    def integers(self, name: str, *values: int) -> str:
        """Add an initializer of int64 and return its name in the graph."""
        return self.constant(name, np.array(values, dtype=np.int64))

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        output: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a node and return the name of its output, ``featx_`` and ``name`` by default."""
        output = output or f"featx_{name}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], f"featx_{name}_{op}", **(attributes or {}))
        )
        return output


def add_normalisation(
    builder: GraphBuilder,
    steps: Sequence[tuple[str, str, np.ndarray]],
    *,
    pixels: str,
    width: int,
    output: str,
) -> None:
    """Add the arithmetic from pixels ``(batch, height, width, 3)`` uint8 to normalised images.

    It is done on rows of ``3 · width`` values: integer convolutions read their images channels
    last, so ONNX Runtime would do arithmetic per channel three numbers at a time.

    Args:
        builder: Where to.
        steps: Operator, name, and its constant: ``(3,)`` for the channels, or a scalar ``()``.
        pixels: Name of the pixels.
        width: Of the images.
        output: Name of the result, ``(batch, 3, height, width)`` float32.
    """
    flat = builder.integers("row_shape", 0, 0, 3 * width)
    image = builder.integers("square", 0, 0, width, 3)
    value = builder.node("Reshape", [pixels, flat], "rows")
    value = builder.node("Cast", [value], "values", attributes={"to": TensorProto.FLOAT})
    for op, name, numbers in steps:
        row = np.tile(numbers, width) if numbers.ndim else numbers
        constant = builder.constant(f"{name}_by", row.astype(np.float32))
        value = builder.node(op, [value, constant], name)
    value = builder.node("Reshape", [value, image], "channels_last")
    perm = {"perm": CHANNELS_FIRST}
    builder.node("Transpose", [value], "tensor", output=output, attributes=perm)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes and initializers that no output needs."""
    needed = {value.name for value in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed & set(graph.node[i].output):
            needed.update(graph.node[i].input)
        else:
            del graph.node[i]
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def share_equal(graph: onnx.GraphProto) -> None:
    """Keep one of initializers that hold the same values, except int8.

    ONNX Runtime makes uint8 of such constants, one for each reader, and then has two of one name.
    """
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        kind = f"{tensor.data_type} {values.shape}".encode()
        digest = hashlib.sha256(kind + np.ascontiguousarray(values).tobytes()).digest()
        own = tensor.data_type == TensorProto.INT8
        names[tensor.name] = tensor.name if own else first.setdefault(digest, tensor.name)
    for i in reversed(range(len(graph.initializer))):
        if names[graph.initializer[i].name] != graph.initializer[i].name:
            del graph.initializer[i]
    rename(graph, names)


def side_by_side(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Return a graph ``pixels → features`` with the features of several graphs, one by one.

    What they have in common, equal operations on equal tensors, it calculates once.

    Args:
        models: Each ``pixels → features (batch, D)``, of one opset; they are renamed.
    """
    merged, graph = onnx.ModelProto(), onnx.GraphProto(name="features")
    merged.CopyFrom(models[0])
    known: dict[bytes, str] = {}
    outputs = []
    for model in models:
        names = {"": "", model.graph.input[0].name: "pixels"}
        for tensor in model.graph.initializer:
            key, own = _key(tensor), tensor.name
            if key not in known:
                tensor.name = known[key] = f"tensor_{len(known)}"
                graph.initializer.append(tensor)
            names[own] = known[key]
        for node in model.graph.node:
            own_outputs = list(node.output)
            node.input[:] = [names[name] for name in node.input]
            key = _key(node)
            if key not in known:
                known[key] = f"step_{len(known)}"
                node.output[:] = [
                    f"{known[key]}_{i}" if name else "" for i, name in enumerate(own_outputs)
                ]
                node.name = known[key]
                graph.node.append(node)
            names.update((name, f"{known[key]}_{i}") for i, name in enumerate(own_outputs) if name)
        outputs.append(names[model.graph.output[0].name])
    graph.node.append(helper.make_node("Concat", outputs, ["features"], axis=1))
    graph.input.extend(merged.graph.input)
    graph.input[0].name = "pixels"
    graph.output.extend(
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", None])]
    )
    merged.graph.CopyFrom(graph)
    merged.ClearField("metadata_props")
    return merged


def _key(part: onnx.NodeProto | onnx.TensorProto) -> bytes:
    """Return a hash of a node or tensor, whatever it and what it gives are called."""
    plain = type(part)()
    plain.CopyFrom(part)
    for field in ("name", "output", "doc_string", "metadata_props"):
        if field in plain.DESCRIPTOR.fields_by_name:
            plain.ClearField(field)
    return hashlib.sha256(
        part.DESCRIPTOR.name.encode() + plain.SerializeToString(deterministic=True)
    ).digest()


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors inside a graph; its inputs and outputs stay declared as they are."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def forget_origin(graph: onnx.GraphProto) -> None:
    """Drop the exporter's notes on each part.

    They are stack traces: they name folders of this machine, and differ from run to run.
    """
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
