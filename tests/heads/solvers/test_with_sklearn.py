"""scikit-learn's solver: the same head as featx's own, by another way."""

from __future__ import annotations

import numpy as np
import pytest
from solving import called_with_arrays, fit_linear

import featx.heads.samples.folds
from featx.heads.head import apply_layers
from featx.heads.samples.folds import NUM_FOLDS, stratified_folds
from featx.heads.solvers import with_sklearn
from featx.heads.tasks.losses import log_softmax

fit_with_sklearn = called_with_arrays(with_sklearn.fit_with_sklearn)


def samples_of(
    num_samples: int, num_features: int, num_classes: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % num_classes
    centres = random.normal(size=(num_classes, num_features))
    features = centres[labels] + random.normal(size=(num_samples, num_features))
    return (features * 3 + 5).astype(np.float32), labels


def probabilities(fit, features: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(apply_layers([fit.layer], features)))


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_agrees_with_featx_at_the_same_strength(num_classes, strength):
    """Two classes too, where scikit-learn's C penalises half as much."""
    features, labels = samples_of(200, 6, num_classes)
    own = fit_linear(features, labels, num_classes, strengths=[strength])
    theirs = fit_with_sklearn(features, labels, num_classes, strengths=[strength])
    assert theirs.strength == strength
    assert (theirs.path, theirs.num_folds, theirs.gradient_norm) == ((), 0, None)
    assert np.allclose(probabilities(own, features), probabilities(theirs, features), atol=2e-3)
    if num_classes == 2:
        assert np.allclose(own.layer[0], theirs.layer[0], atol=1e-2 * np.abs(own.layer[0]).max())


def test_two_classes_become_two_opposite_rows():
    features, labels = samples_of(100, 4, 2)
    weight, _ = fit_with_sklearn(features, labels, 2, strengths=[0.1]).layer
    assert weight.shape == (2, 4)
    assert np.allclose(weight[0], -weight[1])
    assert np.abs(weight).max() > 0.01


@pytest.mark.parametrize("present", [[0, 2, 4], [1, 4]])
def test_classes_without_samples_are_never_predicted(present):
    features, labels = samples_of(120, 6, len(present))
    labels = np.array(present)[labels]
    fit = fit_with_sklearn(features, labels, 6, strengths=[0.1])
    assert fit.layer[0].shape == (6, 6)
    found = probabilities(fit, features)
    absent = sorted(set(range(6)) - set(present))
    assert found[:, absent].max() == 0
    own = probabilities(fit_linear(features, labels, 6, strengths=[0.1]), features)
    assert np.allclose(own, found, atol=2e-2)


def test_the_strength_is_the_best_of_the_path_and_near_featxs():
    features, labels = samples_of(150, 8, 3)
    strengths = [1e-4, 1e-3, 1e-2, 0.1]
    theirs = fit_with_sklearn(features, labels, 3, strengths=strengths, seed=2)
    own = fit_linear(features, labels, 3, strengths=strengths, seed=2)
    assert theirs.num_folds == own.num_folds == NUM_FOLDS
    assert theirs.strength == min(theirs.path, key=lambda point: point.log_loss).strength
    for a, b in zip(theirs.path, own.path, strict=True):
        assert a.strength == b.strength
        assert a.log_loss == pytest.approx(b.log_loss, rel=5e-3)
        assert a.top1 == pytest.approx(b.top1, abs=0.02)
    assert theirs.strength == own.strength


@pytest.mark.parametrize("counts", [[1, 9], [1, 1], [1, 1, 1], [2, 20, 3]])
def test_classes_with_fewer_samples_than_folds(counts):
    """A fold may hold all of a class, and leave one class to train on."""
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    fit = fit_with_sklearn(features, labels, len(counts), strengths=[0.01, 0.1])
    assert np.isfinite(fit.layer[0]).all()
    assert np.isfinite(fit.layer[1]).all()
    assert all(np.isfinite(point.log_loss) for point in fit.path)


def test_a_single_hold_out_where_there_are_many(monkeypatch):
    features, labels = samples_of(100, 4, 2)
    monkeypatch.setattr(featx.heads.samples.folds, "HOLDOUT_ABOVE", 50)
    fit = fit_with_sklearn(features, labels, 2, strengths=[0.01, 0.1])
    assert fit.num_folds == 1
    assert (stratified_folds(labels, NUM_FOLDS) == 0).sum() == 20


def test_constant_features_carry_no_weight():
    features, labels = samples_of(100, 4, 3)
    features[:, 1] = 7
    weight, _ = fit_with_sklearn(features, labels, 3, strengths=[0.1]).layer
    assert np.abs(weight[:, 1]).max() < 1e-6


def test_deterministic_and_float32():
    features, labels = samples_of(80, 4, 3)
    first, second = (fit_with_sklearn(features, labels, 3, strengths=[0.01, 0.1]) for _ in range(2))
    assert first.layer[0].tobytes() == second.layer[0].tobytes()
    assert first.path == second.path
    assert [part.dtype for part in first.layer] == [np.float32, np.float32]


def test_weighted_samples_agree_with_featx():
    features, labels = samples_of(200, 6, 3)
    weights = np.where(labels == 1, 5.0, 0.5)
    own = fit_linear(features, labels, 3, strengths=[0.1], weights=weights)
    theirs = fit_with_sklearn(features, labels, 3, strengths=[0.1], weights=weights)
    assert np.allclose(probabilities(own, features), probabilities(theirs, features), atol=2e-3)


def test_samples_can_be_held_out_for_a_single_strength_too():
    features, labels = samples_of(100, 4, 3)
    fit = fit_with_sklearn(features, labels, 3, strengths=[0.1], hold_out=True)
    assert fit.held_out is not None
    assert len(fit.held_out.labels) == 100
    assert len(fit.path) == 1
