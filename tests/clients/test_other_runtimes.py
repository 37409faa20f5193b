"""tract, OpenCV and OpenVINO: crops, tensors and images of one shape as ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featx.classifier.runtimes import RUNTIMES
from featx.classifier.session import open_classifier
from featx.images.preprocess import resized_square

NAMES = [name for name, own in RUNTIMES.items() if own.run]
CLOSE = {"tract": 1e-5, "opencv": 1e-5, "openvino": 1e-4}


def module_of(runtime: str) -> Any:
    own = RUNTIMES[runtime]
    reason = f"needs {own.package}: pip install 'featx[dev]'"
    return pytest.importorskip(own.module, reason=reason, exc_type=ImportError)


def difference(
    runtime: str, model: Path, images: list[np.ndarray], *, resized: bool = False
) -> float:
    """Return the largest logit difference to ONNX Runtime, as a share of each image's largest."""
    module, run, found = module_of(runtime), RUNTIMES[runtime].run, []
    assert run is not None
    classifier = open_classifier(model, threads=1)
    for image in images:
        shaped = resized_square(image, classifier.preprocess) if resized else image
        given = classifier.prepare(shaped)[None]
        expected = classifier.run(given)["logits"]
        answer = run(module, str(model), given, classifier.contract.input_name, "logits")
        found.append(np.abs(answer - expected).max() / np.abs(expected).max())
    return float(max(found))


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("source", ["crop", "tensor"])
def test_crops_and_tensors_agree(export, images, runtime, source):
    assert difference(runtime, export(source, "logits"), images) < CLOSE[runtime]


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("batch", [None, 1])
def test_images_of_one_shape_agree(export, photos_of_one_shape, runtime, batch):
    model = export("image", "logits", image_shape=(48, 64), batch=batch)
    assert difference(runtime, model, photos_of_one_shape) < CLOSE[runtime]


@pytest.mark.parametrize(
    ("runtime", "match"), [("tract", "Bool is not a number"), ("opencv", "getTypes")]
)
def test_the_default_file_is_refused_not_answered_otherwise(export, images, runtime, match):
    """In tract, resizing uint8 would cut off, not round: a grey level too low nearly always."""
    module = module_of(runtime)
    error = module.TractError if runtime == "tract" else module.error
    with pytest.raises(error, match=match):
        difference(runtime, export("image", "logits"), images[:1])


def test_openvino_agrees_on_images_whose_shorter_side_is_the_resize(export, images):
    model = export("image", "logits", "probabilities")
    assert difference("openvino", model, images, resized=True) < CLOSE["openvino"]
    # Its own resize differs, which is why the docs advise crops.
    assert difference("openvino", model, images) > 100 * CLOSE["openvino"]
