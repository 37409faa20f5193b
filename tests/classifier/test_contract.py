from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from headers import complete_header

from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_builder import NORMALISED
from featx.backbones.graph_cache import read_graph, recall
from featx.backbones.spec import BackboneRequest
from featx.classifier.contract import MAX_TOP_K, Contract, find_fault, normalise, output_names
from featx.classifier.graph import build_classifier, with_header
from featx.classifier.session import Classifier, load_classifier
from featx.errors import ArtifactInvalid, ConfigError, ExportError
from featx.heads.head import Layer, apply_layers
from featx.heads.tasks import TASKS
from featx.images.preprocess import PreprocessSpec, preprocess

INPUTS: Any = ("image", "crop", "tensor")
ALL = ("logits", "probabilities", "features", "top-2")
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def tiny() -> tuple[bytes, dict[str, Any]]:
    """The bundled backbone's graph and its spec."""
    found = recall(BackboneRequest("tiny"))
    assert found is not None
    graph = read_graph(found.spec)
    assert graph is not None
    return graph, found.spec.to_dict()


LAYER: Layer = (
    RNG.normal(size=(3, 192)).astype(np.float32) / 10,
    RNG.normal(size=3).astype(np.float32),
)


def _classifier(tiny: tuple[bytes, dict[str, Any]], contract: Contract) -> Classifier:
    graph, spec = tiny
    geometry = PreprocessSpec.from_dict(spec["preprocess"])
    model = build_classifier(onnx.load_from_string(graph), [LAYER], geometry, contract)
    header = complete_header(
        kind="classifier",
        spec=spec,
        classes=("a", "b", "c"),
        details={"contract": contract.to_dict()},
    )
    return load_classifier(with_header(model, header), path=Path("m.onnx"), threads=1)


def _photo(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("given", INPUTS)
def test_every_contract_answers_what_the_head_answers(given, tiny):
    classifier = _classifier(tiny, Contract(given, ALL))
    images = [_photo(32, 32) for _ in range(5)]  # nothing to resize: only rounding is left
    crops = np.stack([preprocess(image, classifier.preprocess) for image in images])
    features = OnnxEngine(tiny[0]).features(crops)
    expected = apply_layers([LAYER], features)
    found = classifier.run(np.stack([classifier.prepare(image) for image in images]))
    assert np.abs(found["logits"] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(found["features"] - features).max() <= 1e-5 * np.abs(features).max()
    raised = np.exp(expected - expected.max(axis=1, keepdims=True))
    probabilities = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    order = np.argsort(-found["probabilities"], axis=1, kind="stable")[:, :2]
    np.testing.assert_array_equal(found["top_classes"], order)
    best = np.take_along_axis(found["probabilities"], order, axis=1)
    np.testing.assert_array_equal(found["top_scores"], best)


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize(
    "outputs", [("logits",), ("probabilities",), ("features",), ("top-3",), ("features", "top-1")]
)
def test_a_file_gives_what_was_asked_for_and_nothing_else(given, outputs, tiny):
    contract = Contract(given, outputs)
    classifier = _classifier(tiny, contract)
    assert classifier.contract == contract
    found = classifier.run(classifier.prepare(_photo(40, 50))[None])
    values = contract.output_values(num_classes=3, num_features=192)
    assert list(found) == [value.name for value in values]
    for value in values:
        assert found[value.name].dtype == value.dtype
        assert found[value.name].shape == (1, *value.shape[1:])


def test_scores_come_from_whatever_the_file_has(tiny):
    both, one, other, none = (
        _classifier(tiny, Contract("crop", outputs))
        for outputs in (("logits", "probabilities"), ("logits",), ("probabilities",), ("top-1",))
    )
    inputs = np.stack([both.prepare(_photo(30, 60)) for _ in range(4)])
    logits, probabilities = both.logits(inputs), both.probabilities(inputs)
    np.testing.assert_allclose(one.probabilities(inputs), probabilities, atol=1e-6)
    np.testing.assert_array_equal(one.logits(inputs), logits)
    shift = other.logits(inputs) - logits
    np.testing.assert_allclose(shift, shift[:, :1].repeat(3, axis=1), atol=1e-4)
    for ask in (none.logits, none.probabilities):
        with pytest.raises(ConfigError, match="gives top_scores, top_classes, but neither"):
            ask(inputs)


@pytest.mark.parametrize(
    ("given", "shape", "dtype"),
    [("image", (1, 9, 9, 3), np.float32), ("crop", (1, 33, 32, 3), np.uint8),
     ("crop", (1, 32, 32, 3), np.float32), ("tensor", (1, 3, 32, 32), np.uint8),
     ("tensor", (1, 3, 32, 32), np.float64), ("tensor", (1, 32, 32, 3), np.float32)],
)  # fmt: skip
def test_arrays_that_break_the_contract(given, shape, dtype, tiny):
    classifier = _classifier(tiny, Contract(given))
    with pytest.raises(ConfigError, match=r"images must be (uint8|float32) of shape \(batch, "):
        classifier.run(np.zeros(shape, dtype))


@pytest.mark.parametrize("given", INPUTS)
def test_the_words_tell_all_that_a_stranger_has_to_know(given, tiny):
    graph, spec = tiny
    contract = Contract(given, ALL)
    geometry = PreprocessSpec.from_dict(spec["preprocess"])
    model = build_classifier(onnx.load_from_string(graph), [LAYER], geometry, contract)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for value in (*session.get_inputs(), *session.get_outputs()):
        dtype = {"float": "float32"}.get(value.type[7:-1], value.type[7:-1])
        shape = ", ".join(map(str, value.shape))
        assert f"{value.name}: {dtype} ({shape}), " in model.doc_string
    assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))
    told = model.doc_string
    assert "order of the metadata entry 'classes'" in told
    assert ("Resampling.BILINEAR" in told) == (given != "image")
    assert ("halves rounded to even" in told) == (given != "image" and geometry.crop == "center")
    assert (str(list(geometry.mean)) in told) == (given == "tensor")


