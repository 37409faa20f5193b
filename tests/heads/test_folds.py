"""Folds: every sample once, every class in every part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.heads.folds import stratified_folds

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(np.array)


@given(labels=label_lists, num_folds=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_sizes_and_class_counts_differ_by_at_most_one(
    labels: np.ndarray, num_folds: int, seed: int
) -> None:
    folds = stratified_folds(labels, num_folds, seed=seed)
    assert folds.shape == labels.shape
    assert folds.dtype == np.int64
    assert folds.min() >= 0
    assert folds.max() < num_folds
    assert np.ptp(np.bincount(folds, minlength=num_folds)) <= 1
    for label in np.unique(labels):
        assert np.ptp(np.bincount(folds[labels == label], minlength=num_folds)) <= 1


@given(labels=label_lists, num_folds=st.integers(2, 12), seed=st.integers(0, 2**32))
def test_deterministic_and_without_touching_numpys_own_state(
    labels: np.ndarray, num_folds: int, seed: int
) -> None:
    before = np.random.get_state()[1].copy()
    first = stratified_folds(labels, num_folds, seed=seed)
    assert np.array_equal(first, stratified_folds(labels, num_folds, seed=seed))
    assert np.array_equal(before, np.random.get_state()[1])


def test_the_seed_decides_who_goes_where() -> None:
    labels = np.repeat([0, 1, 2], 50)
    assignments = {stratified_folds(labels, 5, seed=seed).tobytes() for seed in range(10)}
    assert len(assignments) == 10


def test_sorted_data_is_mixed() -> None:
    """Neighbours (frames of one film, say) do not all go to one fold by position."""
    labels = np.zeros(1000, dtype=int)
    folds = stratified_folds(labels, 5)
    assert not np.array_equal(folds, np.arange(1000) % 5)
    assert abs(np.corrcoef(folds, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("num_folds", [5, 10])
def test_more_folds_than_samples_leave_some_empty(num_folds: int) -> None:
    folds = stratified_folds(np.array([0, 1, 1]), num_folds)
    assert sorted(folds) == [0, 1, 2]
