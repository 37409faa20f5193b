"""A backbone's graph in two parts: the arithmetic on pixels, and the trunk behind it.

Extraction runs the whole graph, ``pixels (batch, size, size, 3) uint8 → features``. An exported
file may take normalised images, which is the trunk alone, or do the arithmetic in fewer steps:

    (x / 255 - mean) / std  =  (x - 255 mean) · 1 / (255 std)

The factor goes into the weights of the first convolution. The mean goes into its bias only where it
has no padding: beyond the border of a normalised image there are zeros, which is the mean, not
black.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from featx.classifier.contract import normalise
from featx.classifier.graph_builder import Pieces
from featx.images.preprocess import PreprocessSpec

TENSOR = "tensor"
_ARITHMETIC = frozenset({"Transpose", "Cast", "Div", "Sub", "Mul", "Add"})
_CHANNELS_FIRST = [0, 3, 1, 2]


def split_trunk(backbone: onnx.ModelProto, spec: PreprocessSpec) -> onnx.ModelProto | None:
    """Return the graph from normalised images on; None where none are found in it.

    Args:
        backbone: ``pixels (batch, size, size, 3) uint8 → features (batch, D) float32``.
        spec: Says how pixels are normalised; the tensor that holds them so is searched for.

    Returns:
        ``tensor (batch, 3, size, size) float32 → features (batch, D) float32``.
    """
    arithmetic = _arithmetic(backbone.graph)
    normalised = _find_normalised(backbone, arithmetic, spec)
    if normalised is None:
        return None
    dropped = arithmetic[: normalised + 1]
    trunk = onnx.ModelProto()
    trunk.CopyFrom(backbone)
    graph, size = trunk.graph, spec.image_size
    names = {dropped[-1].output[0]: TENSOR, graph.input[0].name: TENSOR}  # both have the batch
    gone = {node.output[0] for node in dropped}
    kept = [node for node in backbone.graph.node if not gone & set(node.output)]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(kept)
    _read_instead(graph, names)
    shape: list[str | int | None] = ["batch", 3, size, size]
    graph.input.append(helper.make_tensor_value_info(TENSOR, TensorProto.FLOAT, shape))
    drop_unused(graph)
    return trunk


def _arithmetic(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the chain of nodes that pixels go through, each the only one to read the last."""
    constants = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    chain: list[onnx.NodeProto] = []
    value = graph.input[0].name
    while True:
        here = readers.get(value, [])
        if not chain:  # the batch size is read from the pixels as well
            here = [node for node in here if node.op_type != "Shape"]
        if len(here) != 1 or here[0].op_type not in _ARITHMETIC:
            return chain
        if not set(here[0].input) - {value} <= constants:
            return chain
        chain.append(here[0])
        value = here[0].output[0]


