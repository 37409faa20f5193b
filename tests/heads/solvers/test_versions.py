"""Samples in several versions: what they weigh, that they stay together, and what is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.heads.head import Fitted, apply_layers
from featx.heads.samples.data import TrainingData, shuffled_batches, standardisation
from featx.heads.samples.folds import divide
from featx.heads.solvers import centroid, linear, mlp, ridge, sgd
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.solvers.with_sklearn import fit_with_sklearn
from featx.heads.tasks.losses import SIGMOID, SOFTMAX, SQUARED

STRENGTHS = [0.001, 0.1]
MLP = MLPOptions((5,), learning_rate=0.02, max_epochs=4, batch_size=16)
OF_CLASSES: dict[str, Callable[[TrainingData], Fitted]] = {
    "lbfgs": lambda data: linear.fit_linear(data, STRENGTHS),
    "sklearn": lambda data: fit_with_sklearn(data, STRENGTHS),
    "ridge": lambda data: ridge.fit_ridge(data, STRENGTHS),
    "centroid": centroid.fit_centroid,
    "mlp": lambda data: mlp.fit_mlp(data, MLP),
    "sgd": lambda data: sgd.fit_sgd(data, SGDOptions(epochs=3, batch_size=16)),
}
OF_VALUES: dict[str, Callable[[TrainingData], Fitted]] = {
    "tags": lambda data: linear.fit_linear(data, STRENGTHS, loss=SIGMOID),
    "tags-mlp": lambda data: mlp.fit_mlp(data, MLP, loss=SIGMOID),
    "numbers": lambda data: ridge.fit_ridge(data, STRENGTHS),
    "numbers-mlp": lambda data: mlp.fit_mlp(data, MLP, loss=SQUARED),
}
FITS = OF_CLASSES | OF_VALUES


def samples(
    name: str = "lbfgs", *, count: int = 60, width: int = 5, seed: int = 0, groups: bool = False
) -> TrainingData:
    """Return overlapping classes, or tags or numbers that depend on the features; weighted."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, width))
    targets = features[:, :2] + random.normal(size=(count, 2))
    if name in OF_CLASSES:
        targets = np.digitize(targets[:, 0], [-0.7, 0.7])
        targets[:3] = np.arange(3)
    elif name.startswith("tags"):
        targets = (targets > 0).astype(np.uint8)
    together = np.where(np.arange(count) < 30, np.arange(count) // 3, -1) if groups else None
    weights = np.ones(count) if name.startswith("numbers") else random.uniform(0.5, 2, count)
    num_outputs = 3 if name in OF_CLASSES else 2
    return TrainingData(
        (3 * features + 5).astype(np.float32), targets, num_outputs, weights, together
    )


def identical(data: TrainingData, num_views: int) -> TrainingData:
    return data.in_versions(np.tile(data.array, (1 + num_views, 1)))


def varied(data: TrainingData, num_views: int, *, noise: float = 0.5) -> TrainingData:
    random = np.random.default_rng(9)
    features = np.tile(data.array, (1 + num_views, 1))
    features[len(data) :] += noise * random.normal(size=features[len(data) :].shape)
    return data.in_versions(features.astype(np.float32))


@pytest.mark.parametrize("name", FITS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 99), num_views=st.integers(1, 3), groups=st.booleans())
def test_identical_views_change_nothing(name, seed, num_views, groups):
    data = samples(name, seed=seed, groups=groups)
    without, with_views = FITS[name](data), FITS[name](identical(data, num_views))
    features = data.array
    ours, theirs = (apply_layers(each.layers, features) for each in (with_views, without))
    assert np.abs(ours - theirs).max() <= 2e-3 * np.abs(theirs).max()
    assert with_views.choice.get("strength") == without.choice.get("strength")
    if without.held_out is not None:
        assert np.array_equal(with_views.held_out.labels, without.held_out.labels)
        assert with_views.held_out.num_folds == without.held_out.num_folds
        difference = np.abs(with_views.held_out.logits - without.held_out.logits).max()
        assert difference <= 0.02 * np.abs(without.held_out.logits).max()


@pytest.mark.parametrize("name", ["lbfgs", "sklearn", "ridge", "centroid", "tags", "numbers"])
def test_a_single_hold_out_has_the_first_versions_of_some_samples(name, monkeypatch):
    monkeypatch.setattr("featx.heads.samples.folds.HOLDOUT_ABOVE", 50)
    monkeypatch.setattr("featx.heads.tasks.losses.HOLDOUT_ABOVE", 50)
    data = samples(name, groups=True)
    without, with_views = (FITS[name](each).held_out for each in (data, identical(data, 2)))
    assert with_views.num_folds == without.num_folds == 1
    assert np.array_equal(with_views.labels, without.labels)
    assert 5 < len(without.labels) < 20
    assert np.allclose(with_views.logits, without.logits, atol=0.02)


@pytest.mark.parametrize("width", [4, 80])
def test_identical_views_are_standardised_as_one_sample(width):
    features = np.random.default_rng(0).normal(3, 2, (7, width)).astype(np.float32)
    whole = standardisation(features)
    several = standardisation(np.tile(features, (4, 1)), num_versions=4)
    assert np.allclose(whole, several, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), num_views=st.integers(1, 5), groups=st.booleans())
