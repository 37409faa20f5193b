"""Changing graphs: what no output needs, and equal constants."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from featx.backbones.graph_builder import drop_unused, share_equal


def test_what_no_output_needs_is_dropped():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["maps"]), helper.make_node("Relu", ["maps"], ["dead"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, [2])],
    )
    graph.node.append(helper.make_node("Add", ["dead", "ballast"], ["deader"]))
    graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "ballast"))
    drop_unused(graph)
    assert [node.output[0] for node in graph.node] == ["maps"]
    assert "ballast" not in {tensor.name for tensor in graph.initializer}


def test_equal_constants_are_shared():
    arrays = {"one": np.ones(2, np.float32), "two": np.ones(2, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "one"], ["y"]),
            helper.make_node("Add", ["y", "two"], ["z"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
        initializer=[numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    share_equal(graph)
    assert [tensor.name for tensor in graph.initializer] == ["one"]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.array([1, 2], np.float32)})
    np.testing.assert_array_equal(found, [3, 4])


def test_zeros_of_another_sign_or_type_are_not_equal():
    arrays = [np.zeros(2, np.float32), -np.zeros(2, np.float32), np.zeros(2, np.int32),
              np.zeros((2, 1), np.float32)]  # fmt: skip
    graph = onnx.GraphProto()
    graph.initializer.extend(numpy_helper.from_array(a, f"t{i}") for i, a in enumerate(arrays))
    share_equal(graph)
    assert len(graph.initializer) == 4
