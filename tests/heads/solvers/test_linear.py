"""The linear head: the documented optimum, chosen honestly."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scores import top1
from sklearn.linear_model import LogisticRegression
from solving import data_of, eigenbasis_of, fit_linear

import featx.heads.samples.folds
import featx.heads.solvers.eigenbasis
import featx.heads.solvers.linear
from featx.heads.head import Layer, apply_layers
from featx.heads.samples.folds import (
    NUM_FOLDS,
    Division,
    choose_num_folds,
    divide,
    stratified_folds,
)
from featx.heads.samples.statistics import standardisation
from featx.heads.solvers.lbfgs import Stopping
from featx.heads.solvers.linear import FIXED_STRENGTH, STRENGTHS, follow_path, with_all_samples
from featx.heads.solvers.logistic import Logistic, Problems
from featx.heads.tasks.losses import SIGMOID, binary_log_loss, log_loss


def samples_of(
    num_samples: int, num_features: int, num_classes: int, *, seed: int = 0, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping blobs on features of different scales; every class occurs."""
    random = np.random.default_rng(seed)
    labels = np.concatenate(
        [np.arange(num_classes), random.integers(0, num_classes, num_samples - num_classes)]
    )
    centres = spread * random.normal(size=(num_classes, num_features))
    features = centres[labels] + random.normal(size=(num_samples, num_features))
    features = features * random.uniform(0.1, 10, num_features) + random.normal(size=num_features)
    return features.astype(np.float32), labels


def objective(
    weight: np.ndarray, bias: np.ndarray, x: np.ndarray, labels: np.ndarray, strength: float
) -> float:
    """The documented objective, on standardised features, float64."""
    logits = x @ weight.T + bias
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(losses.mean() + (weight**2).sum() / (2 * strength * len(labels)))


