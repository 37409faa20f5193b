from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from featx.backbones import onnx_graph
from featx.backbones.catalog import default_preprocess
from featx.backbones.graph_builder import NORMALISED
from featx.backbones.graph_cache import OPSET
from featx.backbones.network import Network, build_network
from featx.backbones.onnx_graph import build_graph, export_network, relative_error
from featx.backbones.torch_engine import TorchEngine
from featx.backbones.weights import open_weights
from featx.classifier.contract import normalise
from featx.errors import ExportError


@pytest.fixture(scope="module")
def network() -> Network:
    return build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))[0]


@pytest.fixture(scope="module")
def model(network: Network) -> onnx.ModelProto:
    return export_network(network, image_size=32)


def _run(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features: np.ndarray = session.run(["features"], {"pixels": pixels})[0]
    return features


def test_the_graph_has_the_contracts_inputs_and_outputs(model):
    onnx.checker.check_model(model)
    (pixels,), (features,) = model.graph.input, model.graph.output
    assert (pixels.name, features.name) == ("pixels", "features")
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert features.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    dims = pixels.type.tensor_type.shape.dim
    assert dims[0].dim_param
    assert [dim.dim_value for dim in dims][1:] == [32, 32, 3]
    assert features.type.tensor_type.shape.dim[1].dim_value == 192
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", OPSET)}


def test_the_graph_is_self_contained(model):
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_the_graph_gives_the_networks_features(batch, network, model, pixels):
    images = pixels(batch, 32, seed=batch)
    expected = TorchEngine(network, device="cpu").features(images)
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(_run(model, images), expected, rtol=1e-4, atol=bound)


@pytest.mark.parametrize("value", [0, 255], ids=["black", "white"])
def test_the_ends_of_the_range(value, network, model):
    images = np.full((1, 32, 32, 3), value, np.uint8)
    expected = TorchEngine(network, device="cpu").features(images)
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(_run(model, images), expected, rtol=1e-4, atol=bound)


@pytest.mark.parametrize(
    ("layer", "pool"), [("stage2", "max"), ("stage2", "avg"), ("stage1", "flatten")]
)
def test_pooling_is_in_the_graph(layer, pool, pixels):
    network, spec = build_network(
        "tiny", open_weights("tiny"), default_preprocess("tiny"), layer=layer, pool=pool
    )
    images = pixels(2, 32)
    expected = TorchEngine(network, device="cpu").features(images)
    found = _run(export_network(network, image_size=32), images)
    assert found.shape == (2, spec.num_features)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_exporting_twice_gives_the_same_weights(network, model):
    again = export_network(network, image_size=32)
    first = {t.name: t.SerializeToString() for t in model.graph.initializer}
    assert {t.name: t.SerializeToString() for t in again.graph.initializer} == first


def test_exporting_is_quiet_and_leaves_the_loggers_alone(network, capfd, caplog):
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    export_network(network, image_size=32)
    assert [logger.level for logger in loggers] == before
    assert capfd.readouterr().out == ""
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []


@pytest.mark.parametrize("error", [RuntimeError, torch.onnx.OnnxExporterError])
def test_what_the_exporter_refuses_is_an_export_error(error, network, monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise error("no such operator\nand a long story")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    levels = [logging.getLogger("torch.onnx").level]
    with pytest.raises(ExportError, match=r"cannot translate the backbone: no such operator$"):
        export_network(network, image_size=32)
    assert [logging.getLogger("torch.onnx").level] == levels


def test_nothing_exported_is_an_export_error(network, monkeypatch):
    monkeypatch.setattr(onnx_graph.torch.onnx, "export", lambda *args, **options: None)
    with pytest.raises(ExportError, match="returned nothing"):
        export_network(network, image_size=32)


def test_a_built_graph_was_compared_with_its_network(network, monkeypatch):
    def shifted(network: Network, *, image_size: int, opset: int) -> onnx.ModelProto:
        model = export_network(network, image_size=image_size, opset=opset)
        weights = next(t for t in model.graph.initializer if "conv" in t.name or len(t.dims) == 4)
        values = onnx.numpy_helper.to_array(weights) * 1.001
        weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights.name))
        return model

    assert build_graph(network, image_size=32)
    monkeypatch.setattr(onnx_graph, "export_network", shifted)
    with pytest.raises(ExportError, match=r"relative error \d.*e-0[1-4], at most 1e-04"):
        build_graph(network, image_size=32)


def test_a_graph_that_does_not_run_is_an_export_error(network, monkeypatch):
    monkeypatch.setattr(onnx_graph, "export_network", lambda network, **options: onnx.ModelProto())
    with pytest.raises(ExportError, match="graph cannot be run"):
        build_graph(network, image_size=32)


def test_the_error_is_relative_to_each_row():
    expected = np.array([[3.0, 4.0], [300.0, 400.0]], dtype=np.float32)
    found = expected + np.array([[0.0, 0.05], [0.5, 0.0]], dtype=np.float32)
    assert relative_error(found, expected) == pytest.approx(0.01, rel=1e-4)
    assert np.isnan(relative_error(found * np.nan, expected))
    assert relative_error(found * 1e30, expected * 1e30) == pytest.approx(0.01, rel=1e-4)


def test_the_graph_begins_with_featxs_own_arithmetic(model, pixels):
    """On rows of pixels, up to normalised images under the name that export cuts at."""
    last = next(i for i, node in enumerate(model.graph.node) if NORMALISED in node.output)
    arithmetic = list(model.graph.node)[: last + 1]
    ops = ["Reshape", "Cast", "Div", "Sub", "Div", "Reshape", "Transpose"]
    assert [node.op_type for node in arithmetic] == ops
    assert all(node.name.startswith("featx_") for node in arithmetic)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output[0].name = NORMALISED
    del shown.graph.output[0].type.tensor_type.shape.dim[:]
    shown.graph.output[0].type.tensor_type.ClearField("shape")
    session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    images = pixels(2, 32)
    (found,) = session.run(None, {"pixels": images})
    expected = normalise(images, default_preprocess("tiny"))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_graph_whose_exporter_gives_other_names_is_refused(network, monkeypatch):
    monkeypatch.setattr(onnx_graph, "NORMALISED", "nowhere")
    with pytest.raises(ExportError, match="gives no tensor the name 'nowhere'"):
        export_network(network, image_size=32)


def test_the_graph_holds_no_notes_of_the_exporter(model):
    parts = (model.graph, *model.graph.node, *model.graph.initializer)
    assert not any(part.metadata_props or part.doc_string for part in parts)
