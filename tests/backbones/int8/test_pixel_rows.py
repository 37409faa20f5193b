"""Row by row: the same bits, by nodes that know no channels; other graphs stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import read_graph, recall
from featx.backbones.int8.calibrate import calibrate
from featx.backbones.int8.pixel_rows import with_pixel_rows
from featx.backbones.int8.quantize import quantize_graph
from featx.backbones.spec import BackboneRequest

Pixels = Callable[..., np.ndarray]
SIZE = 8
RNG = np.random.default_rng(3)
BY_CHANNEL = {name: RNG.normal(1, 0.2, (1, 3, 1, 1)).astype(np.float32) for name in "abc"}
SCALAR = {"s": np.array(255, np.float32)}
TRANSPOSE, CAST = ("Transpose", ""), ("Cast", "")
Step = tuple[str, str]


def graph_of(steps: Sequence[Step], *, more: Sequence[onnx.NodeProto] = ()) -> bytes:
    """Return a graph of steps ``(operator, constant)`` and a maximum."""
    nodes, value = [], "pixels"
    for number, (op, constant) in enumerate(steps):
        attributes = {"Transpose": {"perm": [0, 3, 1, 2]}, "Cast": {"to": TensorProto.FLOAT}}
        inputs = [value, constant] if constant else [value]
        value = f"v{number}"
        nodes.append(helper.make_node(op, inputs, [value], **attributes.get(op, {})))
    nodes += [helper.make_node("ReduceMax", [value, "axes"], ["features"], keepdims=0), *more]
    constants = BY_CHANNEL | SCALAR | {"axes": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3, SIZE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


USUAL: list[Step] = [TRANSPOSE, CAST, ("Div", "s"), ("Sub", "a"), ("Div", "b")]


def test_rows_stand_before_the_transposition(pixels: Pixels) -> None:
    graph = graph_of(USUAL)
    found = with_pixel_rows(graph)
    arithmetic = ["Reshape", "Cast", "Div", "Sub", "Div", "Reshape", "Transpose"]
    assert operators(found) == [*arithmetic, "ReduceMax"]
    onnx.checker.check_model(onnx.load_from_string(found), full_check=True)
    for count in (1, 3):
        images = pixels(count, SIZE)
        same = OnnxEngine(found).features(images) == OnnxEngine(graph).features(images)
        assert same.all()
    assert with_pixel_rows(found) == found


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["Add", "Sub", "Mul", "Div"]), st.sampled_from("abcs")),
        min_size=1,
        max_size=5,
    ),
    before=st.integers(0, 2),
)
def test_any_arithmetic_gives_the_same_bits(steps: list[Step], before: int) -> None:
    scalars = [(op, "s") for op, _ in steps[:before]]
    graph = graph_of([CAST, *scalars, TRANSPOSE, *steps])
    found = with_pixel_rows(graph)
    assert (found == graph) == all(name == "s" for _, name in steps)
    images = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    with np.errstate(all="ignore"):
        one, other = (OnnxEngine(each).features(images) for each in (found, graph))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "steps",
    [
        [CAST, TRANSPOSE],
        [TRANSPOSE, CAST, ("Div", "s")],
        [TRANSPOSE, CAST, ("Pow", "a")],
    ],
)
def test_other_graphs_stay_as_they_are(steps: list[Step]) -> None:
    assert with_pixel_rows(graph_of(steps)) == graph_of(steps)


def test_a_value_that_others_read_is_left_to_them(pixels: Pixels) -> None:
    also = helper.make_node("ReduceMin", ["v2", "axes"], ["unused"], keepdims=0)
    graph = graph_of(USUAL, more=[also])
    assert with_pixel_rows(graph) == graph


def test_the_bundled_backbone_in_int8(pixels: Pixels) -> None:
    found = recall(BackboneRequest("tiny"))
    assert found
    own = read_graph(found.spec)
    assert own
    images = pixels(6, 32)
    graph = quantize_graph(own, calibrate(own, [images]))
    rows = with_pixel_rows(graph)
    assert operators(rows) != operators(graph)
    assert (
        OnnxEngine(rows).features(images).tobytes() == OnnxEngine(graph).features(images).tobytes()
    )
