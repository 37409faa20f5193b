from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from headers import complete_header
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from featx.artifact import Header
from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import read_graph, recall
from featx.backbones.seal import is_sealed
from featx.backbones.spec import BackboneRequest
from featx.classifier import graph as graph_module
from featx.classifier.contract import Contract, normalise
from featx.classifier.graph import (
    build_classifier,
    cut_trunk,
    fold_constants,
    to_float16,
    with_header,
)
from featx.classifier.session import load_classifier
from featx.errors import ExportError
from featx.heads.head import apply_layers
from featx.images.preprocess import PreprocessSpec, preprocess


def _noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_graph_keeps_its_contract(plain, spec):
    onnx.checker.check_model(plain, full_check=True)
    (image,) = plain.graph.input
    assert image.name == "image"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    dims = image.type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims[:3]] == ["batch", "height", "width"]
    assert dims[3].dim_value == 3
    assert tuple(output.name for output in plain.graph.output) == ("logits", "probabilities")
    assert (
        plain.doc_string
        == plain.graph.doc_string
        == Contract().describe(spec, num_classes=2, num_features=192)
    )
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in plain.graph.initializer)


def test_the_whole_is_preprocessing_then_backbone_then_head(classifier, layer, spec):
    for height, width in ((8, 8), (31, 57), (57, 31), (1, 1), (3, 250)):
        image = _noise(height, width)
        features = preprocess(image, spec).reshape(1, -1).astype(np.float32)
        logits = classifier.logits(image[None])
        # a level of difference in each pixel at the very most
        bound = np.abs(layer[0]).sum(axis=1).max() + 1e-4
        assert np.abs(logits - apply_layers([layer], features)).max() <= bound
    image = _noise(10, 10)  # nothing to resize: exact
    features = preprocess(image, spec).reshape(1, -1).astype(np.float32)
    np.testing.assert_allclose(
        classifier.logits(image[None]), apply_layers([layer], features), rtol=1e-5, atol=1e-5
    )


def test_probabilities_are_the_softmax_of_the_logits(classifier):
    found = classifier.run(np.stack([_noise(20, 30, seed=s) for s in range(4)]))
    logits, probabilities = found["logits"], found["probabilities"]
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, raised / raised.sum(1, keepdims=True), atol=1e-6)
    assert logits.dtype == probabilities.dtype == np.float32


def test_huge_logits_give_finite_probabilities(flat, spec, header):
    layer = (np.array([[1e4], [-1e4]], np.float32).repeat(192, 1), np.zeros(2, np.float32))
    model = build_classifier(flat(8), [layer], spec)
    classifier = load_classifier(with_header(model, header), path=Path("huge.onnx"))
    probabilities = classifier.run(np.full((1, 9, 9, 3), 255, np.uint8))["probabilities"]
    np.testing.assert_array_equal(probabilities, [[1, 0]])


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5), (1, 1, 1)])
@pytest.mark.parametrize("num_classes", [2, 11])
def test_heads_of_any_depth(hidden, num_classes, flat, spec):
    rng = np.random.default_rng(1)
    widths = [192, *hidden, num_classes]
    layers = [
        (rng.normal(size=(out, into)).astype(np.float32) / 50, rng.normal(size=out))
        for into, out in pairwise(widths)
    ]
    layers = [(weight, bias.astype(np.float32)) for weight, bias in layers]
    classes = tuple(f"class {i}" for i in range(num_classes))
    header = complete_header("classifier", {"preprocess": spec.to_dict()}, classes)
    model = build_classifier(flat(8), layers, spec)
    classifier = load_classifier(with_header(model, header), path=Path("deep.onnx"))
    image = _noise(10, 10)
    features = preprocess(image, spec).reshape(1, -1).astype(np.float32)
    expected = apply_layers(layers, features)
    bound = 1e-5 * np.abs(expected).max() + 1e-5
    np.testing.assert_allclose(classifier.logits(image[None]), expected, rtol=1e-4, atol=bound)


def test_names_of_the_backbone_do_not_clash(flat, layer, spec):
    backbone = flat(8)
    for node in backbone.graph.node:  # a torch export may call its tensors anything
        node.input[:] = ["shape" if name == "values" else name for name in node.input]
        node.output[:] = ["shape" if name == "values" else name for name in node.output]
    onnx.checker.check_model(build_classifier(backbone, [layer], spec), full_check=True)


