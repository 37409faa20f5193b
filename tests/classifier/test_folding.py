from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from featx.classifier.folding import fold_constants


def model_of(batch: int | str) -> onnx.ModelProto:
    """Return a graph that reads the number of images, as a transformer does for its class token."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["token_shape"], axis=0),
        helper.make_node("Expand", ["token", "token_shape"], ["tokens"]),
        helper.make_node("Concat", ["tokens", "x"], ["joined"], axis=1),
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        helper.make_node("MatMul", ["joined", "w"], ["y"]),
    ]
    constants = {
        "rest": np.array([1, 4]),
        "token": np.arange(4, dtype=np.float32).reshape(1, 1, 4),
        "w8": np.arange(-4, 4, dtype=np.int8).reshape(4, 2),
        "scale": np.array(0.5, np.float32),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4, 2])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_what_a_known_batch_decides_becomes_constants_and_int8_weights_stay():
    plain, folded = model_of(2), model_of(2)
    fold_constants(folded)
    onnx.checker.check_model(folded)
    assert [node.op_type for node in folded.graph.node] == ["Concat", "DequantizeLinear", "MatMul"]
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    before, after = (ReferenceEvaluator(own).run(None, {"x": x})[0] for own in (plain, folded))
    np.testing.assert_array_equal(before, after)


def test_an_unknown_batch_stays_computed():
    model = model_of("batch")
    fold_constants(model)
    assert "Shape" in [node.op_type for node in model.graph.node]