def test_normalising_is_the_backbones_own_arithmetic():
    spec = PreprocessSpec(
        image_size=2, resize=2, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    pixels = _photo(2, 2)
    exact = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    found = normalise(pixels, spec)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, exact.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "match"),
    [(("picture", ("logits",)), "input must be one of image, crop, tensor"),
     (("image", ()), "at least one output"), (("image", ("logits", "logits")), "named twice"),
     (("image", ("top-2", "top-3")), "named twice"), (("image", ("top-0",)), "top-K with K from 1"),
     (("image", (f"top-{MAX_TOP_K + 1}",)), "top-K"), (("image", ("top-",)), "got 'top-'"),
     (("image", ("scores",)), "got 'scores'"), (("image", (3,)), "got 3")],
)  # fmt: skip
def test_contracts_that_cannot_be(values, match):
    with pytest.raises(ConfigError, match=match):
        Contract(*values)


def test_a_contract_survives_its_json_and_has_one_order():
    contract = Contract("crop", ("top-5", "features", "logits"))
    assert contract.outputs == ("logits", "features", "top-5")
    assert Contract.from_dict(contract.to_dict()) == contract
    assert Contract.from_dict(None) == Contract("image", ("logits", "probabilities"))
    for broken in ({}, {"input": "image"}, {"input": "image", "outputs": 3}, 3, "image"):
        with pytest.raises(ConfigError):
            Contract.from_dict(broken)  # type: ignore[arg-type]


def test_lists_of_outputs():
    assert output_names("logits, top-5") == output_names(["logits", "top-5"]) == ("logits", "top-5")
    assert output_names([""]) == ()


def test_more_classes_than_there_are(tiny):
    with pytest.raises(ConfigError, match="top-4 was asked for, but there are 3 classes"):
        _classifier(tiny, Contract("image", ("top-4",)))


def test_a_graph_without_normalised_images_is_refused(flat, layer, spec):
    other = flat(8)
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == NORMALISED else name for name in names]
    with pytest.raises(ExportError, match="not valid ONNX"):
        build_classifier(other, [layer], spec)


