"""A graph in int8: close to the float one, the same bytes again, and never of another table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from featx.backbones.catalog import default_preprocess
from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import read_graph, recall
from featx.backbones.int8 import calibrate, cosine, narrowed, quantize_graph
from featx.backbones.network import build_network
from featx.backbones.onnx_graph import build_graph
from featx.backbones.spec import SCHEME, BackboneRequest, Calibration
from featx.backbones.weights import open_weights
from featx.errors import BackboneError

SIZE = 16


def pictures(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Return smooth pictures, ``(count, size, size, 3)`` uint8: noise is not a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.float64)
    fine = coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return np.clip(fine + rng.normal(0, 12, fine.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tiny() -> bytes:
    found = recall(BackboneRequest("tiny"))
    graph = read_graph(found.spec) if found else None
    assert graph
    return graph


@pytest.fixture(scope="module")
def table(tiny: bytes) -> Calibration:
    return calibrate(tiny, [pictures(32, 32)])


def features(graph: bytes, pixels: np.ndarray) -> np.ndarray:
    return OnnxEngine(graph).features(pixels)


def operators(graph: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


def constants(graph: bytes) -> dict[str, np.ndarray]:
    found = onnx.load_from_string(graph).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in found}


def test_int8_is_close_to_float(tiny, table):
    pixels = pictures(24, 32, seed=1)
    found = features(quantize_graph(tiny, table), pixels)
    expected = features(tiny, pixels)
    cosines = cosine(found, expected)
    assert cosines.mean() >= 0.999
    assert cosines.min() >= 0.99
    assert (found != expected).any()


def test_another_export_gives_the_same_bytes(table):
    network, _ = build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))
    told = Calibration.from_dict(json.loads(json.dumps(table.to_dict())))
    assert told == table
    first, again = (
        quantize_graph(build_graph(network, image_size=32), ranges) for ranges in (told, table)
    )
    assert first == again


def test_ranges_do_not_depend_on_batches(tiny, table):
    pixels = pictures(32, 32)
    assert calibrate(tiny, [pixels[:5], pixels[5:6], pixels[6:]]) == table
    assert calibrate(tiny, iter([pixels[:20]])) != table


def test_the_graph_is_a_quarter_and_says_nothing_of_its_origin(tiny, table):
    graph = quantize_graph(tiny, table)
    assert len(graph) < 0.3 * len(tiny)
    assert b".py" not in graph
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


def test_without_ranges_nothing_is_quantised(tiny):
    graph, pixels = quantize_graph(tiny, Calibration(())), pictures(3, 32)
    assert not {"QuantizeLinear", "DequantizeLinear"} & operators(graph).keys()
    assert features(graph, pixels).tobytes() == features(tiny, pixels).tobytes()


@settings(max_examples=15)
@given(st.data())
def test_any_part_of_the_table_gives_a_graph(tiny, table, data):
    kept = data.draw(st.sets(st.sampled_from(table.ranges), min_size=1))
    graph = quantize_graph(tiny, Calibration(tuple(sorted(kept))))
    pixels = pictures(4, 32, seed=2)
    assert cosine(features(graph, pixels), features(tiny, pixels)).min() >= 0.99


def test_weights_are_rounded_to_the_nearest_step_of_their_channel(tiny, table):
    before, quantised = constants(tiny), quantize_graph(tiny, table)
    after, found = constants(quantised), 0
    for name in [name.removesuffix("/int") for name in after if name.endswith("/weight/int")]:
        steps, scale, zero = (after[f"{name}/{kind}"] for kind in ("int", "scale", "zero"))
        assert steps.dtype == np.int8
        assert not zero.any()
        assert np.abs(steps).max(axis=(1, 2, 3)).tolist() == [127] * len(steps)
        scale = scale[:, None, None, None]
        same_shape = [weight for weight in before.values() if weight.shape == steps.shape]
        assert any((np.abs(steps * scale - w) <= 0.5001 * scale).all() for w in same_shape)
        found += 1
    assert found == 7


def graph_of(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> bytes:
    """Return a graph ``pixels → features``; ``images`` (N, 3, size, size) is there to read."""
    first = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["images"], perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        [*first, *nodes],
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


node = helper.make_node


def random_weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


AVERAGE: list[onnx.NodeProto] = [node("ReduceMean", ["last", "axes"], ["features"], keepdims=0)]
AXES = np.array([2, 3])
FIRST = random_weights(12, 3, 5, 5)
SECOND = random_weights(12, 12, 3, 3, seed=1)
SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}


def _close(graph: bytes, *, at_least: float = 0.999) -> bytes:
    quantised = quantize_graph(graph, calibrate(graph, [pictures(16, SIZE)]))
    pixels = pictures(16, SIZE, seed=3)
    found, expected = features(quantised, pixels), features(graph, pixels)
    assert np.linalg.norm(expected, axis=1).min() > 0
    assert cosine(found, expected).min() >= at_least
    return quantised


def test_a_relu_that_others_read_around_is_kept():
    graph = graph_of(
        [
            node("Conv", ["images", "w"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "v"], ["c"], **SAME),
            node("Add", ["c", "a"], ["last"]),  # reads what the ReLU has not cut off
            *AVERAGE,
        ],
        w=FIRST,
        v=SECOND,
        axes=AXES,
    )
    assert operators(_close(graph))["Relu"] == 1


def test_a_relu_that_stands_alone_is_done_by_rounding():
    graph = graph_of(
        [
            node("Conv", ["images", "w"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("MaxPool", ["b"], ["p"], kernel_shape=[2, 2]),
            node("Conv", ["p", "v"], ["c"], **SAME),
            node("Add", ["c", "p"], ["d"]),
            node("Relu", ["d"], ["e"]),
            node("Concat", ["e", "p"], ["last"], axis=1),
            *AVERAGE,
        ],
        w=FIRST,
        v=SECOND,
        axes=AXES,
    )
    found = operators(_close(graph))
    assert "Relu" not in found
    # images, b, p, c, e and last, each once
    assert found["QuantizeLinear"] == 6


def test_a_product_with_a_matrix_gives_float():
    graph = graph_of(
        [
            node("Conv", ["images", "w"], ["a"], strides=[4, 4]),
            node("Flatten", ["a"], ["f"]),
            node("MatMul", ["f", "m"], ["g"]),
            node("Gemm", ["g", "t", "b"], ["features"], transB=1),
        ],
        w=FIRST,
        m=random_weights(108, 20),
        t=random_weights(7, 20, seed=1),
        b=random_weights(7, seed=2),
    )
    found = operators(_close(graph))
    assert found["QuantizeLinear"] == 4  # images, a, f, g
    assert found["MatMul"] == found["Gemm"] == 1


def test_a_first_convolution_with_few_values_stays_float():
    graph = graph_of(
        [
            node("Conv", ["images", "w"], ["a"]),
            node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2]),
            node("Conv", ["b", "v"], ["c"], **SAME),
            node("Conv", ["c", "v"], ["last"]),
            *AVERAGE,
        ],
        w=random_weights(12, 3, 3, 3),
        v=SECOND,
        axes=AXES,
    )
    # Nor the one behind the pooling; the last one alone is quantised.
    assert {name for name, _, _ in calibrate(graph, [pictures(2, SIZE)]).ranges} == {"c", "last"}
    _close(graph)


def test_channels_without_weights_and_features_of_zeros_do_no_harm():
    weights = FIRST.copy()
    weights[3] = 0
    nodes = [node("Conv", ["images", "w", "b"], ["a"]), node("Relu", ["a"], ["last"]), *AVERAGE]
    bias = np.zeros(12, np.float32)
    found = features(_close(graph_of(nodes, w=weights, b=bias, axes=AXES)), pictures(2, SIZE))
    assert not found[:, 3].any()
    dark = graph_of(nodes, w=weights, b=np.full(12, -1e6, np.float32), axes=AXES)
    quantised = quantize_graph(dark, calibrate(dark, [pictures(2, SIZE)]))
    assert not features(quantised, pictures(2, SIZE)).any()
    assert cosine(features(quantised, pictures(2, SIZE)), np.zeros((2, 12))).tolist() == [1, 1]


def test_what_has_nothing_to_quantise_is_refused():
    graph = graph_of([node("ReduceMean", ["images", "axes"], ["features"], keepdims=0)], axes=AXES)
    with pytest.raises(BackboneError, match="no layer that can run in int8"):
        calibrate(graph, [pictures(2, SIZE)])


def test_values_that_are_not_finite_are_refused():
    weights = np.full((12, 3, 5, 5), 3e38, np.float32)
    graph = graph_of([node("Conv", ["images", "w"], ["last"]), *AVERAGE], w=weights, axes=AXES)
    with pytest.raises(BackboneError, match="not finite"):
        calibrate(graph, [pictures(2, SIZE)])


def test_a_table_of_another_graph_is_refused(tiny):
    with pytest.raises(BackboneError, match=r"belong to another graph: .* no 'elsewhere'"):
        quantize_graph(tiny, Calibration((("elsewhere", 0.0, 1.0),)))


def test_ranges_that_lose_too_much_are_refused(tiny, table):
    wrong = Calibration(tuple((name, a / 50, b / 50) for name, a, b in table.ranges))
    with pytest.raises(BackboneError, match=r"tiny loses too much in int8: with 75% .* Use "):
        narrowed(tiny, wrong, pictures(8, 32), "tiny")
    assert narrowed(tiny, table, pictures(8, 32), "tiny") == table


def test_first_layers_that_lose_too_much_stay_float(tiny, table):
    first = min(table.ranges, key=lambda entry: entry[0] != "relu")
    wrong = Calibration(
        tuple((n, a / 50, b / 50) if n == first[0] else (n, a, b) for n, a, b in table.ranges)
    )
    kept, pixels = narrowed(tiny, wrong, pictures(8, 32), "tiny"), pictures(8, 32, seed=1)
    assert set(kept.ranges) < set(wrong.ranges)
    assert first[0] not in {name for name, _, _ in kept.ranges}
    found = features(quantize_graph(tiny, kept), pixels)
    assert cosine(found, features(tiny, pixels)).mean() >= 0.999


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"scheme": SCHEME},
        {"scheme": SCHEME, "ranges": []},
        {"scheme": SCHEME, "ranges": {"a": 1}},
        {"scheme": SCHEME, "ranges": {"a": [0, 1, 2]}},
        {"scheme": SCHEME, "ranges": {"a": [0, "x"]}},
        {"scheme": SCHEME, "ranges": {"a": [0, float("nan")]}},
        [],
        None,
    ],
)
def test_what_is_no_table_is_refused(values):
    with pytest.raises(BackboneError, match="Not a table of int8 ranges"):
        Calibration.from_dict(values)


def test_another_scheme_is_refused(table):
    with pytest.raises(BackboneError, match=rf"scheme {SCHEME + 1} .* has {SCHEME}\. Extract"):
        Calibration.from_dict(table.to_dict() | {"scheme": SCHEME + 1})


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "convnext_tiny", "vit_b_16"])
def test_other_families(backbone, pixels):
    size = 224 if backbone == "vit_b_16" else 64
    geometry = default_preprocess(backbone).with_overrides(image_size=size, resize=None, crop=None)
    network, _ = build_network(backbone, open_weights(backbone, "none"), geometry)
    graph = build_graph(network, image_size=size)
    seen = pictures(8, size)
    narrowed(graph, calibrate(graph, [seen]), seen, backbone)


def test_one_bad_image_is_enough_to_refuse(tiny, table, monkeypatch):
    """However good the mean of the others is."""

    def with_last(value: float) -> Callable[..., np.ndarray]:
        return lambda found, _: np.append(np.ones(len(found) - 1), value)

    pixels = pictures(200, 32)
    monkeypatch.setattr("featx.backbones.int8.cosine", with_last(0.99))
    assert narrowed(tiny, table, pixels, "tiny") == table
    monkeypatch.setattr("featx.backbones.int8.cosine", with_last(0.9899))
    with pytest.raises(BackboneError, match=r"0\.9999 on average, 0\.9899 at worst"):
        narrowed(tiny, table, pixels, "tiny")
