"""OpenVINO: crops and tensors as ONNX Runtime; images only once they are resized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featx.classifier.session import open_classifier
from featx.images.preprocess import resized_square

openvino = pytest.importorskip(
    "openvino", reason="needs openvino: pip install 'featx[dev]'", exc_type=ImportError
)
CLOSE = 1e-4


def differences(model: Path, images: list[np.ndarray], *, resized: bool = False) -> np.ndarray:
    """Return each image's largest logit difference to ONNX Runtime, as a share of the largest."""
    classifier = open_classifier(model, threads=1)
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model), "CPU", exact)
    found = []
    for image in images:
        shaped = resized_square(image, classifier.preprocess) if resized else image
        given = classifier.prepare(shaped)[None]
        expected = classifier.run(given)["logits"]
        answer = compiled([given])["logits"]
        found.append(np.abs(answer - expected).max() / np.abs(expected).max())
    return np.array(found)


@pytest.mark.parametrize("source", ["crop", "tensor"])
def test_crops_and_tensors_agree(export, images, source):
    assert differences(export(source, "logits"), images).max() < CLOSE


def test_images_of_one_shape_agree(export, photos_of_one_shape):
    for batch in (None, 1):
        model = export("image", "logits", image_shape=(48, 64), batch=batch)
        assert differences(model, photos_of_one_shape).max() < CLOSE


def test_images_agree_once_their_shorter_side_is_the_resize(export, images):
    model = export("image", "logits", "probabilities")
    assert differences(model, images, resized=True).max() < CLOSE


def test_its_own_resize_differs_which_is_why_the_docs_advise_crops(export, images):
    model = export("image", "logits", "probabilities")
    assert differences(model, images).max() > 100 * CLOSE
