"""Folds: every sample once, every class in every part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.heads.samples.folds import (
    HOLDOUT_ABOVE,
    NUM_FOLDS,
    choose_num_folds,
    divide,
    fold_by_tags,
    stratified_folds,
    units_of,
)

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(np.array)


@given(labels=label_lists, num_folds=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_sizes_and_class_counts_differ_by_at_most_one(labels, num_folds, seed):
    folds = stratified_folds(labels, num_folds, seed=seed)
    assert folds.shape == labels.shape
    assert folds.dtype == np.int64
    assert folds.min() >= 0
    alone = np.bincount(labels)[labels] == 1
    assert np.array_equal(folds == num_folds, alone)  # the only sample of a class is never held out
    assert np.ptp(np.bincount(folds[~alone], minlength=num_folds)) <= 1
    for label in np.unique(labels[~alone]):
        counts = np.bincount(folds[labels == label], minlength=num_folds)
        assert np.ptp(counts) <= 1
        assert (counts < (labels == label).sum()).all()


@given(
    labels=label_lists,
    num_folds=st.integers(2, 7),
    num_groups=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_groups_stay_together_and_every_class_is_always_trained(
    labels, num_folds, num_groups, seed
):
    groups = np.random.default_rng(seed).integers(-1, num_groups, len(labels))
    folds = stratified_folds(labels, num_folds, groups=groups, seed=seed)
    assert folds.min() >= 0
    assert folds.max() <= num_folds
    assert np.array_equal(folds, stratified_folds(labels, num_folds, groups=groups, seed=seed))
    for group in np.unique(groups[groups >= 0]):
        assert len(np.unique(folds[groups == group])) == 1
    for fold in range(num_folds):
        assert set(labels[folds != fold]) == set(labels)


def test_groups_are_spread_like_their_classes():
    labels = np.repeat([0, 1, 2], [60, 60, 20])
    groups = np.repeat(np.arange(35), 4)
    folds = stratified_folds(labels, 5, groups=groups)
    assert np.bincount(folds).tolist() == [28] * 5
    for label, each in ((0, 12), (1, 12), (2, 4)):
        assert np.bincount(folds[labels == label]).tolist() == [each] * 5


def test_a_class_of_one_group_is_never_held_out():
    labels = np.repeat([0, 1, 2], 6)
    groups = np.where(labels == 2, 7, -1)
    division = divide(labels, groups=groups)
    assert division is not None
    assert not division.held_out[labels == 2].any()
    assert division.held_out[labels < 2].all()


def test_without_a_group_every_sample_is_its_own_unit():
    units = units_of(np.array([-1, 4, -1, 4, 9]), 5)
    assert units[1] == units[3]
    assert sorted(set(units)) == [0, 1, 2, 3]
    assert units_of(None, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("counts", "num_folds"), [([40, 30, 1], 5), ([40, 2], 5), ([3, 3, 3], 3), ([2, 1], 2)]
)
def test_one_small_class_does_not_shrink_the_folds(counts, num_folds):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert choose_num_folds(labels) == num_folds
    assert choose_num_folds(labels, groups=np.full(len(labels), -1)) == num_folds


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 1, 40], [1], [40]])
def test_samples_of_one_class_alone_are_not_held_out(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert divide(labels) is None
    assert divide(labels, leave_one_out=True) is None
    assert divide(labels, groups=np.arange(len(labels))) is None


def test_of_many_samples_one_fold_is_held_out():
    labels = np.concatenate([np.arange(HOLDOUT_ABOVE + 10) % 50, [50, 51, 51]])
    division = divide(labels)
    assert division is not None
    assert division.held_out_folds.tolist() == [0]
    assert division.held_out.mean() == pytest.approx(1 / NUM_FOLDS, abs=0.01)
    assert not division.held_out[-3]


def test_left_out_one_by_one_are_all_but_the_only_ones():
    labels = np.array([0, 0, 1, 1, 2])
    division = divide(labels, leave_one_out=True)
    assert division is not None
    assert division.held_out.tolist() == [True] * 4 + [False]
    numbers = divide(labels[:, None].astype(float), leave_one_out=True)
    assert numbers is not None
    assert numbers.held_out.all()


@given(labels=label_lists, num_folds=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_deterministic_and_without_touching_numpys_own_state(labels, num_folds, seed):
    before = np.random.get_state()[1].copy()
    first = stratified_folds(labels, num_folds, seed=seed)
    assert np.array_equal(first, stratified_folds(labels, num_folds, seed=seed))
    assert np.array_equal(before, np.random.get_state()[1])


def test_the_seed_decides_who_goes_where():
    labels = np.repeat([0, 1, 2], 50)
    assignments = {stratified_folds(labels, 5, seed=seed).tobytes() for seed in range(10)}
    assert len(assignments) == 10


def test_sorted_data_is_mixed():
    """Neighbours (frames of one film, say) do not all go to one fold by position."""
    labels = np.zeros(1000, dtype=int)
    folds = stratified_folds(labels, 5)
    assert not np.array_equal(folds, np.arange(1000) % 5)
    assert abs(np.corrcoef(folds, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("num_folds", [5, 10])
def test_more_folds_than_samples_leave_some_empty(num_folds):
    folds = stratified_folds(np.array([0, 0, 1, 1]), num_folds)
    assert sorted(folds) == [0, 1, 2, 3]


# --- tags ---------------------------------------------------------------------------------------


@given(
    num_samples=st.integers(2, 80),
    num_tags=st.integers(1, 6),
    num_folds=st.integers(2, 6),
    rate=st.floats(0.02, 0.98),
    seed=st.integers(0, 2**32),
)
def test_what_holds_for_any_tags(num_samples, num_tags, num_folds, rate, seed):
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
def test_groups_of_samples_with_tags_stay_together(num_samples, num_tags, num_groups, rate, seed):
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


def test_rare_tags_are_dealt_first():
    random = np.random.default_rng(0)
    tags = (random.random((500, 8)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.9, 0.99, 0.4]).astype(np.uint8)
    folds = fold_by_tags(tags, 5)
    for has in tags.T:
        counts = np.bincount(folds, weights=has, minlength=5)
        expected = has.sum() / 5
        assert np.abs(counts - expected).max() <= max(2, 0.2 * expected)
    assert np.ptp(np.bincount(folds, minlength=5)) <= 10
    _require_both_sides(tags, folds, 5)
