"""Preprocessing, backbone and head as one ONNX graph, with the inputs and outputs of a contract.

image (batch, height, width, 3) uint8
  → resize → crop → normalise → [trunk: → features] → head → logits → softmax → probabilities
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from featx.artifact import Header
from featx.backbones.graph_builder import (
    NORMALISED,
    GraphBuilder,
    drop_unused,
    forget_origin,
    rename,
    share_equal,
)
from featx.backbones.seal import SEAL_BYTES, unwanted_parts
from featx.classifier.contract import Contract, Value
from featx.classifier.fixed_resize import add_fixed_geometry
from featx.classifier.image_nodes import TENSOR, add_arithmetic, add_geometry
from featx.classifier.seal import seal
from featx.errors import ExportError
from featx.heads.tasks import SINGLE_LABEL, task_of
from featx.images.preprocess import PreprocessSpec

Model = onnx.ModelProto
MAX_BYTES = 2**31 - 1
IR_VERSIONS = {18: 8, 19: 9, 20: 9}
"""The oldest version that has each opset: runtimes of that time refuse later ones."""
_RESULTS = ("logits", "probabilities", "values", "top_scores", "top_classes")
_TYPES = {
    "uint8": TensorProto.UINT8,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
}

_MAX_VALUES = 2**18
"""Values of a constant at most; larger ones are weights."""
_KEPT = ("QuantizeLinear", "DequantizeLinear")
"""Operators that are not folded: int8 weights stay int8."""


def build_classifier(
    backbone: onnx.ModelProto | bytes,
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    preprocess: PreprocessSpec,
    contract: Contract | None = None,
    *,
    half: bool = False,
) -> onnx.ModelProto:
    """Return the stitched graph, checked, without a header.

    Args:
        backbone: ``pixels (batch, size, size, 3) uint8 → features (batch, D) float32``, serialised
            or not.
        layers: The head's weights ``(out, in)`` and biases ``(out,)``, float32.
        preprocess: From images to the trunk's input.
        contract: Inputs and outputs; by default those of ``Contract()``.
        half: Let the trunk be float16.

    Raises:
        ConfigError: The contract asks for more classes than there are.
        ExportError: The backbone cannot be float16, the result is not a valid ONNX model, or it
            exceeds ONNX's limit of 2 GiB.
    """
    contract = contract or Contract()
    if isinstance(backbone, bytes):
        backbone = onnx.load_from_string(backbone)
    num_classes, num_features = layers[-1][0].shape[0], layers[0][0].shape[1]
    source = contract.input_value(preprocess)
    results = contract.output_values(num_classes=num_classes, num_features=num_features)
    builder = GraphBuilder()
    features = _add_backbone(builder, backbone, preprocess, contract, half=half)
    raw = _add_head(builder, layers, features=features, output=contract.task.raw_output)
    _add_outputs(builder, raw, contract, features=features)
    text = contract.describe(preprocess, num_classes=num_classes, num_features=num_features)
    graph = helper.make_graph(
        builder.nodes,
        "featx",
        [],
        [_declared(value) for value in results],
        initializer=builder.initializers,
        doc_string=text,
    )
    drop_unused(graph)
    share_equal(graph)
    forget_origin(graph)
    graph.doc_string = text
    graph.input.append(_declared(source))
    opset = next(each.version for each in backbone.opset_import if not each.domain)
    ir_version = IR_VERSIONS[opset]
    model = helper.make_model(graph, opset_imports=backbone.opset_import, ir_version=ir_version)
    model.functions.extend(backbone.functions)
    model.producer_name = "featx"
    model.doc_string = text
    _require_one_file(model)
    if contract.batch:
        fold_constants(model)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as err:
        raise ExportError(f"The stitched graph is not valid ONNX: {err}") from err
    return model


def _declared(value: Value) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        value.name, _TYPES[value.dtype], list(value.shape), doc_string=value.text
    )


def _add_backbone(
    builder: GraphBuilder,
    backbone: onnx.ModelProto,
    spec: PreprocessSpec,
    contract: Contract,
    *,
    half: bool,
) -> str:
    """Add all from the input to the features, and return their name."""
    trunk = cut_trunk(backbone, spec.image_size)
    graph = (to_float16(trunk) if half else trunk).graph
    own = {graph.input[0].name, graph.output[0].name}
    rename(graph, {name: f"{name}_inside" for name in {contract.input_name, *_RESULTS} - own})
    pixels = contract.input_name
    if contract.input == "image":
        pixels = "featx_pixels"
        if contract.image_shape:
            shape = contract.image_shape
            add_fixed_geometry(builder, spec, image="image", output=pixels, shape=shape)
        else:
            add_geometry(builder, spec, image=contract.input_name, output=pixels)
    if contract.input != "tensor":
        add_arithmetic(builder, graph, spec, pixels=pixels, fold=not half)
    builder.nodes.extend(graph.node)
    builder.initializers.extend(graph.initializer)
    return str(graph.output[0].name)


def cut_trunk(backbone: onnx.ModelProto, image_size: int) -> onnx.ModelProto:
    """Return the part of a backbone's graph behind its normalised images."""
    trunk = onnx.ModelProto()
    trunk.CopyFrom(backbone)
    graph = trunk.graph
    nodes = [node for node in graph.node if NORMALISED not in node.output]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    rename(graph, {NORMALISED: TENSOR})
    shape: list[str | int | None] = ["batch", 3, image_size, image_size]
    graph.input.append(helper.make_tensor_value_info(TENSOR, TensorProto.FLOAT, shape))
    drop_unused(graph)
    return trunk


