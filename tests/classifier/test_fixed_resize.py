"""Images of one shape: products with matrices give Pillow's pixels, every one of them."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from featx.backbones.graph_builder import GraphBuilder
from featx.classifier.fixed_resize import add_fixed_geometry
from featx.images.preprocess import PreprocessSpec, preprocess


def run(spec: PreprocessSpec, images: np.ndarray) -> np.ndarray:
    """Return what the nodes make of images ``(n, height, width, 3)``."""
    builder = GraphBuilder()
    add_fixed_geometry(builder, spec, image="image", output="pixels", shape=images.shape[1:3])
    shape = ["n", *images.shape[1:]]
    graph = helper.make_graph(
        builder.nodes,
        "resize",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, None)],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"image": images})[0]
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[PreprocessSpec, np.ndarray]:
    crop = draw(st.sampled_from(["center", "none", "squash", "border"]))
    size = draw(st.integers(1, 40))
    pad = crop == "center" and draw(st.booleans())
    lowest = 1 if pad or crop == "border" else size
    resize = size if crop == "none" else draw(st.integers(lowest, 60))
    filter_name = draw(st.sampled_from(["bilinear", "bicubic"]))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)
    spec = PreprocessSpec(
        size, resize, mean, std, crop=crop, interpolation=filter_name, pad=pad
    )  # fmt: skip
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    coarse = rng.integers(0, 256, (2, height // 9 + 1, width // 9 + 1, 3), np.uint8)
    images = coarse.repeat(9, 1).repeat(9, 2)[:, :height, :width]
    noise = rng.integers(0, 256, images.shape, np.uint8)
    return spec, np.where(rng.random((2, 1, 1, 1)) < 0.5, noise, images).copy()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_images_become_pillows_crop_to_the_last_bit(case):
    spec, images = case
    expected = np.stack([preprocess(image, spec) for image in images])
    np.testing.assert_array_equal(run(spec, images), expected)


@pytest.mark.parametrize("crop", ["center", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_large_photo_does_too(crop, interpolation):
    spec = PreprocessSpec(
        *(64, 72, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)), crop=crop, interpolation=interpolation
    )
    images = np.random.default_rng(0).integers(0, 2, (1, 1500, 2000, 3), np.uint8) * np.uint8(255)
    np.testing.assert_array_equal(run(spec, images)[0], preprocess(images[0], spec))
