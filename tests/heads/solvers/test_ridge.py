"""Ridge: scikit-learn's solution, and leave-one-out that is what leaving one out gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scores import top1
from sklearn.linear_model import Ridge
from solving import fit_ridge, samples_of

from featx.heads.head import apply_layers
from featx.heads.samples.folds import divide
from featx.heads.samples.statistics import standardisation
from featx.heads.solvers.linear import FIXED_STRENGTH, STRENGTHS


def reference(
    x: np.ndarray, labels: np.ndarray, strength: float, weights: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """What scikit-learn's ridge gives ``at`` some samples."""
    targets = np.eye(labels.max() + 1)[labels]
    model = Ridge(alpha=1 / strength, solver="svd" if (weights == 1).all() else "cholesky")
    model.fit(x, targets, sample_weight=weights)
    return model.predict(at)


@pytest.mark.parametrize("shape", [(60, 8, 3), (20, 40, 3), (50, 6, 2)])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_is_scikit_learns(shape, strength, weighted):
    features, labels = samples_of(*shape)
    weights = np.ones(len(labels))
    if weighted:
        weights = np.random.default_rng(1).uniform(0.2, 3, len(labels))
    fit = fit_ridge(features, labels, shape[2], strengths=[strength], weights=weights)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    expected = reference(x, labels, strength, weights, x)
    assert np.allclose(apply_layers([fit.layer], features), expected, atol=1e-4)