def test_a_backbone_that_does_not_fit_is_an_export_error(flat, layer, spec):
    backbone = flat(8)
    backbone.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(ExportError, match="not valid ONNX"):
        build_classifier(backbone, [layer], spec)


def test_more_than_one_file_holds_is_an_export_error(flat, layer, spec, monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="one ONNX file holds at most 2"):
        build_classifier(flat(8), [layer], spec)


def test_the_header_counts_too(plain, header, monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_BYTES", plain.ByteSize())
    with pytest.raises(ExportError, match="one ONNX file holds at most 2"):
        with_header(plain, header)


def test_the_exporters_notes_are_not_shipped(flat, layer, spec):
    backbone = flat(8)
    note = {"key": "pkg.torch.onnx.stack_trace", "value": "/home/me/secret_project.py"}
    for part in (backbone.graph, *backbone.graph.node):
        part.metadata_props.add(**note)
        part.doc_string = "/home/me/secret_project.py"
    before = backbone.SerializeToString()
    assert b"secret" not in build_classifier(backbone, [layer], spec).SerializeToString()
    assert backbone.SerializeToString() == before


def test_a_graph_that_could_not_be_opened_is_not_shipped(plain, header):
    odd = onnx.ModelProto()
    odd.CopyFrom(plain)
    odd.graph.node[0].domain = "com.microsoft"
    with pytest.raises(ExportError, match=r"operators of the domain 'com\.microsoft'; featx ships"):
        with_header(odd, header)
    odd.graph.node[0].domain, odd.graph.node[0].op_type = "", "Loop"
    with pytest.raises(ExportError, match=r"has control flow \(Loop\); featx ships"):
        with_header(odd, header)


# The header


def test_metadata_can_be_read_with_onnxruntime_alone(content, header, spec):
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    assert json.loads(entries["classes"]) == ["ants", "bees"]
    assert json.loads(entries["preprocess"]) == spec.to_dict()
    assert entries["contract"].startswith("image: uint8 (batch, height, width, 3), RGB")
    found = Header.from_json(entries["featx"], path=Path("x"), kind="classifier")
    assert found.fingerprint == header.fingerprint


@given(classes=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=2, max_size=2,
                        unique=True))  # fmt: skip
@settings(max_examples=25)
def test_any_class_names_survive(classes, plain_case):
    model, spec = plain_case
    header = complete_header("classifier", {"preprocess": spec.to_dict()}, classes)
    assert load_classifier(with_header(model, header), path=Path("x")).classes == tuple(classes)


@pytest.fixture(scope="session")
def plain_case(plain: onnx.ModelProto, spec: PreprocessSpec) -> Any:
    return plain, spec


def test_stamping_leaves_the_model_alone_and_is_reproducible(plain, header):
    before = plain.SerializeToString(deterministic=True)
    assert with_header(plain, header) == with_header(plain, header)
    assert plain.SerializeToString(deterministic=True) == before
    assert len(plain.metadata_props) == 0
    assert is_sealed(with_header(plain, header))


def test_a_second_header_replaces_the_first(plain, header):
    once = onnx.load_from_string(with_header(plain, header))
    twice = onnx.load_from_string(with_header(once, header))
    assert len(twice.metadata_props) == len(once.metadata_props) == 5


# The whole file against torch, on real photos

CASES: dict[str, Any] = {  # backbone, weights, layer, image size
    "tiny": ("tiny", "default", None, None),
    "resnet18": ("resnet18", "none", None, None),
    "vgg16": ("vgg16", "none", "features", 32),
    "mobilenet_v3_small": ("mobilenet_v3_small", "none", None, None),
    "squeezenet1_1": ("squeezenet1_1", "none", None, None),
    "densenet121": ("densenet121", "none", None, None),
    "efficientnet_b0": ("efficientnet_b0", "none", None, None),
    "vit_b_16": ("vit_b_16", "none", None, None),
    "swin_t": ("swin_t", "none", None, None),
    "convnext_tiny": ("convnext_tiny", "none", None, None),
}
RAW_SIZES = ((500, 375), (320, 240), (480, 640))  # width, height


