"""Metrics: what scikit-learn says, and a rule for what it leaves open."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scores import measure_classes

from featx.heads.tasks import SINGLE_LABEL, Scorer
from featx.heads.tasks.losses import log_loss, log_softmax
from featx.heads.tasks.scores import ClassScores, wilson_interval
from featx.heads.tasks.single_label import confusion_matrix, expected_calibration_error, is_in_top_k


@st.composite
def scored(draw: st.DrawFn, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    num_samples, num_classes = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(size=(num_samples, num_classes)) * draw(st.sampled_from([0.1, 1, 30]))
    if ties:
        logits = np.round(logits)
    return logits, random.integers(0, num_classes, num_samples)


@given(data=scored(), k=st.integers(1, 12))
def test_top_k_as_scikit_learn(data, k):
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
    assert is_in_top_k(logits, labels, k=k).mean() == pytest.approx(expected, abs=1e-12)


@given(data=scored(ties=True), k=st.integers(1, 12))
def test_a_tie_goes_to_the_smaller_index(data, k):
    logits, labels = data
    k = min(k, logits.shape[1])
    guesses = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (guesses == labels[:, None]).any(axis=1).mean()
    assert is_in_top_k(logits, labels, k=k).mean() == pytest.approx(expected)


@given(data=scored(), sizes=st.lists(st.integers(1, 9), max_size=6))
def test_scores_of_samples_that_come_in_parts_are_those_of_all_and_keep_one_sum(data, sizes):
    logits, labels = data
    ends = [*np.cumsum(sizes, dtype=int).tolist(), len(labels)]
    scorers = [Scorer(SINGLE_LABEL), Scorer(SINGLE_LABEL)]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start < end <= len(labels):
            scorers[number % 2].add(logits[start:end], labels[start:end])
        elif start < len(labels):
            scorers[0].add(logits[start:], labels[start:])
    scorers[0].merge(scorers[1])
    found, expected = scorers[0].scores().to_dict(), measure_classes(logits, labels).to_dict()
    assert len(scorers[0]._parts) == 1
    for name in ("log_loss", "ece"):
        assert found.pop(name) == pytest.approx(expected.pop(name))
    assert found == expected


def test_equal_logits_are_one_guess_not_many():
    assert is_in_top_k(np.zeros((4, 4)), np.arange(4), k=1).tolist() == [True, False, False, False]
    assert is_in_top_k(np.zeros((4, 4)), np.arange(4), k=3).tolist() == [True, True, True, False]


def test_a_classifier_that_says_nan_is_never_right():
    logits = np.full((3, 3), np.nan)
    assert not any(is_in_top_k(logits, np.arange(3), k=k).any() for k in (1, 2, 3))
    assert not is_in_top_k(np.array([[1.0, np.nan, 0.0]]), np.array([0]), k=1).any()


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(data=scored())
def test_macro_f1_and_confusion_as_scikit_learn(data):
    logits, labels = data
    predicted = logits.argmax(axis=1)
    expected = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
    assert measure_classes(logits, labels).macro_f1 == pytest.approx(expected)
    size = max(predicted.max(), labels.max()) + 1
    assert np.array_equal(
        confusion_matrix(predicted, labels),
        sklearn.metrics.confusion_matrix(labels, predicted, labels=range(size)),
    )


def test_confusion_has_labels_in_rows():
    assert confusion_matrix(np.array([1, 1, 2]), np.array([0, 0, 2])).tolist() == [
        [0, 2, 0],
        [0, 0, 0],
        [0, 0, 1],
    ]


def test_macro_f1_counts_a_class_that_is_only_predicted():
    scores = measure_classes(np.eye(3)[[0, 0, 2]], np.array([0, 0, 0]))
    assert scores.macro_f1 == pytest.approx((0.8 + 0) / 2)


@settings(deadline=None)
@given(data=scored())
def test_log_loss_as_scikit_learn(data):
    logits, labels = data
    probabilities = np.exp(log_softmax(logits))
    assert np.allclose(probabilities.sum(axis=1), 1)
    if (probabilities > 1e-12).all():  # scikit-learn clips there
        expected = sklearn.metrics.log_loss(labels, probabilities, labels=range(logits.shape[1]))
        assert log_loss(logits, labels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(data=scored(), shift=st.floats(-1e6, 1e6))
def test_log_softmax_ignores_a_common_shift(data, shift):
    logits, _ = data
    assert np.allclose(log_softmax(logits + shift), log_softmax(logits), atol=1e-8)


def test_softmax_does_not_overflow():
    logits = np.array([[1e308, 0.0, -1e308 / 2], [3e4, -3e4, 0.0]])
    assert np.array_equal(np.exp(log_softmax(logits)), [[1, 0, 0], [1, 0, 0]])
    assert log_loss(logits[1:], np.array([1])) == 6e4
    small = np.array([[80.0, -80.0]], dtype=np.float32)
    assert log_loss(small, np.array([1])) == pytest.approx(160)


@pytest.mark.parametrize("num_classes", [2, 3, 5, 6, 10])
def test_top5_needs_more_than_five_classes(num_classes):
    logits = -np.tile(np.arange(num_classes, dtype=float), (num_classes, 1))
    scores = measure_classes(logits, np.arange(num_classes))
    assert scores.top1 == 1 / num_classes
    assert scores.top5 == (5 / num_classes if num_classes > 5 else None)


@given(data=scored(ties=True))
def test_measure_agrees_with_itself(data):
    logits, labels = data
    scores = measure_classes(logits.astype(np.float32), labels)
    assert scores.top1 == pytest.approx(float((logits.argmax(axis=1) == labels).mean()))
    stored = json.loads(json.dumps(scores.to_dict()))
    assert SINGLE_LABEL.scores_from_dict(stored) == scores
    assert scores.to_dict() == json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert scores.top1_low <= scores.top1 <= scores.top1_high


@pytest.mark.filterwarnings("ignore:A single label was found", "ignore:y_pred contains classes")
@given(data=scored())
def test_balanced_accuracy_and_classes_as_scikit_learn(data):
    logits, labels = data
    predicted, num_classes = logits.argmax(axis=1), logits.shape[1]
    scores = measure_classes(logits, labels)
    expected = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert scores.balanced_accuracy == pytest.approx(expected)
    precision, recall, _, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(num_classes), zero_division=np.nan
    )
    assert [own.num_samples for own in scores.per_class] == support.tolist()
    for own, p, r in zip(scores.per_class, precision, recall, strict=True):
        assert own.precision == (None if np.isnan(p) else pytest.approx(p))
        assert own.recall == (None if np.isnan(r) else pytest.approx(r))
        assert (own.recall is None) == (own.recall_low is None) == (own.recall_high is None)


@given(count=st.integers(1, 10_000), share=st.floats(0, 1))
def test_wilson_interval_is_scipys(count, share):
    hits = round(share * count)
    low, high = wilson_interval(hits, count)
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= hits / count <= high <= 1


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_wilson_intervals_hold_the_truth_19_times_in_20(share):
    random = np.random.default_rng(0)
    inside = 0
    for hits in random.binomial(200, share, 2000).tolist():
        low, high = wilson_interval(hits, 200)
        inside += low <= share <= high
    assert 0.93 <= inside / 2000 <= 0.975


def test_calibration_error_by_hand():
    """Two bins: sure of 0.8 and right in 3 of 4; sure of 0.6 and never right."""
    odds = np.log([4.0, 4.0, 4.0, 4.0, 1.5, 1.5])
    logits = np.stack([odds, np.zeros(6)], axis=1)
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert expected_calibration_error(logits, labels) == pytest.approx(
        (4 * (0.8 - 0.75) + 2 * 0.6) / 6
    )


def test_honest_probabilities_have_little_calibration_error():
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(20_000, 4))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    assert expected_calibration_error(logits, labels) < 0.01
    assert expected_calibration_error(3 * logits, labels) > 0.1
    assert expected_calibration_error(logits / 3, labels) > 0.1


@given(data=scored(ties=True))
def test_calibration_error_is_a_share(data):
    assert 0 <= expected_calibration_error(*data) <= 1


def test_a_class_that_nobody_has_and_nobody_guessed():
    logits = np.array([[1.0, 0, -1], [1, 0, -1]])
    scores = measure_classes(logits, np.array([0, 1]))
    assert scores.per_class[2] == ClassScores(0, 0, None, None, None, None, None, None)
    assert scores.balanced_accuracy == 0.5


@given(data=scored(), seed=st.integers(0, 2**32))
def test_weighted_log_loss(data, seed):
    logits, labels = data
    weights = np.random.default_rng(seed).integers(1, 4, len(labels))
    expected = log_loss(np.repeat(logits, weights, axis=0), np.repeat(labels, weights))
    assert log_loss(logits, labels, weights=weights) == pytest.approx(expected)