@settings(max_examples=20)
@given(
    shape=st.sampled_from([(25, 4, 3), (12, 30, 3), (15, 3, 2)]),
    strength=st.sampled_from([1e-2, 0.3, 5.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_left_out_is_what_leaving_one_out_gives(shape, strength, seed, weighted):
    features, labels = samples_of(*shape, seed)
    weights = np.ones(len(labels))
    if weighted:
        weights = np.random.default_rng(seed).uniform(0.2, 3, len(labels))
    fit = fit_ridge(features, labels, shape[2], strengths=[strength], weights=weights)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    expected = np.empty_like(fit.held_out.logits)
    for row in range(len(labels)):
        rest = np.arange(len(labels)) != row
        given_ = reference(x[rest], labels[rest], strength, weights[rest], x[row : row + 1])
        expected[row] = given_[0]
    assert np.allclose(fit.held_out.logits, expected, atol=1e-5)
    squared = ((expected - np.eye(shape[2])[labels]) ** 2).sum(axis=1)
    assert fit.path[0].error == pytest.approx(np.average(squared, weights=weights), rel=1e-4)
    assert fit.path[0].top1 == top1(expected, labels)


def test_the_strength_is_the_best_of_the_path():
    fit = fit_ridge(*samples_of(100, 30, 4), 4)
    assert [point.strength for point in fit.path] == sorted(STRENGTHS)
    assert fit.strength == min(fit.path, key=lambda point: point.error).strength


def test_a_class_without_samples_is_never_predicted():
    features, labels = samples_of(60, 5, 2)
    fit = fit_ridge(features, 2 * labels, 4, strengths=[0.1])
    assert set(apply_layers([fit.layer], features).argmax(axis=1)) <= {0, 2}
    assert set(fit.held_out.logits.argmax(axis=1)) <= {0, 2}


@pytest.mark.parametrize(
    ("counts", "left_out"), [([1, 1], 0), ([1, 5], 0), ([2, 2, 2], 6), ([1, 3, 3], 6)]
)
def test_the_only_sample_of_a_class_is_not_left_out(counts, left_out):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 7)).astype(np.float32)
    fit = fit_ridge(features, labels, len(counts))
    assert np.isfinite(fit.layer[0]).all()
    if not left_out:
        assert (fit.held_out, fit.path, fit.strength) == (None, (), FIXED_STRENGTH)
        return
    assert fit.held_out is not None
    assert np.isfinite(fit.held_out.logits).all()
    assert len(fit.held_out.labels) == left_out
    squared = (fit.held_out.logits - np.eye(len(counts))[fit.held_out.labels]) ** 2
    best = min(point.error for point in fit.path)
    assert best == pytest.approx(squared.sum(axis=1).mean())


@pytest.mark.parametrize("shape", [(60, 8, 3), (24, 40, 3)])
@pytest.mark.parametrize("numbers", [False, True])
def test_groups_are_left_out_in_folds(shape, numbers):
    features, labels = samples_of(*shape)
    groups = np.arange(len(labels)) // 3
    targets = np.eye(3)[labels]
    given_ = targets if numbers else labels
    fit = fit_ridge(features, given_, 3, strengths=[0.1], groups=groups)
    division = divide(given_, groups=groups, leave_one_out=True)
    assert division is not None
    assert fit.held_out is not None
    assert fit.held_out.num_folds == len(division.held_out_folds) > 1
    mean, scale = standardisation(features)
    x, expected = (features - mean) / scale, []
    for fold in division.held_out_folds:
        rest, out = division.fold != fold, division.fold == fold
        expected.append(Ridge(alpha=10.0).fit(x[rest], targets[rest]).predict(x[out]))
    assert np.allclose(fit.held_out.logits, np.concatenate(expected), atol=1e-5)


def test_constant_and_duplicated_features():
    features, labels = samples_of(50, 4, 3)
    wide = np.concatenate([features, features, np.full((50, 2), 3, np.float32)], axis=1)
    fit = fit_ridge(wide, labels, 3)
    assert np.isfinite(apply_layers([fit.layer], wide)).all()
    assert np.abs(fit.layer[0][:, 8:]).max() == 0
    flat = fit_ridge(np.full((50, 2), 3, np.float32), labels, 3)
    assert np.allclose(apply_layers([flat.layer], wide[:1, :2]), np.bincount(labels) / 50)


def test_deterministic_and_float32():
    first, second = (fit_ridge(*samples_of(60, 8, 3), 3) for _ in range(2))
    assert first.layer[0].tobytes() == second.layer[0].tobytes()
    assert first.path == second.path
    assert [part.dtype for part in first.layer] == [np.float32, np.float32]


# --- numbers ------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    shape=st.sampled_from([(25, 4, 1), (12, 30, 2), (15, 3, 3)]),
    strength=st.sampled_from([1e-2, 0.3, 5.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_numbers_left_out_are_what_leaving_one_out_gives(shape, strength, seed, weighted):
    random = np.random.default_rng(seed)
    features = random.normal(5, 3, shape[:2]).astype(np.float32)
    numbers = random.normal(size=(shape[0], shape[2])) + features[:, : shape[2]]
    weights = random.uniform(0.2, 3, shape[0]) if weighted else np.ones(shape[0])
    fit = fit_ridge(features, numbers, shape[2], strengths=[strength], weights=weights)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    model = Ridge(alpha=1 / strength, solver="cholesky" if weighted else "svd")
    whole = model.fit(x, numbers, sample_weight=weights).predict(x).reshape(numbers.shape)
    assert np.allclose(apply_layers([fit.layer], features), whole, atol=1e-3)
    expected = np.empty_like(numbers)
    for row in range(len(numbers)):
        rest = np.arange(len(numbers)) != row
        model.fit(x[rest], numbers[rest], sample_weight=weights[rest])
        expected[row] = model.predict(x[row : row + 1])[0]
    assert np.allclose(fit.held_out.logits, expected, atol=1e-5)
    errors = ((expected - numbers) ** 2).sum(axis=1)
    assert fit.path[0].error == pytest.approx(np.average(errors, weights=weights), rel=1e-4)
    assert fit.path[0].top1 is None


def test_one_hot_numbers_are_classes():
    features, labels = samples_of(60, 8, 3)
    classes = fit_ridge(features, labels, 3)
    numbers = fit_ridge(features, np.eye(3)[labels], 3)
    assert classes.strength == numbers.strength
    assert np.allclose(classes.layer[0], numbers.layer[0], atol=1e-6)
    assert np.allclose(classes.held_out.logits, numbers.held_out.logits)