@pytest.mark.real_data
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parity_at_three_image_sizes_and_two_batch_sizes(case, export, at_size, photos_of_insects):
    exported = export(case)
    for size in RAW_SIZES:
        images = [at_size(image, size) for image, _ in photos_of_insects[:3]]
        expected = exported.logits(images)
        together = exported.classifier.logits(np.stack(images))
        alone = np.concatenate([exported.classifier.logits(image[None]) for image in images[:1]])
        scale = float(np.abs(expected).max())
        for found, wanted in ((together, expected), (alone, expected[:1])):
            worst = float(np.abs(found - wanted).max())
            logging.getLogger(__name__).info("%s %s: %.1e of %.2f", case[0], size, worst, scale)
            assert worst <= 2e-2 * scale
            agree = found.argmax(1) == wanted.argmax(1)
            assert (agree | (np.ptp(wanted, axis=1) <= worst * 2)).all()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["tiny", "squeezenet1_1"])
def test_the_backbones_graph_alone_agrees_to_float32_rounding(name, export, photos_of_insects):
    exported = export(CASES[name])
    images = [image for image, _ in photos_of_insects[:4]]
    crops = np.stack([preprocess(image, exported.preprocess) for image in images])
    session = ort.InferenceSession(
        exported.backbone.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found, expected = session.run(None, {"pixels": crops})[0], exported.features(images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.real_data
def test_parity_with_fine_tuned_weights(data, export, photos_of_insects):
    weights = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    exported = export(("squeezenet1_1", weights, None, None))
    images = [image for image, _ in photos_of_insects[:6]]
    expected = exported.logits(images)
    found = np.concatenate([exported.classifier.logits(image[None]) for image in images])
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.real_data
def test_a_tall_photo_and_a_squeezed_one(export, photos_of_insects):
    exported = export(CASES["tiny"])
    photo = Image.fromarray(photos_of_insects[0][0])
    for size in ((120, 1000), (1000, 120), (20, 15), (1, 1)):
        image = np.asarray(photo.resize(size))
        found, expected = exported.classifier.logits(image[None]), exported.logits([image])
        assert np.abs(found - expected).max() <= 1e-2 * max(1.0, np.abs(expected).max())


@pytest.fixture(scope="module")
def trunk() -> onnx.ModelProto:
    found = recall(BackboneRequest("tiny"))
    assert found is not None
    graph = read_graph(found.spec)
    assert graph is not None
    return cut_trunk(onnx.load_from_string(graph), 32)


def _features_of(model: onnx.ModelProto, tensor: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {"tensor": tensor})
    return np.asarray(found)


def test_the_trunk_starts_at_normalised_images(trunk):
    found = recall(BackboneRequest("tiny"))
    assert found is not None
    graph = read_graph(found.spec)
    assert graph is not None
    names = {tensor.name for tensor in trunk.graph.initializer}
    assert trunk.graph.node[0].op_type == "Conv"
    assert not {name for name in names if name.startswith("featx_")}
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = OnnxEngine(graph).features(images)
    answered = _features_of(trunk, normalise(images, found.spec.preprocess))
    np.testing.assert_allclose(answered, expected, rtol=1e-5, atol=1e-5)


def test_the_trunk_is_float16_between_float32_ends(trunk):
    tensor = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    expected = _features_of(trunk, tensor)
    half = to_float16(trunk)
    onnx.checker.check_model(half)
    kinds = {t.data_type for t in half.graph.initializer if t.data_type != onnx.TensorProto.INT64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ends = (*half.graph.input, *half.graph.output)
    assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
    found = _features_of(half, tensor)
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max()
    assert 0 < difference <= 1e-2 * np.abs(expected).max()


def test_what_cannot_be_converted_is_an_export_error(trunk, monkeypatch):
    from onnxruntime.transformers import float16

    def refuse(*arguments: object, **options: object) -> None:
        raise ValueError("a type it does not know")

    monkeypatch.setattr(float16, "convert_float_to_float16", refuse)
    with pytest.raises(ExportError, match="float16: a type it does not know"):
        to_float16(trunk)


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
