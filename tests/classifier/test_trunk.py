"""Splitting a backbone at its normalised images, and folding the arithmetic where it is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from featx.classifier.contract import Contract, normalise
from featx.classifier.graph import build_classifier
from featx.classifier.trunk import drop_unused, share_equal, split_trunk
from featx.images.preprocess import PreprocessSpec

SPEC = PreprocessSpec(image_size=8, resize=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RNG = np.random.default_rng(5)


def backbone(
    *, pads: Sequence[int] = (0, 0, 0, 0), bias: bool = True, first: str = "Conv", **attributes: Any
) -> onnx.ModelProto:
    """Return a backbone as torch exports it: arithmetic, one layer, the mean of its maps."""
    weight = RNG.normal(size=(5, 3, 3, 3)).astype(np.float32)
    constants = {
        "w255": np.array(255, np.float32),
        "mean": np.array(SPEC.mean, np.float32).reshape(1, 3, 1, 1),
        "std": np.array(SPEC.std, np.float32).reshape(1, 3, 1, 1),
        "weight": weight,
        "bias": RNG.normal(size=5).astype(np.float32),
        "axes": np.array([2, 3]),
    }
    padding = {} if "auto_pad" in attributes else {"pads": list(pads)}
    inputs = ["normalised", "weight", *(["bias"] if bias else [])]
    layer = (
        helper.make_node("Conv", inputs, ["maps"], **padding, **attributes)
        if first == "Conv"
        else helper.make_node("Sigmoid", ["normalised"], ["maps"])
    )
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["first"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "w255"], ["unit"]),
        helper.make_node("Sub", ["unit", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
        layer,
        helper.make_node("ReduceMean", ["maps", "axes"], ["features"], keepdims=0),
    ]
    width = 5 if first == "Conv" else 3
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width])],
        initializer=[
            numpy_helper.from_array(value, name)
            for name, value in constants.items()
            if any(name in node.input for node in nodes)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


CASES: list[tuple[dict[str, Any], list[str]]] = [  # what is left of the arithmetic
    ({}, []),
    ({"bias": False}, []),
    ({"auto_pad": "VALID"}, []),
    ({"strides": [2, 2]}, []),
    ({"dilations": [2, 2]}, []),
    ({"pads": (1, 1, 1, 1)}, ["Sub"]),
    ({"pads": (0, 0, 1, 0), "bias": False}, ["Sub"]),
    ({"auto_pad": "SAME_UPPER"}, ["Sub"]),
    ({"first": "Sigmoid"}, ["Mul", "Sub"]),
]


@pytest.mark.parametrize(("settings", "left"), CASES, ids=str)
def test_the_first_convolution_takes_over_what_is_exact(
    settings: dict[str, Any], left: list[str]
) -> None:
    model = backbone(**settings)
    before = model.SerializeToString()
    pixels = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pixels[0] = 0  # black: what a wrongly padded mean shows most on
    (expected,) = run(model, pixels=pixels)
    head = np.eye(expected.shape[1], dtype=np.float32)
    layers = [(head, np.zeros(len(head), np.float32))]
    stitched = build_classifier(model, layers, SPEC, Contract("crop", ("logits",)))
    (found,) = run(stitched, image=pixels)
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max() + 1e-6)
    ops = {node.op_type for node in stitched.graph.node}
    assert ops & {"Sub", "Mul", "Div"} == set(left)
    assert model.SerializeToString() == before  # the backbone itself stays as it is


def test_weights_that_two_layers_share_are_left_alone() -> None:
    model = backbone()
    cut = helper.make_node("Conv", ["normalised", "weight", "bias"], ["maps2"])
    model.graph.node.insert(6, cut)
    model.graph.node[-1].input[0] = "both"
    model.graph.node.insert(7, helper.make_node("Add", ["maps", "maps2"], ["both"]))
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    (expected,) = run(model, pixels=pixels)
    layers = [(np.eye(5, dtype=np.float32), np.zeros(5, np.float32))]
    stitched = build_classifier(model, layers, SPEC, Contract("crop", ("logits",)))
    np.testing.assert_allclose(run(stitched, image=pixels)[0], expected, rtol=1e-4, atol=1e-5)
    assert {"Sub", "Mul"} <= {node.op_type for node in stitched.graph.node}


def test_the_trunk_starts_at_normalised_images() -> None:
    model = backbone(pads=(1, 1, 1, 1))
    trunk = split_trunk(model, SPEC)
    assert trunk is not None
    assert [node.op_type for node in trunk.graph.node] == ["Conv", "ReduceMean"]
    assert {t.name for t in trunk.graph.initializer} == {"weight", "bias", "axes"}
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found, expected = run(trunk, tensor=normalise(pixels, SPEC)), run(model, pixels=pixels)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)


def test_another_arithmetic_is_not_taken_for_it() -> None:
    other = PreprocessSpec(image_size=8, resize=8, mean=(0.5, 0.5, 0.5), std=SPEC.std)
    assert split_trunk(backbone(), other) is None


def test_what_no_output_needs_is_dropped() -> None:
    graph = backbone().graph
    graph.node.append(helper.make_node("Relu", ["maps"], ["dead"]))
    graph.node.append(helper.make_node("Add", ["dead", "ballast"], ["deader"]))
    graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "ballast"))
    before = len(graph.node)
    drop_unused(graph)
    assert len(graph.node) == before - 2
    assert "ballast" not in {tensor.name for tensor in graph.initializer}


def test_what_an_inner_graph_reads_is_kept_and_shared() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    inner = helper.make_graph([helper.make_node("Add", ["x", "two"], ["y"])], "inner", [], [value])
    node = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    tensors = {"yes": np.array(True), "one": np.ones(2), "two": np.ones(2), "gone": np.ones(2)}
    arrays = {n: v if v.dtype == bool else v.astype(np.float32) for n, v in tensors.items()}
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["out", "one"], ["z"])],
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        initializer=[numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    drop_unused(graph)
    assert {tensor.name for tensor in graph.initializer} == {"yes", "one", "two"}
    share_equal(graph)
    assert {tensor.name for tensor in graph.initializer} == {"yes", "one"}
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    np.testing.assert_array_equal(run(model, x=np.array([1, 2], np.float32))[0], [3, 4])


def test_zeros_of_another_sign_or_type_are_not_equal() -> None:
    arrays = [np.zeros(2, np.float32), -np.zeros(2, np.float32), np.zeros(2, np.int32),
              np.zeros((2, 1), np.float32)]  # fmt: skip
    graph = onnx.GraphProto()
    graph.initializer.extend(numpy_helper.from_array(a, f"t{i}") for i, a in enumerate(arrays))
    share_equal(graph)
    assert len(graph.initializer) == 4
