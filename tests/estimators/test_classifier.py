"""The classifier of images: fit, predict, copies, and the exported file."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from featx.errors import ConfigError
from featx.estimators import ImageClassifier
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.stages.export import ExportOptions
from featx.stages.predict import Predictor
from featx.training.options import TrainOptions


@pytest.mark.parametrize(
    "head",
    ["linear", "mlp", MLPOptions((8,)), SGDOptions(0.1, epochs=60), TrainOptions(strengths=(1.0,))],
)
def test_each_kind_of_head_learns(labelled, cache, head):
    paths, labels = labelled
    classifier = ImageClassifier("tiny", head=head, cache=cache).fit(paths, labels)
    assert classifier.classes_.tolist() == ["ant", "bee"]
    assert classifier.score(paths, labels) > 0.9
    probabilities = classifier.predict_proba(paths)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(paths)).all()


def test_whole_numbers_as_labels_come_back_as_such(labelled, cache):
    paths, labels = labelled
    numbers = np.array([{"ant": 7, "bee": -2}[label] for label in labels])
    classifier = ImageClassifier("tiny", cache=cache, class_weight={7: 3.0}).fit(paths, numbers)
    assert classifier.classes_.tolist() == [-2, 7]
    assert classifier.predict(paths).dtype == numbers.dtype


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "requires y to be passed"),
        (["ant"] * 23, "got 24 images and 23 labels"),
        (["ant"] * 24, "all labels are of one class"),
        (np.linspace(0, 1, 24), "Unknown label type"),
    ],
)
def test_labels_that_cannot_train_are_one_sentence(labelled, cache, labels, said):
    with pytest.raises(ValueError, match=said):
        ImageClassifier("tiny", cache=cache).fit(labelled[0], labels)


def test_the_exported_file_answers_as_the_classifier(labelled, cache, tmp_path):
    paths, labels = labelled
    classifier = ImageClassifier("tiny", cache=cache).fit([*paths, paths[0]], [*labels, labels[0]])
    report = classifier.export(tmp_path / "model.onnx")
    assert report.proof is not None
    predictions = Predictor(tmp_path / "model.onnx").predict(paths, top_k=2)
    expected = classifier.predict_proba(paths)
    for prediction, row in zip(predictions, expected, strict=True):
        own = [dict(prediction.top)[name] for name in ("ant", "bee")]
        np.testing.assert_allclose(own, row, atol=1e-4)
    assert str(tmp_path) not in (tmp_path / "model.onnx").read_bytes().decode("latin-1")


def test_a_classifier_of_images_in_memory_is_exported_before_it_is_saved(labelled, cache, tmp_path):
    paths, labels = labelled
    images = [Image.open(path) for path in paths[:12]] + [
        np.asarray(Image.open(p)) for p in paths[12:]
    ]
    classifier = ImageClassifier("tiny", cache=cache).fit(images, labels)
    classifier.export(tmp_path / "model.onnx", ExportOptions(outputs=("probabilities",)))
    predicted = Predictor(tmp_path / "model.onnx").predict(paths)
    assert [each.label for each in predicted] == classifier.predict(paths).tolist()
    loaded = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(loaded.predict_proba(paths), classifier.predict_proba(paths))
    with pytest.raises(ConfigError, match="export it before it is saved"):
        loaded.export(tmp_path / "again.onnx")


def test_copies_are_small_and_answer_alike(labelled, cache, tmp_path, monkeypatch):
    paths, labels = labelled
    classifier = ImageClassifier("tiny", cache=cache).fit(paths, labels)
    expected = classifier.predict_proba(paths)
    saved = pickle.dumps(classifier)
    assert len(saved) < 30_000
    monkeypatch.chdir(tmp_path)
    for other in (pickle.loads(saved), copy.deepcopy(classifier)):
        np.testing.assert_array_equal(other.predict_proba(paths), expected)
    pickle.loads(saved).export(tmp_path / "model.onnx")


@pytest.mark.parametrize("head", ["mlp", MLPOptions(), TrainOptions(head="mlp")])
def test_a_clone_has_the_very_parameters(head):
    weight = {"ant": 2.0}
    classifier = ImageClassifier("tiny", head=head, class_weight=weight)
    assert classifier.head is head
    assert clone(classifier, safe=False).get_params().keys() == classifier.get_params().keys()
    assert clone(classifier).class_weight == weight


def test_cross_validation_searches_over_heads(labelled, cache):
    paths, labels = map(np.array, labelled)
    classifier = ImageClassifier("tiny", cache=cache)
    assert cross_val_score(classifier, paths, labels, cv=3, error_score="raise").mean() > 0.9
    heads = [TrainOptions(strengths=(c,)) for c in (0.001, 1.0)]
    search = GridSearchCV(classifier, {"head": heads}, cv=2, error_score="raise")
    assert search.fit(paths, labels).best_params_["head"] in heads
    assert sum(path.stat().st_size for path in cache.glob("*/keys")) == 20 * len(paths)