def unfolded(layer: Layer, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The layer for standardised features behind one for raw features, float64."""
    mean, scale = standardisation(features)
    weight, bias = (part.astype(np.float64) for part in layer)
    return weight * scale, bias + weight @ mean


def reference(
    features: np.ndarray, labels: np.ndarray, num_classes: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's optimum of the same objective, tightly converged.

    Of two classes it penalises the difference of the rows, half of what two rows cost.
    """
    mean, scale = standardisation(features)
    c = 2 * strength if num_classes == 2 else strength
    model = LogisticRegression(C=c, tol=1e-10, max_iter=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line search ends at the last bit
        model.fit((features - mean) / scale, labels)
    if num_classes == 2:
        half, bias = model.coef_[0] / 2, model.intercept_[0] / 2
        return np.stack([-half, half]), np.array([-bias, bias])
    return model.coef_, model.intercept_


def centred(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [1e-4, 0.03, 10.0])
@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize(("num_samples", "num_features"), [(300, 12), (40, 120)])
def test_the_optimum_is_scikit_learns(num_samples, num_features, num_classes, strength):
    features, labels = samples_of(num_samples, num_features, num_classes)
    fit = fit_linear(features, labels, num_classes, strengths=[strength])
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    weight, bias = reference(features, labels, num_classes, strength)
    expected = objective(weight, bias, x, labels, strength)
    found = objective(*unfolded(fit.layer, features), x, labels, strength)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    logits = apply_layers([fit.layer], features)
    difference = np.abs(centred(logits) - centred(x @ weight.T + bias)).max()
    assert difference <= 1e-3 * max(1, np.abs(logits).max())
    assert (fit.strength, fit.path, fit.num_folds) == (strength, (), 0)
    assert fit.gradient_norm is not None
    assert fit.gradient_norm < 1e-5


@settings(max_examples=12, deadline=None)
@given(
    num_samples=st.integers(10, 60),
    num_features=st.integers(1, 20),
    num_classes=st.integers(2, 5),
    strength=st.sampled_from([1e-3, 0.1, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_no_step_lowers_the_objective(num_samples, num_features, num_classes, strength, seed):
    """The objective is convex: a vanishing gradient proves the optimum."""
    features, labels = samples_of(num_samples, num_features, num_classes, seed=seed)
    fit = fit_linear(features, labels, num_classes, strengths=[strength])
    weight, bias = unfolded(fit.layer, features)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    residual = np.exp(x @ weight.T + bias - logsumexp(x @ weight.T + bias, axis=1, keepdims=True))
    residual[np.arange(num_samples), labels] -= 1
    gradient = residual.T @ x / num_samples + weight / (strength * num_samples)
    assert np.abs(gradient).max() < 1e-4
    assert np.abs(residual.mean(axis=0)).max() < 1e-4


def test_constant_and_duplicated_features():
    features, labels = samples_of(200, 6, 3)
    constants = np.tile(np.float32([0, 7.5]), (200, 1))
    wide = np.concatenate([features, constants, features], axis=1)
    fit = fit_linear(wide, labels, 3, strengths=[0.1])
    weight, bias = reference(wide, labels, 3, 0.1)
    mean, scale = standardisation(wide)
    x = (wide - mean) / scale
    assert objective(*unfolded(fit.layer, wide), x, labels, 0.1) == pytest.approx(
        objective(weight, bias, x, labels, 0.1), rel=1e-6
    )
    assert np.allclose(fit.layer[0][:, :6], fit.layer[0][:, 8:], rtol=1e-3, atol=1e-5)
    assert np.abs(fit.layer[0][:, 6:8]).max() < 1e-6


def test_only_constant_features_give_the_class_frequencies():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    fit = fit_linear(np.full((100, 4), 3, np.float32), labels, 3, strengths=[1.0])
    logits = apply_layers([fit.layer], np.full((1, 4), 3, np.float32))
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(), [[0.6, 0.3, 0.1]], atol=1e-4)


def test_duplicated_samples_count_twice():
    """Every sample twice at half the strength is the same problem."""
    features, labels = samples_of(800, 5, 3)
    once = fit_linear(features, labels, 3, strengths=[0.2])
    twice = fit_linear(np.tile(features, (2, 1)), np.tile(labels, 2), 3, strengths=[0.1])
    ours, theirs = (apply_layers([fit.layer], features) for fit in (once, twice))
    assert np.abs(ours - theirs).max() <= 0.05 * np.abs(ours).max()  # their scales differ a little


def test_imbalanced_classes():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    features = random.normal(size=(1000, 5)).astype(np.float32)
    features[:, 0] += labels
    fit = fit_linear(features, labels, 3, strengths=[1.0])
    weight, bias = reference(features, labels, 3, 1.0)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    assert objective(*unfolded(fit.layer, features), x, labels, 1.0) == pytest.approx(
        objective(weight, bias, x, labels, 1.0), rel=1e-6
    )


def test_a_class_without_samples_is_never_predicted():
    features, labels = samples_of(120, 6, 3)
    labels = np.array([0, 2, 4])[labels]
    fit = fit_linear(features, labels, 6, strengths=[0.1])
    logits = apply_layers([fit.layer], features)
    assert np.isfinite(logits).all()
    assert set(logits.argmax(axis=1)) <= {0, 2, 4}
    compact = fit_linear(features, np.searchsorted([0, 2, 4], labels), 3, strengths=[0.1])
    expected = apply_layers([compact.layer], features)
    assert np.allclose(centred(logits[:, [0, 2, 4]]), centred(expected), atol=0.02)
    assert np.exp(logits - logits.max(axis=1, keepdims=True))[:, [1, 3, 5]].max() < 1e-2


# --- choosing the strength ----------------------------------------------------------------------


def losses_of(fit: SimpleNamespace) -> dict[float, float]:
    return {point.strength: point.log_loss for point in fit.path}


def test_the_strength_is_the_best_of_the_path():
    features, labels = samples_of(120, 10, 3, spread=0.4)
    fit = fit_linear(features, labels, 3)
    assert [point.strength for point in fit.path] == sorted(STRENGTHS)
    assert len(STRENGTHS) >= 16
    losses = losses_of(fit)
    assert losses[fit.strength] == min(losses.values())
    assert fit.num_folds == NUM_FOLDS
    assert min(losses.values()) < np.log(3)


def test_the_path_is_the_held_out_loss_of_those_folds():
    features, labels = samples_of(150, 10, 3, spread=0.5)
    fit = fit_linear(features, labels, 3, strengths=[1e-3, 1e-2, 0.1], seed=3)
    folds = stratified_folds(labels, NUM_FOLDS, seed=3)
    mean, scale = standardisation(features)  # one standardisation for all folds, as documented
    x = (features - mean) / scale
    for point in fit.path:
        total = 0.0
        for fold in range(NUM_FOLDS):
            held_out = folds == fold
            model = LogisticRegression(C=point.strength, tol=1e-8, max_iter=10_000)
            model.fit(x[~held_out], labels[~held_out])
            logits = model.decision_function(x[held_out])
            total += log_loss(logits, labels[held_out]) * held_out.sum()
        assert point.log_loss == pytest.approx(total / len(labels), rel=2e-3)


def test_the_refit_uses_every_sample():
    features, labels = samples_of(150, 10, 3)
    chosen = fit_linear(features, labels, 3)
    fixed = fit_linear(features, labels, 3, strengths=[chosen.strength])
    assert np.allclose(chosen.layer[0], fixed.layer[0], atol=1e-4)
    assert np.allclose(chosen.layer[1], fixed.layer[1], atol=1e-3)


def test_the_order_of_strengths_does_not_matter():
    features, labels = samples_of(100, 8, 3)
    up = fit_linear(features, labels, 3, strengths=[1e-3, 1e-2, 0.1])
    down = fit_linear(features, labels, 3, strengths=[0.1, 1e-2, 1e-3])
    assert up.strength == down.strength
    assert up.path == down.path


def test_a_stray_class_of_one_sample_changes_little():
    features, labels = samples_of(100, 8, 2)
    alone = fit_linear(features, labels, 2)
    stray = np.random.default_rng(2).normal(size=(1, 8)).astype(np.float32)
    fit = fit_linear(np.concatenate([features, stray]), np.append(labels, 2), 3)
    assert fit.num_folds == NUM_FOLDS
    assert fit.held_out is not None
    assert sorted(fit.held_out.labels) == sorted(labels)
    ours, theirs = (top1(apply_layers([head.layer], features), labels) for head in (fit, alone))
    assert ours >= theirs - 0.02


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 30, 1]])
def test_where_nothing_can_be_held_out_the_strength_is_fixed(counts):
    labels = np.repeat(np.arange(3), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 5)).astype(np.float32)
    fit = fit_linear(features, labels, 3, hold_out=True)
    assert fit.strength == FIXED_STRENGTH
    assert (fit.path, fit.num_folds, fit.held_out) == ((), 0, None)
    fixed = fit_linear(features, labels, 3, strengths=[FIXED_STRENGTH])
    assert fit.layer[0].tobytes() == fixed.layer[0].tobytes()
    assert fit_linear(features, labels, 3, strengths=[1e-6, 0.5, 1e-3]).strength == 0.5


