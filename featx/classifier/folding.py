"""Graphs whose sizes are all known: what computes them becomes constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from featx.backbones.graph_builder import drop_unused

_MAX_VALUES = 2**18
"""Of a constant; larger ones are weights."""
_KEPT = ("QuantizeLinear", "DequantizeLinear")
"""int8 weights stay what they are."""


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace shapes that are known, and the small tensors computed from them, by constants.

    Args:
        model: With sizes in place of symbols where its inputs are declared; it is changed.
    """
    while True:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {
            value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if all(side.HasField("dim_value") for side in value.type.tensor_type.shape.dim)
        }
        known = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if np.prod(tensor.dims) <= _MAX_VALUES
        }
        found = [node for node in model.graph.node if _is_known(node, shapes, known)]
        if not found:
            break
        for node in found:
            values = _values_of(node, shapes, known, model.opset_import)
            tensors = [
                numpy_helper.from_array(value, name)
                for value, name in zip(values, node.output, strict=True)
            ]
            model.graph.initializer.extend(tensors)
            model.graph.node.remove(node)
    drop_unused(model.graph)


def _is_known(
    node: onnx.NodeProto, shapes: dict[str, list[int]], known: dict[str, np.ndarray]
) -> bool:
    if node.op_type == "Shape":
        return node.input[0] in shapes
    if node.op_type in _KEPT or any(output in known for output in node.output):
        return False
    return all(name in known for name in node.input if name)


def _values_of(
    node: onnx.NodeProto,
    shapes: dict[str, list[int]],
    known: dict[str, np.ndarray],
    opsets: object,
) -> list[np.ndarray]:
    if node.op_type == "Shape":
        bounds = {own.name: own.i for own in node.attribute}
        part = slice(bounds.get("start", 0), bounds.get("end"))
        return [np.array(shapes[node.input[0]][part], np.int64)]
    inputs = [name for name in node.input if name]
    values = [onnx.ValueInfoProto(name=name) for name in node.output]
    own = [numpy_helper.from_array(known[name], name) for name in dict.fromkeys(inputs)]
    graph = onnx.helper.make_graph([node], "folded", [], values, own)
    part = onnx.helper.make_model(graph, opset_imports=opsets)
    return [np.asarray(value) for value in ReferenceEvaluator(part).run(None, {})]
