"""Intervals by bootstrap; Wilson's are tested with the scores that have them."""

from __future__ import annotations

import numpy as np
import pytest

from featx.heads.tasks.scores import bootstrap_intervals, share_with_interval


def test_the_interval_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, (400, 1))
    ((low, high),) = bootstrap_intervals(values, lambda means: means)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_draws_without_a_score_do_not_count():
    values = np.array([[0.0], [1.0]])
    ((low, high),) = bootstrap_intervals(values, lambda m: np.where(m == 0.5, 7.0, np.nan))
    assert (low, high) == (7.0, 7.0)
    ((low, high),) = bootstrap_intervals(values, lambda m: np.full_like(m, np.nan))
    assert np.isnan(low)
    assert np.isnan(high)


def test_a_share_of_nothing_is_unknown():
    assert share_with_interval(0, 0) == (None, None, None)
    assert share_with_interval(1, 1)[0] == 1.0
