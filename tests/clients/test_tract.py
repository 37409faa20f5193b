"""tract: crops, tensors and images of one shape as ONNX Runtime; no images of any shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featx.classifier.session import open_classifier

tract = pytest.importorskip(
    "tract", reason="needs tract: pip install 'featx[dev]'", exc_type=ImportError
)
CLOSE = 1e-5


def run(model: Path, given: np.ndarray) -> np.ndarray:
    """Return the logits of one batch, whose sizes the file may leave open."""
    loaded = tract.onnx().load(str(model))
    kind = {"uint8": "u8", "float32": "f32"}[str(given.dtype)]
    loaded.set_input_fact(0, f"{','.join(map(str, given.shape))},{kind}")
    found: np.ndarray = loaded.into_model().into_runnable().run([given])[0].to_numpy()
    return found


def differences(model: Path, images: list[np.ndarray]) -> np.ndarray:
    """Return each image's largest logit difference to ONNX Runtime, as a share of the largest."""
    classifier, found = open_classifier(model, threads=1), []
    for image in images:
        given = classifier.prepare(image)[None]
        expected = classifier.run(given)["logits"]
        found.append(np.abs(run(model, given) - expected).max() / np.abs(expected).max())
    return np.array(found)


@pytest.mark.parametrize("source", ["crop", "tensor"])
def test_crops_and_tensors_agree(export, images, source):
    assert differences(export(source, "logits"), images).max() < CLOSE


@pytest.mark.parametrize("batch", [None, 1])
def test_images_of_one_shape_agree(export, photos_of_one_shape, batch):
    model = export("image", "logits", image_shape=(48, 64), batch=batch)
    assert differences(model, photos_of_one_shape).max() < CLOSE


def test_the_default_file_is_refused_not_answered_otherwise(export, images):
    """Its resize of uint8 would cut off instead of rounding: a grey level too low nearly always."""
    with pytest.raises(tract.TractError, match="Bool is not a number"):
        run(export("image", "logits"), images[0][None])
