"""Intervals by bootstrap and paired tests; Wilson's intervals are tested with their scores."""

from __future__ import annotations

import numpy as np
import pytest

from featx.heads.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featx.heads.tasks.scores import (
    bootstrap_intervals,
    paired_differences,
    share_with_interval,
)

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 2, (150, 4))
DRAWN = (LOGITS + RANDOM.gumbel(size=LOGITS.shape)).argmax(axis=1)  # so the logits are calibrated


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


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (SINGLE_LABEL, DRAWN),
        (MULTI_LABEL, (LOGITS + RANDOM.logistic(size=LOGITS.shape) > 0).astype(np.uint8)),
        (REGRESSION, LOGITS + RANDOM.normal(size=LOGITS.shape)),
    ],
)
def test_differences_are_those_of_the_scores_and_sure_of_heads_that_are_too_confident(
    task, targets
):
    first, second = LOGITS, 2 * LOGITS
    scores = [task.measure(each, targets, thresholds=[0.5] * 4) for each in (first, second)]
    found = paired_differences(*(task.statistics(each, targets) for each in (first, second)))
    assert list(found) == (["mae"] if task is REGRESSION else ["log_loss", "ece"])
    for name, own in found.items():
        assert own.value == pytest.approx(getattr(scores[1], name) - getattr(scores[0], name))
        assert own.p_value < 0.05, name


def test_a_difference_that_many_samples_show_is_not_shown_by_few():
    few, many = LOGITS[:20], np.tile(LOGITS, (4, 1))
    by_count = [
        paired_differences(*(SINGLE_LABEL.statistics(k * own, labels) for k in (1.0, 2.0)))
        for own, labels in ((few, DRAWN[:20]), (many, np.tile(DRAWN, 4)))
    ]
    assert [own["ece"].p_value < 0.05 for own in by_count] == [False, True]
    same = SINGLE_LABEL.statistics(LOGITS, DRAWN)
    assert all(own == (0, 1) for own in paired_differences(same, same).values())


@pytest.mark.parametrize(("strengths", "noise"), [((1, 1), 1.0), ((0.86, 1.15), 0.0)])
def test_equally_good_heads_are_told_apart_as_often_as_the_p_value_says(strengths, noise):
    """Of two that differ in their temperature alone, one is too sure and the other unsure."""
    random, told = np.random.default_rng(1), 0
    for _ in range(100):
        logits = random.normal(0, 2, (150, 4))
        labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
        heads = [k * (logits + noise * random.normal(size=logits.shape)) for k in strengths]
        found = paired_differences(*(SINGLE_LABEL.statistics(own, labels) for own in heads))
        told += found["ece"].p_value < 0.2
    assert 10 <= told <= 34
