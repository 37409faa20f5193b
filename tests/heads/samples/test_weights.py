"""Class weights: scikit-learn's balance, weights by name, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

from featx.errors import ConfigError
from featx.heads.samples.selection import weights_of

CLASSES = ("ant", "bee", "wasp")


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=100).map(np.array))
def test_balanced_is_scikit_learns(labels: np.ndarray) -> None:
    weights = weights_of(labels, [str(i) for i in range(7)], "balanced")
    assert np.allclose(weights, compute_sample_weight("balanced", labels))
    assert weights.sum() == pytest.approx(len(labels))


def test_by_name_and_1_for_the_others() -> None:
    labels = np.array([2, 0, 1, 1])
    assert weights_of(labels, CLASSES, {"bee": 3, "wasp": 0.5}).tolist() == [0.5, 1, 3, 3]
    assert weights_of(labels, CLASSES, {}).tolist() == [1, 1, 1, 1]
    assert weights_of(labels, CLASSES, None).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ("even", "must be 'balanced' or weights by class name; got 'even'"),
        ({"bees": 2}, "name 'bees', which is no class; the classes are ant, bee, wasp"),
        ({"bee": 0}, "must be above 0; got 0 for 'bee'"),
        ({"bee": -1.5}, "must be above 0"),
        ({"bee": float("nan")}, "must be above 0"),
        ({"bee": float("inf")}, "must be above 0"),
        ({"bee": "2"}, "must be above 0; got '2'"),
        ({"bee": True}, "must be above 0"),
        ({"bee": None}, "must be above 0"),
    ],
)
def test_refusals(given_, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        weights_of(np.array([0, 1]), CLASSES, given_)
