"""Preprocessing, backbone and head as one ONNX graph.

    image (batch, height, width, 3) uint8
      → resize → crop → [backbone: pixels → features] → head → logits → softmax → probabilities

The geometry repeats ``images.preprocess`` with integer arithmetic on the image's shape, so any
height and width is taken; images of one batch have the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featx.artifact import Header
from featx.classifier.seal import SEAL_BYTES, seal, unwanted_parts
from featx.errors import ExportError
from featx.images.preprocess import PreprocessSpec

INPUT = "image"
OUTPUTS = ("logits", "probabilities")
MAX_BYTES = 2**31 - 1
CONTRACT = (
    "image: uint8 (batch, height, width, 3), RGB, 0 to 255, any height and width, neither resized "
    "nor normalised (the graph does both). logits, probabilities: float32 (batch, num_classes), "
    "columns in the order of the metadata entry 'classes'."
)


def build_classifier(
    backbone: onnx.ModelProto,
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    preprocess: PreprocessSpec,
) -> onnx.ModelProto:
    """Return the stitched graph, checked, without a header.

    Args:
        backbone: ``pixels (batch, size, size, 3) uint8 → features (batch, D) float32``.
        layers: The head's weights ``(out, in)`` and biases ``(out,)``, float32.
        preprocess: The geometry before the backbone.

    Raises:
        ExportError: The result is not a valid ONNX model, or exceeds ONNX's limit of 2 GiB.
    """
    pieces = _Pieces()
    _add_geometry(pieces, preprocess, output=backbone.graph.input[0].name)
    pieces.take(backbone.graph)
    _add_head(pieces, layers, features=backbone.graph.output[0].name)
    num_classes = layers[-1][0].shape[0]
    graph = helper.make_graph(
        pieces.nodes,
        "featx",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", "height", "width", 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", num_classes])
            for name in OUTPUTS
        ],
        initializer=pieces.initializers,
        doc_string=CONTRACT,
    )
    model = helper.make_model(
        graph, opset_imports=backbone.opset_import, ir_version=backbone.ir_version
    )
    model.functions.extend(backbone.functions)
    model.producer_name = "featx"
    model.doc_string = CONTRACT
    _forget_origin(model.graph)
    _require_one_file(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as err:
        raise ExportError(f"The stitched graph is not valid ONNX: {err}") from err
    return model


def _forget_origin(graph: onnx.GraphProto) -> None:
    """Drop the exporter's notes on each part.

    They are stack traces: they name folders of this machine, and differ from run to run.
    """
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            _forget_origin(inner)


def with_header(model: onnx.ModelProto, header: Header) -> bytes:
    """Return the model as one self-contained, sealed file with the header in its metadata.

    Besides the header, ``classes`` and ``preprocess`` stand there as JSON of their own, and
    ``contract`` as text, for readers that don't know featx. The last entry is ``sha256``, of all
    that stands before it. Equal models and headers give equal bytes.

    Raises:
        ExportError: The file would exceed ONNX's limit of 2 GiB, or would not be opened again.
    """
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    entries = {
        "featx": header.to_json(),
        "classes": json.dumps(list(header.classes)),
        "preprocess": json.dumps(header.spec["preprocess"]),
        "contract": CONTRACT,
    }
    helper.set_model_props(stamped, entries)
    _require_one_file(stamped)
    content: bytes = stamped.SerializeToString(deterministic=True)
    if unwanted := unwanted_parts(content):
        raise ExportError(
            f"The graph of the backbone has {', '.join(unwanted)}; featx ships none of that."
        )
    return seal(content)


def _require_one_file(model: onnx.ModelProto) -> None:
    size = model.ByteSize() + SEAL_BYTES
    if size > MAX_BYTES:
        raise ExportError(
            f"The classifier takes {size / 2**30:.1f} GiB; one ONNX file holds at most 2. Choose a "
            "smaller backbone."
        )


# exclude_outside: Pillow gives no weight to what lies beyond the border; otherwise borders differ
# by more than rounding explains.
_FILTERS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear", "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
}


class _Pieces:
    """Nodes and initializers in the making; new names start with ``featx_``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def take(self, graph: onnx.GraphProto) -> None:
        self.nodes.extend(graph.node)
        self.initializers.extend(graph.initializer)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(value, f"featx_{name}"))
        return f"featx_{name}"

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, dtype=np.int64))

    def node(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node and return its output; ``name`` is kept as it is if it is a graph output."""
        output = name if name in OUTPUTS else f"featx_{name}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], f"featx_{name}_{op}", **attributes)
        )
        return output


def _add_geometry(pieces: _Pieces, spec: PreprocessSpec, *, output: str) -> None:
    """Add the nodes from ``image`` to ``output``, ``(batch, size, size, 3)`` uint8."""
    size = spec.image_size
    shape = pieces.node("Shape", [INPUT], "shape", start=1, end=3)  # (height, width)
    if spec.crop == "none":
        new_shape = pieces.integers("resized_shape", size, size)
    else:
        short = pieces.node("ReduceMin", [shape], "short_side", keepdims=1)
        scaled = pieces.node("Mul", [shape, pieces.integers("resize", spec.resize)], "scaled")
        new_shape = pieces.node("Div", [scaled, short], "resized_shape")
    resized = _add_resize(pieces, shape, new_shape, spec)
    if spec.crop == "none":
        pieces.nodes.append(helper.make_node("Identity", [resized], [output], "featx_pixels"))
        return
    # round((length - size) / 2), halves to even, as torchvision's CenterCrop has it
    margin = pieces.node("Sub", [new_shape, pieces.integers("size", size, size)], "margin")
    as_float = pieces.node("Cast", [margin], "margin_float", to=TensorProto.FLOAT)
    half = pieces.node(
        "Mul", [as_float, pieces.constant("half", np.array(0.5, np.float32))], "half_margin"
    )
    rounded = pieces.node("Round", [half], "rounded_margin")
    start = pieces.node("Cast", [rounded], "crop_start", to=TensorProto.INT64)
    end = pieces.node("Add", [start, "featx_size"], "crop_end")
    axes = pieces.integers("crop_axes", 1, 2)
    pieces.nodes.append(
        helper.make_node("Slice", [resized, start, end, axes], [output], "featx_pixels")
    )


def _add_resize(pieces: _Pieces, shape: str, new_shape: str, spec: PreprocessSpec) -> str:
    """Add the resize to ``new_shape`` (height, width) and return its output.

    Pillow resizes one axis after the other and rounds to uint8 in between, so the order shows,
    most where bicubic overshoots. It takes the width first, but from version 13 on
    the height where that loses more than twice as many pixels. So there are two nodes, each for
    one axis.
    """
    zero, one = pieces.integers("zero", 0), pieces.integers("one", 1)
    lost = pieces.node("Sub", [shape, new_shape], "lost")
    lost_height = pieces.node("Gather", [lost, zero], "lost_height")
    lost_width = pieces.node("Gather", [lost, one], "lost_width")
    twice = pieces.node("Add", [lost_width, lost_width], "lost_width_twice")
    limit = pieces.node("Max", [twice, zero], "lost_limit")
    height_first = pieces.node("Greater", [lost_height, limit], "height_first")
    is_height = pieces.constant("is_height", np.array([True, False]))
    goes_first = pieces.node("Equal", [is_height, height_first], "goes_first")
    between = pieces.node("Where", [goes_first, new_shape, shape], "shape_between")
    values = INPUT
    for name, target in (("half_resized", between), ("resized", new_shape)):
        values = pieces.node(
            "Resize",
            [values, "", "", target],
            name,
            antialias=1,
            axes=[1, 2],
            coordinate_transformation_mode="half_pixel",
            **_FILTERS[spec.interpolation],
        )
    return values


def _add_head(
    pieces: _Pieces, layers: Sequence[tuple[np.ndarray, np.ndarray]], *, features: str
) -> None:
    values = features
    for i, (weight, bias) in enumerate(layers):
        last = i == len(layers) - 1
        inputs = [
            values,
            pieces.constant(f"head_{i}_weight", weight.astype(np.float32)),
            pieces.constant(f"head_{i}_bias", bias.astype(np.float32)),
        ]
        values = pieces.node("Gemm", inputs, OUTPUTS[0] if last else f"head_{i}", transB=1)
        if not last:
            values = pieces.node("Relu", [values], f"head_{i}_relu")
    pieces.node("Softmax", [values], OUTPUTS[1], axis=-1)
