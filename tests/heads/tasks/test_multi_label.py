"""Thresholds: no other gives a better F1 score on the same samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from featx.heads.metrics.multi_label import given_tags, sigmoid
from featx.heads.tasks.multi_label import EVEN, choose_thresholds


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
