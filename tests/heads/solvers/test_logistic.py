"""The objective: its gradient is one, folds are left out, and blocks do not show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from solving import data_of, eigenbasis_of

import featx.heads.solvers.logistic
from featx.heads.samples.folds import Division, stratified_folds
from featx.heads.solvers.lbfgs import Stopping
from featx.heads.solvers.logistic import Logistic, Problems


def samples_of(
    num_samples: int, num_features: int, num_classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % num_classes
    features = random.normal(size=(num_samples, num_features)) + labels[:, None] % 2
    return features.astype(np.float32), labels


def values_at(
    samples: Logistic, problems: Problems, variables: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Objective and largest gradient at some variables: those of a search without a step."""
    found = samples.solve(problems, start=variables, stopping=Stopping(0, max_iterations=0))
    return found.values, found.gradient_norms


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(40, 5, 3), (12, 20, 2), (30, 4, 5)]),
    strength=st.sampled_from([1e-3, 0.1, 10.0]),
    seed=st.integers(0, 2**32),
)
def test_the_objective_is_the_documented_one(shape, strength, seed):
    features, labels = samples_of(*shape, seed)
    random = np.random.default_rng(seed)
    weights = random.uniform(0.1, 2, len(labels))
    basis = eigenbasis_of(features)
    samples = Logistic(basis, data_of(features, labels, shape[2], weights=weights))
    variables = random.normal(size=(1, samples.num_variables))
    found, _ = values_at(samples, Problems(np.array([strength]), np.array([-1])), variables)
    shaped = variables.reshape(shape[2], -1)
    logits = basis.samples @ basis.to_samples(shaped[:, :-1]).T + shaped[:, -1]
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    expected = np.average(losses, weights=weights)
    expected += (shaped[:, :-1] ** 2).sum() / (2 * strength * weights.sum())
    assert found[0] == pytest.approx(expected)


def test_the_gradient_is_that_of_the_objective():
    features, labels = samples_of(40, 4, 3)
    samples = Logistic(eigenbasis_of(features), data_of(features, labels, 3, weights=np.ones(40)))
    problems = Problems(np.array([0.3]), np.array([-1]))
    variables = np.random.default_rng(0).normal(size=(1, samples.num_variables))
    slopes = []
    for i in range(samples.num_variables):
        step = np.zeros_like(variables)
        step[0, i] = 1e-5
        ahead, behind = (values_at(samples, problems, variables + s)[0] for s in (step, -step))
        slopes.append((ahead[0] - behind[0]) / 2e-5)
    _, largest = values_at(samples, problems, variables)
    assert largest[0] == pytest.approx(np.abs(slopes).max(), rel=1e-6)


def test_problems_side_by_side_are_the_problems_alone():
    features, labels = samples_of(60, 5, 3)
    division = Division(stratified_folds(labels, 3), np.arange(3))
    samples = Logistic(
        eigenbasis_of(features),
        data_of(features, labels, 3, weights=np.ones(60)),
        division=division,
    )
    strengths, left_out = np.array([0.01, 0.1, 1.0, 0.1]), np.array([0, 1, 2, -1])
    variables = np.random.default_rng(0).normal(size=(4, samples.num_variables))
    together = values_at(samples, Problems(strengths, left_out), variables)[0]
    for i in range(4):
        alone = Problems(strengths[i : i + 1], left_out[i : i + 1])
        assert values_at(samples, alone, variables[i : i + 1])[0] == pytest.approx(together[i])


def test_a_fold_that_is_left_out_does_not_count():
    features, labels = samples_of(60, 5, 3)
    fold = stratified_folds(labels, 3)
    basis = eigenbasis_of(features)
    problems = Problems(np.array([0.1]), np.array([1]))
    variables = np.random.default_rng(0).normal(size=(1, 3 * 6))
    found = []
    for shift in (0, 1):
        changed = np.where(fold == 1, (labels + shift) % 3, labels)
        division = Division(fold, np.arange(3))
        samples = Logistic(
            basis, data_of(features, changed, 3, weights=np.ones(60)), division=division
        )
        found.append(values_at(samples, problems, variables)[0][0])
    assert found[0] == found[1]


def test_a_hold_out_is_a_fold_that_is_left_out():
    features, labels = samples_of(60, 5, 3)
    fold = stratified_folds(labels, 3)
    basis = eigenbasis_of(features)
    problems = Problems(np.array([0.1]), np.array([0]))
    variables = np.random.default_rng(0).normal(size=(1, 3 * 6))
    several = Division(fold, np.arange(3))
    single = Division(fold, np.array([0]))
    values = [
        values_at(
            Logistic(basis, data_of(features, labels, 3, weights=np.ones(60)), division=division),
            problems,
            variables,
        )[0]
        for division in (several, single)
    ]
    assert values[0] == pytest.approx(values[1])
    samples = Logistic(
        basis, data_of(features, labels, 3, weights=np.arange(60.0)), division=single
    )
    held_out, weights = samples.held_out(variables)
    assert np.array_equal(held_out.labels, labels[fold == 0])
    assert np.array_equal(weights, np.flatnonzero(fold == 0))


@pytest.mark.parametrize("rows", [128, 129, 1000])
def test_the_size_of_a_block_does_not_show(monkeypatch, rows):
    features, labels = samples_of(700, 5, 3)
    samples = Logistic(eigenbasis_of(features), data_of(features, labels, 3, weights=np.ones(700)))
    problems = Problems(np.array([0.1]), np.array([-1]))
    variables = np.random.default_rng(0).normal(size=(1, samples.num_variables))
    whole = values_at(samples, problems, variables)
    monkeypatch.setattr(featx.heads.solvers.logistic, "_BLOCK_ROWS", rows)
    assert values_at(samples, problems, variables)[0] == pytest.approx(whole[0])
    assert values_at(samples, problems, variables)[1] == pytest.approx(whole[1])


def test_known_curvature_with_another_penalty():
    """The penalty's own curvature is exchanged; that of the bias stays."""
    features, labels = samples_of(60, 5, 3)
    samples = Logistic(eigenbasis_of(features), data_of(features, labels, 3, weights=np.ones(60)))
    start = np.zeros((1, samples.num_variables))
    one, other = (Problems(np.array([c]), np.array([-1])) for c in (0.1, 0.7))
    found = samples.solve(one, start=start, stopping=Stopping(1e-6))
    change = samples.penalties(other) - samples.penalties(one)
    (adapted,) = samples.with_penalty(found.curvature, change)
    for (s, y), (same, changed) in zip(found.curvature[0], adapted, strict=True):
        assert same is s
        difference = (changed - y).reshape(3, -1)
        assert np.allclose(difference[:, :-1], change[0] * s.reshape(3, -1)[:, :-1])
        assert np.array_equal(difference[:, -1], np.zeros(3))


def test_huge_logits_do_not_overflow():
    features, labels = samples_of(20, 3, 2)
    samples = Logistic(eigenbasis_of(features), data_of(features, labels, 2, weights=np.ones(20)))
    variables = np.full((1, samples.num_variables), 1e5)
    variables[:, :4] *= -1
    value, gradient = values_at(samples, Problems(np.array([1.0]), np.array([-1])), variables)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
