"""Preprocessing, backbone and head as one ONNX graph.

    image (batch, height, width, 3) uint8
      → resize → crop → normalise → [trunk: → features] → head → logits → softmax → probabilities

Of tags it is a sigmoid; of a regression, the head gives ``values`` and nothing follows.

What goes in and what comes out is chosen by a ``Contract``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from featx.artifact import Header
from featx.classifier.contract import Contract, Value
from featx.classifier.geometry import add_geometry
from featx.classifier.graph_builder import Pieces
from featx.classifier.precision import to_float16
from featx.classifier.seal import SEAL_BYTES, seal, unwanted_parts
from featx.classifier.trunk import add_arithmetic, drop_unused, share_equal, split_trunk
from featx.errors import ExportError
from featx.heads.tasks import SINGLE_LABEL, task_of
from featx.images.preprocess import PreprocessSpec

MAX_BYTES = 2**31 - 1
_TYPES = {
    "uint8": TensorProto.UINT8,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
}


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
        preprocess: What stands before the trunk.
        contract: What goes in and comes out; None takes images of any size, and gives logits and
            probabilities.
        half: Let the trunk be float16.

    Raises:
        ConfigError: The contract asks for more classes than there are.
        ExportError: The backbone does not take what the contract gives it, the result is not a
            valid ONNX model, or it exceeds ONNX's limit of 2 GiB.
    """
    contract = contract or Contract()
    if isinstance(backbone, bytes):
        backbone = onnx.load_from_string(backbone)
    num_classes, num_features = layers[-1][0].shape[0], layers[0][0].shape[1]
    source = contract.input_value(preprocess)
    results = contract.output_values(num_classes=num_classes, num_features=num_features)
    pieces = Pieces()
    features = _add_backbone(pieces, backbone, preprocess, contract, half=half)
    raw = _add_head(pieces, layers, features=features, output=contract.raw_output)
    _add_outputs(pieces, raw, contract, features=features)
    text = contract.describe(preprocess, num_classes=num_classes, num_features=num_features)
    graph = helper.make_graph(
        pieces.nodes,
        "featx",
        [],
        [_declared(value) for value in results],
        initializer=pieces.initializers,
        doc_string=text,
    )
    drop_unused(graph)
    share_equal(graph)
    _forget_origin(graph)
    graph.doc_string = text
    graph.input.append(_declared(source))
    # The oldest version that has the opset: runtimes of that time refuse later ones.
    ir_version = helper.find_min_ir_version_for(backbone.opset_import, ignore_unknown=True)
    model = helper.make_model(graph, opset_imports=backbone.opset_import, ir_version=ir_version)
    model.functions.extend(backbone.functions)
    model.producer_name = "featx"
    model.doc_string = text
    _require_one_file(model)
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
    pieces: Pieces,
    backbone: onnx.ModelProto,
    spec: PreprocessSpec,
    contract: Contract,
    *,
    half: bool,
) -> str:
    """Add all from the input to the features, and return their name.

    Raises:
        ExportError: Normalised images are needed, but the backbone has none.
    """
    trunk = split_trunk(backbone, spec)
    if trunk is None and (contract.input == "tensor" or half):
        raise ExportError(
            "The backbone's graph does not normalise its images by the usual steps, so it can "
            "neither take normalised ones nor be float16. Use --input crop and fp32."
        )
    if trunk is not None and half:
        trunk = to_float16(trunk)
    graph = onnx.GraphProto()
    graph.CopyFrom((trunk or backbone).graph)
    _rename(graph, {name: f"{name}_inside" for name in _reserved(contract, graph)})
    pixels = contract.input_name
    if contract.input == "image":
        pixels = "pixels" if trunk is None else "featx_pixels"
        add_geometry(pieces, spec, image=contract.input_name, output=pixels)
    if trunk is None:
        _rename(graph, {graph.input[0].name: pixels})
    elif contract.input != "tensor":
        add_arithmetic(pieces, graph, spec, pixels=pixels, fold=not half)
    pieces.take(graph)
    return str(graph.output[0].name)


def _reserved(contract: Contract, graph: onnx.GraphProto) -> set[str]:
    """Return the names that a backbone must not use for what is inside of it."""
    own = {graph.input[0].name, graph.output[0].name}
    results = {"logits", "probabilities", "values", "top_scores", "top_classes"}
    return {contract.input_name, *results} - own


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for part in (*graph.initializer, *graph.input):
        part.name = names.get(part.name, part.name)


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
    ``contract`` as text, for readers that don't know featx; also the ``task`` where it is not
    single-label, and ``thresholds`` of tags. The last entry is ``sha256``, of all that stands
    before it. Equal models and headers give equal bytes.

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
    pieces: Pieces,
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    features: str,
    output: str,
) -> str:
    """Add the layers up to ``output``, logits or values, and return its name."""
    values = features
    for i, (weight, bias) in enumerate(layers):
        last = i == len(layers) - 1
        inputs = [
            values,
            pieces.constant(f"head_{i}_weight", weight.astype(np.float32)),
            pieces.constant(f"head_{i}_bias", bias.astype(np.float32)),
        ]
        name = output if last else None
        values = pieces.node("Gemm", inputs, f"head_{i}", output=name, attributes={"transB": 1})
        if not last:
            values = pieces.node("Relu", [values], f"head_{i}_relu")
    return values


def _add_outputs(pieces: Pieces, raw: str, contract: Contract, *, features: str) -> None:
    """Add what the contract gives besides the logits or values."""
    if features != "features" and "features" in contract.outputs:
        pieces.node("Identity", [features], "features", output="features")
    if not (operator := contract.task.activation):
        return
    name, attributes = "probabilities", {"axis": -1} if operator == "Softmax" else None
    probabilities = pieces.node(operator, [raw], name, output=name, attributes=attributes)
    if k := contract.top_k:
        pieces.node(
            "TopK",
            [probabilities, pieces.integers("top_k", k)],
            "top_scores",
            output="top_scores",
            attributes={"axis": -1},
        )
        pieces.nodes[-1].output.append("top_classes")