def _find_normalised(
    backbone: onnx.ModelProto, chain: list[onnx.NodeProto], spec: PreprocessSpec
) -> int | None:
    """Return which node of the chain gives normalised images, told by what it computes."""
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    wanted = normalise(pixels, spec)
    source = backbone.graph.input[0].name
    for position, node in enumerate(chain):
        used = {name for step in chain for name in step.input}
        graph = helper.make_graph(
            chain[: position + 1],
            "arithmetic",
            [helper.make_tensor_value_info(source, TensorProto.UINT8, None)],
            [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
            initializer=[t for t in backbone.graph.initializer if t.name in used],
        )
        model = helper.make_model(graph, opset_imports=backbone.opset_import)
        (found,) = map(np.asarray, ReferenceEvaluator(model).run(None, {source: pixels}))
        like = found.shape == wanted.shape and found.dtype == wanted.dtype
        if like and np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max():
            return position
    return None


def add_arithmetic(
    pieces: Pieces, trunk: onnx.GraphProto, spec: PreprocessSpec, *, pixels: str, fold: bool
) -> None:
    """Add the nodes from ``pixels`` ``(batch, size, size, 3)`` uint8 to the trunk's input.

    Args:
        pieces: Where to.
        trunk: Its first convolution is changed where it takes over a part.
        spec: The arithmetic.
        pixels: Name of the pixels.
        fold: Let the first convolution take over what it can.
    """
    mean = 255 * np.array(spec.mean, np.float64)
    factor = 1 / (255 * np.array(spec.std, np.float64))
    first = _first_convolution(trunk) if fold else None
    if first is None:
        _add_rows(pieces, spec.image_size, mean, factor, pixels=pixels)
        return
    whole = not _is_padded(first)
    _fold_into(first, trunk, shift=-mean if whole else None, factor=factor)
    arranged = pieces.node(
        "Transpose", [pixels], "channels_first", attributes={"perm": _CHANNELS_FIRST}
    )
    to_float = {"to": TensorProto.FLOAT}
    if whole:
        pieces.node("Cast", [arranged], "values", output=TENSOR, attributes=to_float)
        return
    value = pieces.node("Cast", [arranged], "values", attributes=to_float)
    by = pieces.constant("centred_by", mean.astype(np.float32).reshape(1, 3, 1, 1))
    pieces.node("Sub", [value, by], "centred", output=TENSOR)


def _add_rows(
    pieces: Pieces, width: int, mean: np.ndarray, factor: np.ndarray, *, pixels: str
) -> None:
    """Add all of the arithmetic, on rows of ``3 · width`` values.

    Integer convolutions want their images channels last, so ONNX Runtime would do arithmetic per
    channel three numbers at a time (``backbones/int8/pixel_rows``).
    """
    flat, square = pieces.integers("row_shape", 0, 0, -1), pieces.integers("square", 0, 0, -1, 3)
    value = pieces.node("Reshape", [pixels, flat], "rows")
    value = pieces.node("Cast", [value], "values", attributes={"to": TensorProto.FLOAT})
    for op, name, numbers in (("Sub", "centred", mean), ("Mul", "normalised", factor)):
        row = pieces.constant(f"{name}_by", np.tile(numbers, width).astype(np.float32))
        value = pieces.node(op, [value, row], name)
    value = pieces.node("Reshape", [value, square], "channels_last")
    pieces.node("Transpose", [value], "tensor", output=TENSOR, attributes={"perm": _CHANNELS_FIRST})


def _first_convolution(trunk: onnx.GraphProto) -> onnx.NodeProto | None:
    """Return the convolution that alone reads the input and alone its weights, if there is one."""
    readers = [node for node in trunk.node if TENSOR in node.input and node.op_type != "Shape"]
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return None
    node = readers[0]
    constants = {tensor.name for tensor in trunk.initializer}
    own = list(node.input[1:])
    uses = [name for other in trunk.node for name in other.input if name in own]
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return node if set(own) <= constants and len(uses) == len(own) and groups == 1 else None


def _is_padded(convolution: onnx.NodeProto) -> bool:
    attributes = {attribute.name: attribute for attribute in convolution.attribute}
    if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"", b"NOTSET", b"VALID"):
        return True
    return "pads" in attributes and any(attributes["pads"].ints)


def _fold_into(
    convolution: onnx.NodeProto,
    trunk: onnx.GraphProto,
    *,
    shift: np.ndarray | None,
    factor: np.ndarray,
) -> None:
    """Let a convolution of normalised images read ``x``, or ``x + shift``, instead.

    Args:
        convolution: One of the trunk's nodes.
        trunk: Holds its weights.
        shift: Per channel, added to ``x`` before the factor; None where it has been added.
        factor: Per channel.
    """
    tensors = {tensor.name: tensor for tensor in trunk.initializer}
    weight = numpy_helper.to_array(tensors[convolution.input[1]]).astype(np.float64)
    scaled = weight * factor[None, :, None, None]
    _replace(tensors[convolution.input[1]], scaled)
    if shift is None:
        return
    added = (scaled * shift[None, :, None, None]).sum(axis=(1, 2, 3))
    if len(convolution.input) == 3:
        bias = tensors[convolution.input[2]]
        _replace(bias, numpy_helper.to_array(bias) + added)
    else:
        name = f"{convolution.input[1]}_shift"
        trunk.initializer.append(numpy_helper.from_array(added.astype(np.float32), name))
        convolution.input.append(name)


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove the nodes and initializers that no output needs."""
    needed = {value.name for value in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed & set(graph.node[i].output):
            needed.update(_names_read(graph.node[i]))
        else:
            del graph.node[i]
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def share_equal(graph: onnx.GraphProto) -> None:
    """Keep one of initializers that hold the same values.

    But for int8: ONNX Runtime makes uint8 of such constants, one for each reader, and then has two
    of one name.
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
    _read_instead(graph, names)


def _read_instead(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Let nodes read other tensors, those of inner graphs as well."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _read_instead(inner, names)


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for step in inner.node:
                yield from _names_read(step)