def test_groups_are_held_out_together():
    """Copies of a sample beside it tell what it is; in its group they do not."""
    features, _ = samples_of(80, 60, 2, seed=3)
    labels = np.random.default_rng(0).integers(0, 2, 80)  # nothing to learn
    features, labels = np.repeat(features, 4, axis=0), np.repeat(labels, 4)
    apart = fit_linear(features, labels, 2)
    together = fit_linear(features, labels, 2, groups=np.repeat(np.arange(80), 4))
    assert max(point.top1 for point in apart.path) > 0.75
    assert max(point.top1 for point in together.path) < 0.65


@pytest.mark.parametrize("scatter", [1e-6, 1e-3])
def test_features_that_a_few_samples_agree_in_do_not_decide(scatter):
    """Like scikit-learn on raw features, where such features hardly count."""
    random = np.random.default_rng(0)
    labels = np.array([0, 1, 2])
    centres = 3 * random.normal(size=(3, 20))
    features = centres + 0.1 * random.normal(size=(3, 20))
    features[:, :4] = 1 + scatter * random.normal(size=(3, 4))
    unseen = np.repeat(centres, 50, axis=0) + 0.3 * random.normal(size=(150, 20))
    unseen[:, :4] = random.normal(1, 1, size=(150, 4))
    raw = LogisticRegression().fit(features, labels)
    expected = (raw.predict(unseen) == np.repeat(labels, 50)).mean()
    logits = apply_layers([fit_linear(features, labels, 3).layer], unseen)
    assert np.abs(logits).max() < 50
    assert (logits.argmax(axis=1) == np.repeat(labels, 50)).mean() >= expected - 0.02


