from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from featx.backbones.graph_cache import read_graph, recall
from featx.backbones.spec import BackboneRequest
from featx.classifier.precision import to_float16
from featx.classifier.trunk import split_trunk
from featx.errors import ExportError


@pytest.fixture(scope="module")
def trunk() -> onnx.ModelProto:
    found = recall(BackboneRequest("tiny"))
    assert found is not None
    graph = read_graph(found.spec)
    assert graph is not None
    split = split_trunk(onnx.load_from_string(graph), found.spec.preprocess)
    assert split is not None
    return split


def _features(model: onnx.ModelProto, tensor: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {"tensor": tensor})
    return np.asarray(found)


def test_the_trunk_is_float16_between_float32_ends(trunk: onnx.ModelProto) -> None:
    tensor = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    expected = _features(trunk, tensor)
    half = to_float16(trunk)
    onnx.checker.check_model(half)
    kinds = {t.data_type for t in half.graph.initializer if t.data_type != onnx.TensorProto.INT64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ends = (*half.graph.input, *half.graph.output)
    assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
    found = _features(half, tensor)
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert 0 < difference <= 1e-2 * np.abs(expected).max()


def test_what_cannot_be_converted_is_an_export_error(
    trunk: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.transformers import float16

    def refuse(*arguments: object, **options: object) -> None:
        raise ValueError("a type it does not know")

    monkeypatch.setattr(float16, "convert_float_to_float16", refuse)
    with pytest.raises(ExportError, match="float16: a type it does not know"):
        to_float16(trunk)
