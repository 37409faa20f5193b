"""Tags: scores as scikit-learn's, and thresholds with the best F1 score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score
from sklearn.metrics import log_loss as reference_log_loss

from featx.heads.tasks import MULTI_LABEL
from featx.heads.tasks.losses import binary_log_loss, sigmoid
from featx.heads.tasks.multi_label import (
    EVEN,
    average_precision,
    choose_thresholds,
    given_tags,
    measure_tags,
)


@st.composite
def tagged(draw) -> tuple[np.ndarray, np.ndarray]:
    """Logits, many of them equal, and tags."""
    shape = draw(st.tuples(st.integers(2, 30), st.integers(1, 4)))
    logits = draw(arrays.arrays(np.float64, shape, elements=st.integers(-4, 4).map(float)))
    tags = draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)))
    return logits, tags


@given(tagged())
def test_average_precision_is_scikit_learns(sample):
    logits, tags = sample
    for scores, has in zip(logits.T, tags.T, strict=True):
        found = average_precision(scores, has > 0)
        if has.any():
            assert found == pytest.approx(average_precision_score(has, scores))
        else:
            assert found is None


@settings(max_examples=20)
@given(tagged(), st.floats(0.05, 0.95))
def test_scores_are_scikit_learns(sample, threshold):
    logits, tags = sample
    scores = measure_tags(logits, tags, [threshold] * tags.shape[1])
    said = given_tags(logits, [threshold] * tags.shape[1]).astype(int)
    occurs = (tags.sum(0) + said.sum(0)) > 0
    if occurs.any():
        assert scores.micro_f1 == pytest.approx(f1_score(tags.reshape(-1), said.reshape(-1)))
        each = [f1_score(a, b) for a, b in zip(tags.T[occurs], said.T[occurs], strict=True)]
        assert scores.macro_f1 == pytest.approx(np.mean(each))
    assert scores.exact == pytest.approx((tags == said).all(axis=1).mean())
    assert scores.exact_low <= scores.exact <= scores.exact_high
    loss = reference_log_loss(tags.reshape(-1), sigmoid(logits).reshape(-1), labels=[0, 1])
    assert scores.log_loss == pytest.approx(loss)
    for own, has, given_one in zip(scores.per_class, tags.T, said.T, strict=True):
        assert (own.num_samples, own.num_predicted) == (has.sum(), given_one.sum())
        if own.recall is not None:
            assert own.recall == pytest.approx(recall_score(has, given_one, zero_division=0))
        if own.precision is not None:
            assert own.precision == pytest.approx(precision_score(has, given_one, zero_division=0))
    known = [own.average_precision for own in scores.per_class if own.num_samples]
    if known:
        assert scores.mean_average_precision == pytest.approx(np.mean(known))
    else:
        assert scores.mean_average_precision is None
    assert MULTI_LABEL.scores_from_dict(scores.to_dict()) == scores


def test_a_tag_is_given_from_its_threshold_on():
    logits = np.array([[0.0, 0.0]])
    assert given_tags(logits, [0.5, 0.500001]).tolist() == [[True, False]]


def test_large_logits_neither_overflow_nor_lose_the_loss():
    logits = np.array([[1e4, -1e4]])
    assert sigmoid(logits).tolist() == [[1.0, 0.0]]
    assert binary_log_loss(logits, np.array([[0, 1]])) == pytest.approx(1e4)
    assert binary_log_loss(logits, np.array([[1, 0]])) == 0


# --- thresholds --------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=30),
)
def test_no_threshold_is_better(sample):
    logits = np.array([[float(z)] for z, _ in sample])
    tags = np.array([[has] for _, has in sample], np.uint8)
    (threshold,) = choose_thresholds(logits, tags)
    assert 0 < threshold < 1
    if tags.all() or not tags.any():
        assert threshold == EVEN
        return
    found = f1_score(tags, given_tags(logits, [threshold]))
    others = [
        f1_score(tags, sigmoid(logits) >= other, zero_division=0) for other in sigmoid(logits)[:, 0]
    ]
    assert found == pytest.approx(max(others))


def test_a_threshold_is_away_from_what_it_divides():
    logits = np.array([[-3.0], [-1.0], [-2.0]])
    (threshold,) = choose_thresholds(logits, np.array([[0], [1], [0]]))
    assert threshold == pytest.approx(sigmoid(np.array([-1.0, -2.0])).mean())


def test_where_a_half_is_as_good_it_is_a_half():
    logits = np.array([[3.0], [0.2], [-0.3]])
    assert choose_thresholds(logits, np.array([[1], [1], [0]])) == (EVEN,)


def test_surest_of_all_is_still_below_one():
    logits = np.array([[1e3], [1e3], [-1e3]])
    (threshold,) = choose_thresholds(logits, np.array([[1], [0], [0]]))
    assert 0 < threshold < 1


def test_a_tag_exactly_at_its_threshold_is_given():
    logits = np.array([[0.25, -1.5], [3.0, 0.0]], np.float32)
    at = sigmoid(logits.astype(np.float64))
    for row in range(2):
        assert given_tags(logits[row : row + 1], at[row].tolist()).all()
        just_above = np.nextafter(at[row], 1).tolist()
        assert not given_tags(logits[row : row + 1], just_above).any()