def test_classes_without_samples_do_not_shrink_the_folds():
    assert choose_num_folds(np.repeat([0, 7], 20)) == NUM_FOLDS


@pytest.mark.parametrize("counts", [[1, 1], [1, 9], [2, 2], [1, 1, 1, 1], [2, 40, 3]])
def test_tiny_classes_can_be_fitted(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    random = np.random.default_rng(0)
    features = random.normal(size=(len(labels), 4)).astype(np.float32)
    features[:, 0] += 5 * labels
    fit = fit_linear(features, labels, len(counts))
    assert np.isfinite(fit.layer[0]).all()
    assert np.isfinite(fit.layer[1]).all()
    assert all(np.isfinite(point.log_loss) for point in fit.path)


def test_a_single_hold_out_where_there_are_many(monkeypatch):
    features, labels = samples_of(200, 8, 3, spread=0.5)
    monkeypatch.setattr(featx.heads.samples.folds, "HOLDOUT_ABOVE", 199)
    fit = fit_linear(features, labels, 3)
    assert fit.num_folds == 1
    assert losses_of(fit)[fit.strength] == min(losses_of(fit).values())
    assert fit.held_out is not None
    assert len(fit.held_out.labels) == 40
    monkeypatch.setattr(featx.heads.samples.folds, "HOLDOUT_ABOVE", 200)
    assert fit_linear(features, labels, 3).num_folds == NUM_FOLDS


def test_every_point_of_the_path_is_near_its_optimum():
    """Within a thousandth of scikit-learn's objective, whatever was inherited on the way."""
    features, labels = samples_of(200, 12, 4, spread=0.6)
    fit = fit_linear(features, labels, 4)
    folds = stratified_folds(labels, NUM_FOLDS)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    for point in fit.path[::3]:
        values = []
        for fold in range(NUM_FOLDS):
            own, y = x[folds != fold], labels[folds != fold]
            model = LogisticRegression(C=point.strength, tol=1e-9, max_iter=100_000).fit(own, y)
            values.append(objective(model.coef_, model.intercept_, own, y, point.strength))
        assert point.objective == pytest.approx(np.mean(values), rel=1e-3)
        assert point.objective >= np.mean(values) * (1 - 1e-6)


def test_samples_can_be_held_out_for_a_single_strength_too():
    features, labels = samples_of(100, 8, 3)
    plain = fit_linear(features, labels, 3, strengths=[0.1])
    held = fit_linear(features, labels, 3, strengths=[0.1], hold_out=True)
    assert plain.held_out is None
    assert held.held_out is not None
    assert held.num_folds == NUM_FOLDS
    assert np.bincount(held.held_out.labels).tolist() == np.bincount(labels).tolist()
    assert log_loss(held.held_out.logits, held.held_out.labels) == pytest.approx(
        held.path[0].log_loss
    )
    assert np.allclose(plain.layer[0], held.layer[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(400, 30), (60, 200)])
def test_float32_ends_at_the_same_optimum(monkeypatch, shape):
    """What is done with many features, done with few."""
    features, labels = samples_of(*shape, 4, spread=0.5)
    double = fit_linear(features, labels, 4)
    monkeypatch.setattr(featx.heads.solvers.eigenbasis, "_DOUBLE_UP_TO", 0)
    single = fit_linear(features, labels, 4)
    assert single.strength == double.strength
    assert single.objective == pytest.approx(double.objective, rel=1e-6)
    for a, b in zip(single.path, double.path, strict=True):
        assert a.log_loss == pytest.approx(b.log_loss, rel=1e-2)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    found = objective(*unfolded(single.layer, features), x, labels, single.strength)
    assert found == pytest.approx(double.objective, rel=1e-5)


def test_weighted_samples_are_scikit_learns():
    features, labels = samples_of(200, 8, 3)
    weights = np.random.default_rng(1).uniform(0.2, 3, len(labels))
    fit = fit_linear(features, labels, 3, strengths=[0.05], weights=weights)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    model = LogisticRegression(C=0.05, tol=1e-10, max_iter=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, labels, sample_weight=weights)
    expected = centred(x @ model.coef_.T + model.intercept_)
    assert np.allclose(centred(apply_layers([fit.layer], features)), expected, atol=2e-3)


def test_a_weight_of_two_is_a_sample_twice():
    features, labels = samples_of(90, 6, 3)
    twice = np.arange(90) < 30
    weighted = fit_linear(features, labels, 3, strengths=[0.1], weights=1.0 + twice)
    mean, scale = standardisation(features)  # of the samples, whatever they weigh
    rows = np.concatenate([np.arange(90), np.flatnonzero(twice)])
    weight, _ = reference(features, labels, 3, 0.1)
    x = ((features - mean) / scale)[rows]
    model = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(x, labels[rows])
    found, _ = unfolded(weighted.layer, features)
    assert np.allclose(found - found.mean(0), model.coef_ - model.coef_.mean(0), atol=1e-3)
    assert not np.allclose(found - found.mean(0), weight - weight.mean(0), atol=1e-2)


# --- tags that don't exclude each other ----------------------------------------------------------


def tags_of(num_samples: int, num_features: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping tags, common and rare ones, on features of different scales."""
    random = np.random.default_rng(seed)
    plain = random.normal(size=(num_samples, num_features))
    scores = plain @ random.normal(size=(num_features, 4)) + random.normal(size=(num_samples, 4))
    tags = (scores > np.quantile(scores, [0.5, 0.2, 0.9, 0.7], axis=0).diagonal()).astype(np.uint8)
    features = plain * random.uniform(0.1, 10, num_features) + random.normal(size=num_features)
    return features.astype(np.float32), tags


@pytest.mark.parametrize("strength", [1e-4, 0.03, 3.0])
@pytest.mark.parametrize(("num_samples", "num_features"), [(300, 12), (60, 120)])
@pytest.mark.parametrize("double", [True, False])
def test_each_tag_is_scikit_learns_own_model(
    monkeypatch, num_samples, num_features, strength, double
):
    if not double:
        monkeypatch.setattr(featx.heads.solvers.eigenbasis, "_DOUBLE_UP_TO", 0)
    features, tags = tags_of(num_samples, num_features)
    weights = np.random.default_rng(1).uniform(0.5, 2, num_samples)
    fit = fit_linear(features, tags, 4, strengths=[strength], weights=weights, loss=SIGMOID)
    assert fit.gradient_norm is not None
    assert fit.gradient_norm < (1e-6 if double else 1e-3)
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    logits = apply_layers([fit.layer], features)
    for tag, own in zip(tags.T, logits.T, strict=True):
        model = LogisticRegression(C=strength, tol=1e-10, max_iter=100_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the line search ends at the last bit
            model.fit(x, tag, sample_weight=weights)
        expected = model.decision_function(x)
        assert np.abs(own - expected).max() <= 2e-3 * max(1, np.abs(expected).max())


def test_one_strength_for_all_tags_is_chosen_on_held_out_samples():
    features, tags = tags_of(250, 20)
    fit = fit_linear(features, tags, 4, loss=SIGMOID)
    assert len(fit.path) == len(STRENGTHS)
    assert fit.strength == min(fit.path, key=lambda point: point.log_loss).strength
    assert [point.top1 for point in fit.path] == [None] * len(STRENGTHS)
    assert fit.held_out is not None
    assert fit.held_out.labels.shape == fit.held_out.logits.shape == (250, 4)
    chosen = next(point for point in fit.path if point.strength == fit.strength)
    assert binary_log_loss(fit.held_out.logits, fit.held_out.labels) == pytest.approx(
        chosen.log_loss
    )
    held_out = fit_linear(features, tags, 4, strengths=[fit.strength], hold_out=True, loss=SIGMOID)
    assert held_out.path[0].log_loss == pytest.approx(chosen.log_loss, rel=1e-2)


# --- and besides --------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [True, False])
def test_deterministic_and_without_side_effects(monkeypatch, double):
    if not double:
        monkeypatch.setattr(featx.heads.solvers.eigenbasis, "_DOUBLE_UP_TO", 0)
    features, labels = samples_of(80, 12, 3)
    before = features.copy()
    first, second = (fit_linear(features, labels, 3, seed=1) for _ in range(2))
    assert first.layer[0].tobytes() == second.layer[0].tobytes()
    assert first.layer[1].tobytes() == second.layer[1].tobytes()
    assert first.path == second.path
    assert np.array_equal(features, before)


def test_the_seed_decides_the_folds():
    features, labels = samples_of(60, 6, 3, spread=0.3)
    assert fit_linear(features, labels, 3).path != fit_linear(features, labels, 3, seed=1).path


@pytest.mark.parametrize(
    "units", [np.float32(1e-6), np.float32(1e8), np.float32([0.3, 3, 1, 0.1, 1, 10])]
)
def test_the_unit_of_a_feature_does_not_matter(units):
    features, labels = samples_of(100, 6, 3)
    if np.ndim(units):  # units of their own: as long as samples are many for the differences
        features, labels = np.tile(features, (400, 1)), np.tile(labels, 400)
    one = fit_linear(features, labels, 3, strengths=[0.1])
    other = fit_linear(features * units, labels, 3, strengths=[0.1])
    assert np.allclose(
        apply_layers([one.layer], features),
        apply_layers([other.layer], features * units),
        atol=2e-3 if np.ndim(units) == 0 else 0.1,
    )


def test_types_and_shapes():
    features, labels = samples_of(50, 6, 3)
    fit = fit_linear(features, labels, 3, strengths=[0.1])
    assert [part.dtype for part in fit.layer] == [np.float32, np.float32]
    assert [part.shape for part in fit.layer] == [(3, 6), (3,)]
    assert isinstance(fit.strength, float)


def test_digits():
    digits = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    features, labels = digits.data[order].astype(np.float32), digits.target[order]
    fit = fit_linear(features[:1400], labels[:1400], 10)
    logits = apply_layers([fit.layer], features[1400:])
    assert top1(logits, labels[1400:]) >= 0.95


def test_class_weights_act_in_the_loss_that_chooses_the_strength():
    features, labels = samples_of(120, 6, 3, seed=4)
    by_class = np.array([1.0, 5.0, 0.2])
    fit = fit_linear(features, labels, 3, weights=by_class[labels])
    assert fit.held_out is not None
    chosen = next(point for point in fit.path if point.strength == fit.strength)
    logits, held_out = fit.held_out.logits.astype(np.float64), fit.held_out.labels
    weighted = log_loss(logits, held_out, weights=by_class[held_out])
    assert chosen.log_loss == pytest.approx(weighted, rel=1e-6)
    assert chosen.log_loss != pytest.approx(log_loss(logits, held_out), rel=1e-3)


def many_classes(
    num_classes: int = 260, *, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Three samples of each class, but one of the last."""
    random = np.random.default_rng(seed)
    labels = np.append(np.repeat(np.arange(num_classes - 1), 3), num_classes - 1)
    centres = random.normal(size=(num_classes, 10)) * np.geomspace(3, 0.3, 10)
    features = centres[labels] + spread * random.normal(size=(len(labels), 10))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_the_choice_is_that_of_the_whole_path(spread, monkeypatch, caplog):
    features, labels = many_classes(spread=spread)
    whole = fit_linear(features, labels, 260)
    monkeypatch.setattr(featx.heads.solvers.linear, "_MANY_MULTIPLICATIONS", 1)
    steps: list[str] = []
    with caplog.at_level(logging.INFO, logger="featx"):
        quick = fit_linear(features, labels, 260, step=steps.append)
    assert "With 260 classes, all strengths are solved for 128 of them" in caplog.text
    assert steps[0] == "Strength 1 of 16, C = 3.16e-07 for 128 classes"
    assert quick.strength == whole.strength
    assert len(quick.path) < len(STRENGTHS)
    tried = [STRENGTHS.index(point.strength) for point in quick.path]
    assert tried == sorted(tried)
    best = STRENGTHS.index(quick.strength)
    assert {max(0, best - 1), best, min(15, best + 1)} <= set(tried)
    by_strength = {point.strength: point for point in whole.path}
    for point in quick.path:
        assert point.log_loss == pytest.approx(by_strength[point.strength].log_loss, rel=0.01)
        assert point.objective == pytest.approx(by_strength[point.strength].objective, rel=1e-3)
    ours, theirs = (apply_layers([fit.layer], features) for fit in (quick, whole))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


def test_a_better_strength_beside_the_first_guess_is_found(monkeypatch):
    """Few classes may prefer another strength than all do; the search continues to the best."""
    features, labels = many_classes()
    whole = fit_linear(features, labels, 260)
    monkeypatch.setattr(featx.heads.solvers.linear, "_MANY_MULTIPLICATIONS", 1)
    monkeypatch.setattr(featx.heads.solvers.linear.np, "argmin", lambda losses: 6)
    assert fit_linear(features, labels, 260).strength == whole.strength


def test_few_strengths_or_few_classes_are_all_solved(monkeypatch):
    monkeypatch.setattr(featx.heads.solvers.linear, "_MANY_MULTIPLICATIONS", 1)
    features, labels = many_classes()
    assert len(fit_linear(features, labels, 260, strengths=STRENGTHS[8:12]).path) == 4
    few = labels < 200
    assert len(fit_linear(features[few], labels[few], 200).path) == 16


def test_where_all_samples_are_trained_is_foreseen_from_the_means():
    features, labels = many_classes()
    folds = divide(labels)
    assert folds is not None
    division = Division(folds.fold, folds.held_out_folds[:1])
    basis = eigenbasis_of(features)
    data = data_of(features, labels, 260)
    some = Logistic(basis, data, division=division)
    everything = Logistic(basis, data)
    best, _ = follow_path(some, [1.0])
    foreseen = with_all_samples(best, some, everything)
    problem = Problems(np.array([1.0]), np.array([-1]))
    passes = [
        everything.solve(problem, start=each.variables, stopping=Stopping(1e-9, max_iterations=0))
        for each in (best, foreseen)
    ]
    optimum = fit_linear(features, labels, 260, strengths=[1.0]).objective
    before, after = (float(each.values[0]) - optimum for each in passes)
    assert after < before / 2
