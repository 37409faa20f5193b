"""OpenCV's dnn: crops, tensors and images of one shape as ONNX Runtime; no images of any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featx.classifier.session import open_classifier

cv2 = pytest.importorskip(
    "cv2", reason="needs opencv-python-headless: pip install 'featx[dev]'", exc_type=ImportError
)
CLOSE = 1e-5


def run(model: Path, given: np.ndarray, name: str) -> np.ndarray:
    network = cv2.dnn.readNetFromONNX(str(model))
    network.setInput(given, name)
    return np.asarray(network.forward("logits"))


def differences(model: Path, images: list[np.ndarray]) -> np.ndarray:
    """Return each image's largest logit difference to ONNX Runtime, as a share of the largest."""
    classifier, found = open_classifier(model, threads=1), []
    for image in images:
        given = classifier.prepare(image)[None]
        expected = classifier.run(given)["logits"]
        answer = run(model, given, classifier.contract.input_name)
        found.append(np.abs(answer - expected).max() / np.abs(expected).max())
    return np.array(found)


@pytest.mark.parametrize("source", ["crop", "tensor"])
def test_crops_and_tensors_agree(export, images, source):
    assert differences(export(source, "logits"), images).max() < CLOSE


@pytest.mark.parametrize("batch", [None, 1])
def test_images_of_one_shape_agree(export, photos_of_one_shape, batch):
    model = export("image", "logits", image_shape=(48, 64), batch=batch)
    assert differences(model, photos_of_one_shape).max() < CLOSE


def test_the_default_file_is_refused_not_answered_otherwise(export, images):
    with pytest.raises(cv2.error, match="getTypes"):
        run(export("image", "logits"), images[0][None], "image")
