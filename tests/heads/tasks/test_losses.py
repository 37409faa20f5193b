"""Losses: gradients, and hold-outs that can be scored."""

from __future__ import annotations

import numpy as np
import pytest

from featx.heads.samples.folds import HOLDOUT_ABOVE, NUM_FOLDS
from featx.heads.tasks.losses import SIGMOID, SOFTMAX, SQUARED, binary_log_loss

RANDOM = np.random.default_rng(0)
N, K = 7, 4
OUTPUTS = RANDOM.normal(0, 2, (N, K))
CLASSES = RANDOM.integers(0, K, N)
TAGS = RANDOM.integers(0, 2, (N, K)).astype(np.uint8)
NUMBERS = RANDOM.normal(size=(N, K))


def slope(function, at: np.ndarray) -> np.ndarray:
    """Central differences of a function of an array."""
    gradient = np.empty_like(at)
    for place in np.ndindex(at.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = at.copy()
            moved[place] += step
            ends.append(function(moved))
        gradient[place] = (ends[0] - ends[1]) / 2e-5
    return gradient


@pytest.mark.parametrize(
    ("loss", "targets", "scale"),
    [(SOFTMAX, CLASSES, 1), (SIGMOID, TAGS, K), (SQUARED, NUMBERS, K / 2)],
)
def test_the_error_is_the_gradient_of_the_mean(loss, targets, scale):
    """The mean over outputs, the 2 of a square: constants that training does not see."""
    expected = slope(lambda z: scale * N * loss.mean(z, targets), OUTPUTS)
    found = loss.error(OUTPUTS[None].copy(), targets)[0]
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("loss", "targets"), [(SOFTMAX, CLASSES), (SIGMOID, TAGS)])
def test_the_residual_is_the_gradient_of_each_problem(loss, targets):
    share = RANDOM.random((2, N))
    z = RANDOM.normal(size=(2, K, N))

    def losses(at: np.ndarray) -> float:
        return float(loss.residual_in_place(at.copy(), targets, share).sum())

    found = z.copy()
    loss.residual_in_place(found, targets, share)
    assert np.allclose(found, slope(losses, z), atol=1e-6)


def test_the_losses_of_tags_add_up():
    share = np.full((1, N), 1 / N)
    (found,) = SIGMOID.residual_in_place(OUTPUTS.T[None].copy(), TAGS, share)
    assert found == pytest.approx(K * binary_log_loss(OUTPUTS, TAGS))


def test_extreme_outputs_stay_finite():
    z = np.array([[[1e4, -1e4]]], np.float32)
    losses = SIGMOID.residual_in_place(z, np.array([[0], [1]]), np.ones((1, 2)))
    assert losses.tolist() == [2e4]
    assert z.tolist() == [[[1, -1]]]


def test_the_only_sample_with_a_tag_is_never_held_out():
    tags = np.zeros((30, 3), np.uint8)
    tags[:15, 0], tags[3, 1], tags[:29, 2] = 1, 1, 1
    held_out = SIGMOID.hold_out(tags, 10, seed=0)
    assert 1 <= held_out.sum() <= 5
    assert not held_out[[3, 29]].any()
    division = SIGMOID.divide(tags, seed=0)
    assert division is not None
    assert division.held_out_folds.tolist() == list(range(NUM_FOLDS))
    assert not np.isin(division.fold[[3, 29]], division.held_out_folds).any()


def test_of_many_samples_one_fold_is_held_out():
    tags = np.random.default_rng(0).integers(0, 2, (HOLDOUT_ABOVE + 1, 2)).astype(np.uint8)
    division = SIGMOID.divide(tags, seed=0)
    assert division is not None
    assert division.held_out_folds.tolist() == [0]
    assert (division.fold == 0).mean() == pytest.approx(1 / NUM_FOLDS, abs=0.01)


def test_no_fold_loses_all_samples_with_a_tag():
    random = np.random.default_rng(268)
    entangled = (random.random((16, 6)) < 0.15).astype(np.uint8)
    division = SIGMOID.divide(entangled, seed=268)
    assert division is not None
    for fold in division.held_out_folds:
        assert entangled[division.fold != fold].any(axis=0).tolist() == entangled.any(0).tolist()


def test_where_each_sample_alone_has_some_tag_none_is_held_out():
    assert SIGMOID.divide(np.eye(3, dtype=np.uint8), seed=0) is None
    assert not SIGMOID.hold_out(np.eye(3, dtype=np.uint8), 10, seed=0).any()


def test_a_hold_out_has_two_classes_or_is_none():
    few = np.array([0, 0, 1, 1, 2])
    held_out = SOFTMAX.hold_out(few, 10, seed=0)
    assert sorted(few[held_out]) == [0, 1]
    assert not SOFTMAX.hold_out(np.array([0, 0, 0, 1, 2]), 10, seed=0).any()


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (SOFTMAX, np.arange(40) % 3),
        (SIGMOID, (np.arange(120).reshape(40, 3) % 7 < 3).astype(np.uint8)),
        (SQUARED, np.arange(40.0)[:, None]),
    ],
)
def test_groups_are_held_out_as_a_whole(loss, targets):
    groups = np.arange(40) // 4
    division = loss.divide(targets, groups=groups, seed=0)
    assert division is not None
    held_out = loss.hold_out(targets, 10, groups=groups, seed=0)
    assert 0 < held_out.sum() <= 20
    for group in range(10):
        assert len(set(division.fold[groups == group])) == 1
        assert len(set(held_out[groups == group])) == 1
    assert loss.divide(targets, groups=np.zeros(40, np.int64), seed=0) is None
    assert not loss.hold_out(targets, 10, groups=np.zeros(40, np.int64), seed=0).any()


def test_numbers_are_held_out_at_random():
    held_out = SQUARED.hold_out(np.zeros((50, 1)), 10, seed=0)
    assert held_out.sum() == 5
    assert not SQUARED.hold_out(np.zeros((1, 1)), 10, seed=0).any()
