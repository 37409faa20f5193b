"""Metrics: what scikit-learn says, and a rule for what it leaves open."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ConfigError
from featx.heads.metrics import (
    confusion_matrix,
    log_loss,
    log_softmax,
    macro_f1,
    measure,
    top_k_accuracy,
)


@st.composite
def scored(draw: st.DrawFn, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    num_samples, num_classes = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(size=(num_samples, num_classes)) * draw(st.sampled_from([0.1, 1, 30]))
    if ties:
        logits = np.round(logits)
    return logits, random.integers(0, num_classes, num_samples)


@given(data=scored(), k=st.integers(1, 12))
def test_top_k_as_scikit_learn(data: tuple[np.ndarray, np.ndarray], k: int) -> None:
    logits, labels = data
    num_classes = logits.shape[1]
    k = min(k, num_classes)
    if num_classes == 2:  # there it takes one score and guesses what its unit is
        expected = 1.0 if k == 2 else float((logits.argmax(axis=1) == labels).mean())
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # k as large as the number of classes is meant
            expected = sklearn.metrics.top_k_accuracy_score(
                labels, logits, k=k, labels=range(num_classes)
            )
    assert top_k_accuracy(logits, labels, k=k) == pytest.approx(expected, abs=1e-12)


@given(data=scored(ties=True), k=st.integers(1, 12))
def test_a_tie_goes_to_the_smaller_index(data: tuple[np.ndarray, np.ndarray], k: int) -> None:
    logits, labels = data
    k = min(k, logits.shape[1])
    guesses = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (guesses == labels[:, None]).any(axis=1).mean()
    assert top_k_accuracy(logits, labels, k=k) == pytest.approx(expected)


def test_equal_logits_are_one_guess_not_many() -> None:
    assert top_k_accuracy(np.zeros((4, 4)), np.arange(4)) == 0.25
    assert top_k_accuracy(np.zeros((4, 4)), np.arange(4), k=3) == 0.75


def test_a_classifier_that_says_nan_is_never_right() -> None:
    logits = np.full((3, 3), np.nan)
    assert [top_k_accuracy(logits, np.arange(3), k=k) for k in (1, 2, 3)] == [0, 0, 0]
    assert top_k_accuracy(np.array([[1.0, np.nan, 0.0]]), np.array([0])) == 0


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k must be 1 to 3 .* got {k}"):
        top_k_accuracy(np.zeros((2, 3)), np.zeros(2, dtype=int), k=k)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(data=scored())
def test_macro_f1_and_confusion_as_scikit_learn(data: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = data
    predicted = logits.argmax(axis=1)
    expected = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert macro_f1(predicted, labels) == pytest.approx(expected)
    size = max(predicted.max(), labels.max()) + 1
    assert np.array_equal(
        confusion_matrix(predicted, labels),
        sklearn.metrics.confusion_matrix(labels, predicted, labels=range(size)),
    )


def test_confusion_has_labels_in_rows() -> None:
    assert confusion_matrix(np.array([1, 1, 2]), np.array([0, 0, 2])).tolist() == [
        [0, 2, 0],
        [0, 0, 0],
        [0, 0, 1],
    ]


def test_macro_f1_counts_a_class_that_is_only_predicted() -> None:
    assert macro_f1(np.array([0, 0, 2]), np.array([0, 0, 0])) == pytest.approx((0.8 + 0) / 2)


@settings(deadline=None)
@given(data=scored())
def test_log_loss_as_scikit_learn(data: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = data
    probabilities = np.exp(log_softmax(logits))
    assert np.allclose(probabilities.sum(axis=1), 1)
    if (probabilities > 1e-12).all():  # scikit-learn clips there
        expected = sklearn.metrics.log_loss(labels, probabilities, labels=range(logits.shape[1]))
        assert log_loss(logits, labels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(data=scored(), shift=st.floats(-1e6, 1e6))
def test_log_softmax_ignores_a_common_shift(
    data: tuple[np.ndarray, np.ndarray], shift: float
) -> None:
    logits, _ = data
    assert np.allclose(log_softmax(logits + shift), log_softmax(logits), atol=1e-8)


def test_softmax_does_not_overflow() -> None:
    logits = np.array([[1e308, 0.0, -1e308 / 2], [3e4, -3e4, 0.0]])
    assert np.array_equal(np.exp(log_softmax(logits)), [[1, 0, 0], [1, 0, 0]])
    assert log_loss(logits[1:], np.array([1])) == 6e4
    small = np.array([[80.0, -80.0]], dtype=np.float32)
    assert log_loss(small, np.array([1])) == pytest.approx(160)


@given(data=scored(ties=True), seed=st.integers(0, 2**32))
def test_unlabelled_samples_do_not_count(data: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    logits, labels = data
    keep = np.random.default_rng(seed).random(len(labels)) < 0.5
    measured = measure(logits, np.where(keep, labels, -1))
    if not keep.any():
        assert measured is None
    else:
        assert measured == measure(logits[keep], labels[keep])
        assert measured.num_samples == keep.sum()


def test_nothing_labelled_gives_nothing() -> None:
    assert measure(np.zeros((3, 2)), np.full(3, -1)) is None
    assert measure(np.zeros((0, 2)), np.zeros(0, dtype=int)) is None


@pytest.mark.parametrize("num_classes", [2, 3, 5, 6, 10])
def test_top5_needs_more_than_five_classes(num_classes: int) -> None:
    logits = -np.tile(np.arange(num_classes, dtype=float), (num_classes, 1))
    scores = measure(logits, np.arange(num_classes))
    assert scores is not None
    assert scores.top1 == 1 / num_classes
    assert scores.top5 == (5 / num_classes if num_classes > 5 else None)


@given(data=scored(ties=True))
def test_measure_agrees_with_itself(data: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = data
    scores = measure(logits.astype(np.float32), labels)
    assert scores is not None
    assert scores.top1 == pytest.approx(float((logits.argmax(axis=1) == labels).mean()))
    assert scores.to_dict() == {
        "num_samples": len(labels),
        "top1": scores.top1,
        "top5": scores.top5,
        "macro_f1": scores.macro_f1,
        "log_loss": scores.log_loss,
    }
    assert all(type(value) in (int, float, type(None)) for value in scores.to_dict().values())
