"""The path of strengths: with many classes, narrowed down on some of them, and the same choice."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from solving import data_of, eigenbasis_of, fit_linear

import featx.heads.solvers.linear
from featx.heads.head import apply_layers
from featx.heads.samples.folds import Division, divide
from featx.heads.solvers.lbfgs import Stopping
from featx.heads.solvers.linear import STRENGTHS, follow_path, with_all_samples
from featx.heads.solvers.logistic import Logistic, Problems


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
