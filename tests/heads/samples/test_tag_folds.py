"""Folds that spread tags: nobody twice, nobody forgotten, rare tags on both sides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featx.heads.samples.folds import fold_by_tags


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
    alone = (tags == (tags.sum(0) * 2 <= num_samples))[
        :, np.minimum(tags.sum(0), num_samples - tags.sum(0)) == 1
    ].any(axis=1)
    assert (folds[alone] == num_folds).all()
    _require_both_sides(tags, folds, num_folds)
    one_tag = fold_by_tags(tags[:, :1], num_folds, seed=seed)
    if 1 < tags[:, 0].sum() < num_samples - 1:  # a single tag is spread evenly
        for rows in (tags[:, 0] > 0, tags[:, 0] == 0):
            counts = np.bincount(one_tag[rows], minlength=num_folds + 1)[:-1]
            assert np.ptp(counts) <= 2


@given(
    num_samples=st.integers(2, 60),
    num_tags=st.integers(1, 4),
    num_groups=st.integers(1, 20),
    rate=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_groups_of_samples_with_tags_stay_together(
    num_samples: int, num_tags: int, num_groups: int, rate: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    tags = (random.random((num_samples, num_tags)) < rate).astype(np.uint8)
    groups = random.integers(-1, num_groups, num_samples)
    folds = fold_by_tags(tags, 3, groups=groups, seed=seed)
    for group in np.unique(groups[groups >= 0]):
        assert len(np.unique(folds[groups == group])) == 1
    _require_both_sides(tags, folds, 3)


def _require_both_sides(tags: np.ndarray, folds: np.ndarray, num_folds: int) -> None:
    """Whichever fold is held out, some sample with each tag is trained on, and some without."""
    for fold in range(num_folds):
        trained = tags[folds != fold]
        assert np.array_equal(trained.any(axis=0), tags.any(axis=0))
        assert np.array_equal(trained.all(axis=0), tags.all(axis=0))


def test_rare_tags_are_dealt_first() -> None:
    random = np.random.default_rng(0)
    tags = (random.random((500, 8)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.9, 0.99, 0.4]).astype(np.uint8)
    folds = fold_by_tags(tags, 5)
    for has in tags.T:
        counts = np.bincount(folds, weights=has, minlength=5)
        expected = has.sum() / 5
        assert np.abs(counts - expected).max() <= max(2, 0.2 * expected)
    assert np.ptp(np.bincount(folds, minlength=5)) <= 10
    _require_both_sides(tags, folds, 5)