def to_float16(trunk: onnx.ModelProto) -> onnx.ModelProto:
    """Return a trunk whose weights and arithmetic are float16; its input and features stay float32.

    Values beyond float16's range are cut off.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that is too small
            converted: onnx.ModelProto = convert_float_to_float16(
                trunk, keep_io_types=True, disable_shape_infer=True
            )
    except (ValueError, RuntimeError, AttributeError) as err:
        raise ExportError(f"The backbone cannot be converted to float16: {err}") from err
    nodes = sorted(converted.graph.node, key=lambda node: TENSOR not in node.input)
    del converted.graph.node[:]  # the converter puts the cast of the input last
    converted.graph.node.extend(nodes)
    return converted


def with_header(model: onnx.ModelProto, header: Header) -> bytes:
    """Return the model as one self-contained, sealed file with the header in its metadata.

    What readers that don't know featx need has entries of its own. Equal models and headers give
    equal bytes.

    Raises:
        ExportError: The file would exceed ONNX's limit of 2 GiB, or would not be opened again.
    """
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    entries = {
        "featx": header.to_json(),
        "classes": json.dumps(list(header.classes)),
        "preprocess": json.dumps(header.spec["preprocess"]),
        "contract": model.doc_string,
    }
    if (task := task_of(header.details)) is not SINGLE_LABEL:
        entries["task"] = task.name
    if thresholds := task.thresholds_of(header.details, len(header.classes)):
        entries["thresholds"] = json.dumps(list(thresholds))
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


def _add_head(
    builder: GraphBuilder,
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    features: str,
    output: str,
) -> str:
    """Add the layers up to ``output``, logits or values, and return its name."""
    values = features
    for i, (weight, bias) in enumerate(layers):
        is_last = i == len(layers) - 1
        inputs = [
            values,
            builder.constant(f"head_{i}_weight", weight.astype(np.float32)),
            builder.constant(f"head_{i}_bias", bias.astype(np.float32)),
        ]
        name = output if is_last else None
        values = builder.node("Gemm", inputs, f"head_{i}", output=name, attributes={"transB": 1})
        if not is_last:
            values = builder.node("Relu", [values], f"head_{i}_relu")
    return values


def _add_outputs(builder: GraphBuilder, raw: str, contract: Contract, *, features: str) -> None:
    """Add the outputs besides the logits or values."""
    if features != "features" and "features" in contract.outputs:
        builder.node("Identity", [features], "features", output="features")
    if not (operator := contract.task.activation):
        return
    name, attributes = "probabilities", {"axis": -1} if operator == "Softmax" else None
    probabilities = builder.node(operator, [raw], name, output=name, attributes=attributes)
    if k := contract.top_k:
        builder.node(
            "TopK",
            [probabilities, builder.integers("top_k", k)],
            "top_scores",
            output="top_scores",
            attributes={"axis": -1},
        )
        builder.nodes[-1].output.append("top_classes")


# --- constants ------------------------------------------------------------------------------------


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
