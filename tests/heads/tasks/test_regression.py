"""Scores of numbers: scikit-learn's, in the target's unit, with intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from featx.heads.tasks import REGRESSION
from featx.heads.tasks.regression import measure_values


@given(
    num_samples=st.integers(2, 60),
    num_targets=st.integers(1, 3),
    unit=st.sampled_from([1e-6, 1.0, 1e9]),
    shift=st.sampled_from([0.0, -5.0, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_scores_are_scikit_learns(num_samples, num_targets, unit, shift, seed):
    random = np.random.default_rng(seed)
    true = unit * (random.normal(size=(num_samples, num_targets)) + shift)
    values = true + unit * random.normal(0, 0.3, true.shape)
    scores = measure_values(values, true)
    assert scores.num_samples == num_samples
    assert scores.mae == pytest.approx(mean_absolute_error(true, values))
    assert scores.rmse == pytest.approx(root_mean_squared_error(true, values))
    assert scores.r2 == pytest.approx(r2_score(true, values), rel=1e-6)
    expected = r2_score(true, values, multioutput="raw_values")
    assert [own.r2 for own in scores.per_target] == pytest.approx(expected, rel=1e-6)
    assert scores.mae_low <= scores.mae_high
    assert REGRESSION.scores_from_dict(scores.to_dict()) == scores


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    true_mae = np.sqrt(2 / np.pi)  # of a normal error
    hits = 0
    for _ in range(60):
        error = random.normal(size=(100, 1))
        scores = measure_values(error, np.linspace(0, 9, 100)[:, None] * 0 + 0.0)
        hits += scores.mae_low <= true_mae <= scores.mae_high
    assert 50 <= hits <= 60


def test_a_constant_truth_has_no_share_of_variance():
    true = np.stack([np.full(6, 3.0), np.arange(6.0)], axis=1)
    scores = measure_values(true + 1, true)
    first, second = scores.per_target
    assert first.r2 is None
    assert second.r2 == pytest.approx(r2_score(true[:, 1], true[:, 1] + 1))
    assert scores.r2 == second.r2
    alone = measure_values(true[:, :1] + 1, true[:, :1])
    assert alone is not None
    assert (alone.r2, alone.r2_low, alone.mae) == (None, None, 1.0)


def test_a_single_sample():
    scores = measure_values(np.array([[1.0]]), np.array([[3.0]]))
    assert (scores.mae, scores.mae_low, scores.mae_high, scores.r2) == (2.0, 2.0, 2.0, None)


def test_the_same_numbers_give_the_same_intervals():
    random = np.random.default_rng(0)
    true, values = random.normal(size=(2, 40, 2))
    assert measure_values(values, true) == measure_values(values, true)
