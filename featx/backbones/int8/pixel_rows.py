"""The arithmetic on pixels, a row of them at a time.

Integer convolutions read their images channels last, so ONNX Runtime moves the transposition that a
graph begins with behind the arithmetic, which then goes through three numbers at a time: that takes
an eighth of ResNet-18 in int8. Over whole rows of ``3 · width`` values it takes next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

_PER_VALUE = frozenset({"Cast", "Div", "Sub", "Mul", "Add"})
_PER_CHANNEL = (1, 3, 1, 1)
_CHANNELS_FIRST = [0, 3, 1, 2]


def with_pixel_rows(graph: bytes) -> bytes:
    """Return a graph that does the same operations on the same numbers.

    Args:
        graph: ``pixels (batch, size, size, 3) uint8 → …``, serialised. Where it does not begin with
            a transposition and arithmetic per channel, it is returned as it is.
    """
    model = onnx.load_from_string(graph)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steps = _first_steps(model.graph, constants)
    per_channel = {
        name for node in steps for name in node.input if _is_per_channel(name, constants)
    }
    if not per_channel:
        return graph
    pixels = model.graph.input[0]
    width = pixels.type.tensor_type.shape.dim[2].dim_value
    gone = {node.output[0] for node in steps}
    kept = [node for node in model.graph.node if node.output[0] not in gone]
    added = {_row(name): np.tile(constants[name].reshape(3), width) for name in per_channel}
    added |= {"rows/shape": np.array([0, 0, -1]), "square/shape": np.array([0, 0, -1, 3])}
    nodes = [*_in_rows(steps, pixels.name, constants, per_channel), *kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(added[name], name) for name in sorted(added)
    )
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _is_per_channel(name: str, constants: Mapping[str, np.ndarray]) -> bool:
    return name in constants and constants[name].shape == _PER_CHANNEL


def _row(name: str) -> str:
    return f"{name}/row"


def _first_steps(
    graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]
) -> list[onnx.NodeProto]:
    """Return the nodes that only arrange or calculate value by value, each for the next alone."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    steps: list[onnx.NodeProto] = []
    value, outputs = graph.input[0].name, {output.name for output in graph.output}
    while value not in outputs:
        here = readers.get(value, [])
        if not steps:  # the batch size is read from the pixels as well
            here = [node for node in here if node.op_type != "Shape"]
        if len(here) != 1 or not _is_step(here[0], value, constants, steps):
            break
        steps.append(here[0])
        value = here[0].output[0]
    return steps


def _is_step(
    node: onnx.NodeProto,
    value: str,
    constants: Mapping[str, np.ndarray],
    before: Sequence[onnx.NodeProto],
) -> bool:
    """Return whether a node that reads a value is one of them, after those before."""
    is_arranged = any(step.op_type == "Transpose" for step in before)
    if node.op_type == "Transpose":
        return not is_arranged and list(node.attribute[0].ints) == _CHANNELS_FIRST
    others = [name for name in node.input if name != value]
    return node.op_type in _PER_VALUE and all(
        name in constants
        and (constants[name].size == 1 or (is_arranged and _is_per_channel(name, constants)))
        for name in others
    )


def _in_rows(
    steps: Sequence[onnx.NodeProto],
    pixels: str,
    constants: Mapping[str, np.ndarray],
    per_channel: set[str],
) -> list[onnx.NodeProto]:
    """Return nodes that give what the steps give, and transpose last."""
    value, result = "rows", steps[-1].output[0]
    nodes = [helper.make_node("Reshape", [pixels, "rows/shape"], [value])]
    for node in steps:
        if node.op_type != "Transpose":
            step = onnx.NodeProto()
            step.CopyFrom(node)
            step.input[:] = [
                _row(name) if name in per_channel else name if name in constants else value
                for name in node.input
            ]
            value = step.output[0] = _row(node.output[0])
            nodes.append(step)
    nodes.append(helper.make_node("Reshape", [value, "square/shape"], ["square"]))
    nodes.append(helper.make_node("Transpose", ["square"], [result], perm=_CHANNELS_FIRST))
    return nodes
