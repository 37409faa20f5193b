"""The evaluator that comes with ONNX: plain numpy, written from the standard's text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from featx.classifier.session import open_classifier
from featx.images.preprocess import resized_square


def differences(model: Path, inputs: list[np.ndarray]) -> np.ndarray:
    """Return the largest difference of each output, as a share of its largest value."""
    classifier = open_classifier(model, threads=1)
    evaluator = ReferenceEvaluator(str(model))
    found = []
    for given in inputs:
        expected = classifier.run(given)
        answers = evaluator.run(None, {classifier.contract.input_name: given})
        assert evaluator.output_names == list(expected)
        found.append(
            max(
                np.abs(answer - values).max() / np.abs(values).max()
                for answer, values in zip(answers, expected.values(), strict=True)
            )
        )
    return np.array(found)


@pytest.mark.parametrize("source", ["crop", "tensor"])
def test_crops_and_tensors_agree(export, images, source):
    model = export(source, "logits")
    classifier = open_classifier(model, threads=1)
    assert differences(model, [classifier.prepare(image)[None] for image in images]).max() < 1e-5


def test_images_agree_within_the_rounding_of_the_resize(export, images):
    model = export("image", "logits", "probabilities")
    spec = open_classifier(model, threads=1).preprocess
    assert differences(model, [resized_square(image, spec)[None] for image in images]).max() < 1e-5
    assert differences(model, [image[None] for image in images]).max() < 2e-2


def test_features_and_best_classes_agree(export, images):
    model = export("image", "features", "top-2")
    assert differences(model, [images[2][None]]).max() < 1e-5