@pytest.mark.parametrize("given", INPUTS)
def test_any_backbone_takes_every_input(given, flat, layer, spec, header):
    model = build_classifier(flat(8), [layer], spec, Contract(given))
    details = {"contract": Contract(given).to_dict()}
    stamped = complete_header("classifier", header.spec, header.classes, details)
    classifier = load_classifier(with_header(model, stamped), path=Path("flat.onnx"))
    image = _photo(10, 10)  # nothing to resize: exact
    features = preprocess(image, spec).reshape(1, -1).astype(np.float32)
    found = classifier.logits(classifier.prepare(image)[None])
    np.testing.assert_allclose(found, apply_layers([layer], features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "claimed",
    [Contract("crop"), Contract("tensor"), Contract("image", ("logits",)),
     Contract("image", ("logits", "features")), Contract("image", ALL)],
)  # fmt: skip
def test_a_header_that_claims_another_contract(claimed, plain, header):
    stamped = complete_header(
        "classifier", header.spec, header.classes, {"contract": claimed.to_dict()}
    )
    with pytest.raises(ArtifactInvalid, match="other inputs or outputs"):
        load_classifier(with_header(plain, stamped), path=Path("m.onnx"))


@pytest.mark.parametrize(
    "broken",
    [{}, {"input": "image"}, {"input": 1, "outputs": ["logits"]}, [], "image", 0,
     {"input": "image", "outputs": "logits"}, {"input": "image", "outputs": [["logits"]]},
     {"input": ["image"], "outputs": ["logits"]}, {"input": "image", "outputs": ["top-9"]},
     {"input": "image", "outputs": None}, {"input": {}, "outputs": [{}]}],
    ids=str,
)  # fmt: skip
def test_a_contract_that_was_damaged(broken, plain, header):
    stamped = complete_header("classifier", header.spec, header.classes, {"contract": broken})
    with pytest.raises(ArtifactInvalid, match="header is damaged"):
        load_classifier(with_header(plain, stamped), path=Path("m.onnx"))


def test_a_contract_follows_the_task():
    assert Contract().for_task(TASKS["regression"]).outputs == ("values",)
    assert (
        Contract("crop", ("features", "values")).for_task(TASKS["regression"]).task.raw_output
        == "values"
    )
    tags = Contract("image", ("top-2", "probabilities")).for_task(TASKS["multi-label"])
    assert (tags.outputs, tags.task.raw_output) == (("probabilities", "top-2"), "logits")
    assert "sigmoid" in tags.output_values(num_classes=3, num_features=5)[0].text
    assert Contract.from_dict(tags.to_dict(), task=TASKS["multi-label"]) == tags
    assert Contract.from_dict(None, task=TASKS["regression"]).outputs == ("values",)
    for outputs, task in (
        (("logits",), "regression"),
        (("top-1",), "regression"),
        (("values",), "single-label"),
        (("values",), "multi-label"),
    ):
        with pytest.raises(ConfigError, match=f"a head of {task} has no output"):
            Contract("image", outputs).for_task(TASKS[task])  # type: ignore[arg-type]


# --- what a graph gave --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found", "fault"),
    [
        ("logits", [[-1e4, 5], [0, 3]], None),
        ("logits", [[0, 3]], "expected float32 (2, 2)"),
        ("logits", [[0, 3, 1], [0, 3, 1]], "expected float32 (2, 2)"),
        ("logits", [0, 3], "expected float32 (2, 2)"),
        ("logits", [[0, np.nan], [0, 3]], "not finite"),
        ("features", [[0, 1], [np.inf, 3]], "not finite"),
        ("probabilities", [[0, 1.00001], [0.5, 0.5]], None),
        ("probabilities", [[0, 1.1], [0.5, 0.5]], "1.1, outside 0 to 1"),
        ("probabilities", [[-0.1, 1], [0.5, 0.5]], "-0.1, outside 0 to 1"),
        ("probabilities", [[np.nan, 1], [0.5, 0.5]], "not finite"),
        ("top_scores", [[2.0], [0.5]], "2, outside 0 to 1"),
        ("top_classes", [[0], [1]], None),
        ("top_classes", [[0], [2]], "2, outside 0 to 1"),
        ("top_classes", [[-1], [0]], "-1, outside 0 to 1"),
    ],
)
def test_what_a_graph_must_not_give(name, found, fault):
    contract = Contract(outputs=("logits", "probabilities", "features", "top-1"))
    values = contract.output_values(num_classes=2, num_features=2)
    (value,) = (value for value in values if value.name == name)
    told = find_fault(value, np.array(found, value.dtype), num_rows=2, num_classes=2)
    assert (told is None) if fault is None else (fault in str(told))