def test_all_versions_of_a_sample_and_its_group_are_in_one_fold(seed, num_views, groups):
    data = varied(samples(seed=seed, groups=groups), num_views)
    division = data.divide(divide, seed=seed)
    by_version = division.fold.reshape(1 + num_views, 60)
    assert (by_version == by_version[0]).all()
    assert not division.held_out[60:].any()
    if groups:
        assert (by_version[0, :30].reshape(10, 3) == by_version[0, :30:3, None]).all()


@pytest.mark.parametrize("name", [*OF_CLASSES, *OF_VALUES])
def test_only_the_first_version_of_held_out_samples_is_scored(name):
    """What the fitted layers give for the first versions, but for what a fold has learnt."""
    data = varied(samples(name), 3)
    held_out = FITS[name](data).held_out
    if name == "sgd":
        assert held_out is None
        return
    assert len(held_out.labels) <= 60
    if name not in ("mlp", "tags-mlp", "numbers-mlp"):
        assert len(held_out.labels) == 60


@pytest.mark.parametrize("name", ["lbfgs", "sklearn", "ridge", "centroid", "mlp"])
def test_labels_at_random_are_guessed_at_chance_whatever_the_views(name):
    random = np.random.default_rng(1)
    data = samples(count=240, width=40)
    data = varied(replace(data, targets=random.integers(0, 3, 240)), 4, noise=0.1)
    held_out = OF_CLASSES[name](data).held_out
    right = (held_out.logits.argmax(axis=1) == held_out.labels).mean()
    assert right < 1 / 3 + 4 * np.sqrt(2 / 9 / len(held_out.labels))


@pytest.mark.parametrize("targets", ["ridge", "numbers"])
def test_ridge_leaves_out_all_versions_of_a_sample(targets):
    data = varied(samples(targets, count=12), 2)
    held_out = ridge.fit_ridge(data, [0.05]).held_out
    mean, scale = data.standardisation()
    fixed = replace(data, features=((data.array - mean) / scale).astype(np.float64))
    for number in range(12):
        others = fixed.select(np.delete(np.arange(12), number))
        x, weights = others.array, others.weights
        y = others.targets if others.targets.ndim == 2 else np.eye(3)[others.targets]
        centre, shares = (np.average(each, axis=0, weights=weights) for each in (x, y))
        square = (x - centre).T @ (weights[:, None] * (x - centre)) + np.eye(5) / 0.05
        weight = np.linalg.solve(square, (x - centre).T @ (weights[:, None] * (y - shares)))
        expected = (fixed.array[number] - centre) @ weight + shares
        place = np.flatnonzero((held_out.labels == data.targets[number]).reshape(12, -1).all(1))
        assert np.abs(held_out.logits[place] - expected).max(axis=1).min() < 1e-6


def test_nearest_centroid_leaves_out_all_versions_of_a_sample():
    data = varied(samples(count=12), 2)
    held_out = centroid.fit_centroid(data).held_out
    x = data.array - data.mean().astype(np.float32)
    directions = (data.weights / np.linalg.norm(x, axis=1))[:, None] * x
    order = np.argsort(data.targets[:12], kind="stable")
    assert sorted(held_out.labels) == sorted(data.targets[:12])
    angles = held_out.logits / np.linalg.norm(x[:12], axis=1)[:, None]
    usual = np.linalg.norm(x, axis=1).mean()
    for number in order:
        others = np.arange(36) % 12 != number
        sums = np.stack([directions[others & (data.targets == k)].sum(axis=0) for k in range(3)])
        cosines = x[number] @ (sums / np.linalg.norm(sums, axis=1)[:, None]).T
        assert np.abs(angles - cosines / np.linalg.norm(x[number]) / usual).max(1).min() < 1e-5


def test_an_epoch_has_each_sample_once_in_one_of_its_versions():
    data = varied(samples(count=50), 3)
    random, plain = np.random.default_rng(4), np.random.default_rng(4)
    orders, drawn = [], []
    for _ in range(2):
        rows, features = zip(*shuffled_batches(data, 8, random), strict=True)
        assert np.array_equal(np.concatenate(features), data.array[np.concatenate(rows)])
        assert [len(each) for each in rows] == [8] * 6 + [2]
        orders.append(np.concatenate(rows) % 50)
        drawn.append(np.concatenate(rows)[np.argsort(orders[-1])] // 50)
        without = [row for row, _ in shuffled_batches(data.first_versions(), 8, plain)]
        assert np.array_equal(orders[-1], np.concatenate(without))
    assert np.bincount(drawn[0]).min() > 5
    assert (drawn[0] != drawn[1]).mean() > 0.5


def test_the_first_versions_are_the_samples_without_views():
    data = samples(groups=True)
    back = varied(data, 3).first_versions()
    assert np.array_equal(back.array, data.array)
    assert np.allclose(back.weights, data.weights)
    assert back.num_versions == 1
    some = varied(data, 3).select(np.array([1, 40]))
    assert (some.num_samples, len(some)) == (2, 8)
    assert np.array_equal(some.array[:2], data.array[[1, 40]])
    assert some.groups.tolist() == [0, -1]


def test_of_some_classes_only_the_first_versions_are_scored():
    from featx.heads.solvers.eigenbasis import build_eigenbasis
    from featx.heads.solvers.logistic import Logistic

    data = varied(samples(), 2)
    division = data.divide(SOFTMAX.divide, seed=0)
    whole = Logistic(build_eigenbasis(data)[0], data, division=division)
    few = whole.of_classes(np.array([0, 2]))
    held_out, _ = few.held_out(np.zeros((5, few.num_variables)))
    assert len(held_out.labels) == np.isin(data.targets[:60], [0, 2]).sum()
