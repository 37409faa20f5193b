"""Folds that spread tags: nobody twice, nobody forgotten, rare tags on both sides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featx.heads.tag_folds import fold_by_tags, unjudged_tags


@given(
    num_samples=st.integers(2, 80),
    num_tags=st.integers(1, 6),
    num_folds=st.integers(2, 6),
    rate=st.floats(0.02, 0.98),
    seed=st.integers(0, 2**32),
)
def test_what_holds_for_any_tags(
    num_samples: int, num_tags: int, num_folds: int, rate: float, seed: int
) -> None:
    tags = (np.random.default_rng(seed).random((num_samples, num_tags)) < rate).astype(np.uint8)
    folds = fold_by_tags(tags, num_folds, seed=seed)
    assert folds.shape == (num_samples,)
    assert set(folds) <= set(range(num_folds + 1))
    assert np.array_equal(folds, fold_by_tags(tags, num_folds, seed=seed))
    having = np.minimum(tags.sum(0), num_samples - tags.sum(0))
    kept = folds == num_folds
    alone = (tags == (tags.sum(0) * 2 <= num_samples))[:, having == 1].any(axis=1)
    assert np.array_equal(kept, alone)
    one_tag = fold_by_tags(tags[:, :1], num_folds, seed=seed)
    if having[0] > 1:  # a single tag is spread evenly, and so are the samples
        for rows in (tags[:, 0] > 0, tags[:, 0] == 0):
            counts = np.bincount(one_tag[rows], minlength=num_folds)
            assert np.ptp(counts) <= 2
        assert not unjudged_tags(tags[:, :1], one_tag, np.arange(num_folds)).any()


def test_rare_tags_are_dealt_first() -> None:
    random = np.random.default_rng(0)
    tags = (random.random((500, 8)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.9, 0.99, 0.4]).astype(np.uint8)
    folds = fold_by_tags(tags, 5)
    for has in tags.T:
        counts = np.bincount(folds, weights=has, minlength=5)
        expected = has.sum() / 5
        assert np.abs(counts - expected).max() <= max(2, 0.2 * expected)
    assert np.ptp(np.bincount(folds, minlength=5)) <= 10
    assert not unjudged_tags(tags, folds, np.arange(5)).any()


def test_tags_that_cannot_be_on_both_sides_are_told() -> None:
    tags = np.array([[1], [1], [0], [0]], np.uint8)
    assert unjudged_tags(tags, np.array([0, 0, 1, 0]), np.arange(2)).tolist() == [True]
    assert unjudged_tags(tags, np.array([0, 1, 0, 1]), np.arange(2)).tolist() == [False]
