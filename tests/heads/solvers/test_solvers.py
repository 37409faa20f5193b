"""Every solver: what it returns, and in blocks what it returns for arrays."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scores import top1
from solving import (
    ArrayBlocks,
    fit_centroid,
    fit_linear,
    fit_mlp,
    fit_ridge,
    fit_sgd,
    read_once,
)

import featx.heads.solvers.eigenbasis
from featx.heads.head import Fitted, Layer, apply_layers
from featx.heads.samples.data import TrainingData
from featx.heads.samples.selection import choose_held_out, choose_subsample
from featx.heads.solvers import centroid, linear, mlp, ridge, sgd
from featx.heads.solvers.linear import FIXED_STRENGTH
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.solvers.with_sklearn import fit_with_sklearn
from featx.heads.tasks.losses import SIGMOID, SOFTMAX, SQUARED, log_loss

NUM_CLASSES = 4


def samples_of(
    num_samples: int = 2000, num_features: int = 12, *, seed: int = 0, ordered: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping blobs of four classes, the last without samples; one feature is constant."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, NUM_CLASSES - 1, num_samples)
    labels[: NUM_CLASSES - 1] = np.arange(NUM_CLASSES - 1)
    if ordered:
        labels.sort()
    features = random.normal(size=(NUM_CLASSES, num_features))[labels]
    features = features + random.normal(size=features.shape)
    features = features * random.uniform(0.1, 10, num_features) + random.normal(size=num_features)
    features[:, -1] = 7
    return features.astype(np.float32), labels


def weights_for(labels: np.ndarray, *, weighted: bool) -> np.ndarray:
    return np.array([1, 5, 0.3, 1])[labels] if weighted else np.ones(len(labels))


def logits(layer: Layer, features: np.ndarray) -> np.ndarray:
    return apply_layers([layer], features)


def present(said: np.ndarray) -> np.ndarray:
    """Logits of the classes that have samples, centred: what softmax does not see is gone."""
    of_present = said[:, : NUM_CLASSES - 1]
    return of_present - of_present.mean(axis=1, keepdims=True)


def close(ours: np.ndarray, theirs: np.ndarray, within: float) -> bool:
    return float(np.abs(ours - theirs).max()) <= within * float(np.abs(theirs).max())


# --- every solver -------------------------------------------------------------------------------


def samples() -> TrainingData:
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = (3 * random.normal(size=(3, 6))[labels] + random.normal(size=(90, 6))) * 4 + 9
    return TrainingData(features.astype(np.float32), labels, 3, random.uniform(0.5, 2, 90))


HEADS = {
    "lbfgs": lambda s: linear.fit_linear(s, [0.01, 0.1]),
    "sklearn": lambda s: fit_with_sklearn(s, [0.01, 0.1]),
    "ridge": lambda s: ridge.fit_ridge(s, [0.01, 0.1]),
    "centroid": centroid.fit_centroid,
    "sgd": lambda s: sgd.fit_sgd(s, SGDOptions(epochs=15, batch_size=16)),
    "mlp": lambda s: mlp.fit_mlp(s, MLPOptions((8,), learning_rate=0.02, max_epochs=9)),
}


@pytest.mark.parametrize("name", HEADS)
def test_layers_choice_and_what_was_held_out(name):
    data = samples()
    fitted: Fitted = HEADS[name](data)
    logits = apply_layers(fitted.layers, data.features)
    assert logits.shape == (90, 3)
    assert (logits.argmax(axis=1) == data.targets).mean() > 0.8
    assert fitted.choice["solver"] in (name, "adamw")
    assert json.loads(json.dumps(fitted.choice, allow_nan=False)) == fitted.choice
    if name == "sgd":
        assert fitted.held_out is None
    else:
        assert fitted.held_out is not None
        assert fitted.held_out.logits.shape == (len(fitted.held_out.labels), 3)


def test_training_loads_neither_torch_nor_scikit_learn():
    code = "import sys, featx.stages.train; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("fit", [ridge.fit_ridge, centroid.fit_centroid])
def test_of_many_outputs_evenly_spaced_ones_are_kept(fit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(samples()).held_out
    monkeypatch.setattr("featx.heads.samples.folds._MOST_LOGITS", 100)  # of 270
    thinned = fit(samples()).held_out
    assert np.array_equal(thinned.labels, whole.labels[::3])
    assert np.array_equal(thinned.logits, whole.logits[::3])


# --- linear -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("piece_rows", [97, 5000])
def test_the_optimum_is_that_of_arrays(strength, weighted, piece_rows):
    features, labels = samples_of()
    weights = weights_for(labels, weighted=weighted)
    whole = fit_linear(features, labels, NUM_CLASSES, strengths=[strength], weights=weights)
    kept = choose_subsample(labels, 12, NUM_CLASSES, memory=0, seed=0, at_most=500)
    blocked = fit_linear(
        *(ArrayBlocks(features, piece_rows), labels, NUM_CLASSES),
        first_pass=read_once(features, kept, piece_rows),
        strengths=[strength],
        weights=weights,
    )
    assert blocked.objective == pytest.approx(whole.objective, rel=3e-5)
    ours, theirs = (logits(fit.layer, features) for fit in (blocked, whole))
    assert close(present(ours), present(theirs), 5e-3)
    assert not (ours.argmax(axis=1) == NUM_CLASSES - 1).any()
    assert blocked.held_out is None


def test_features_far_from_zero_are_standardised_first(monkeypatch):
    features, labels = samples_of()
    whole = fit_linear(features, labels, NUM_CLASSES, strengths=[0.1])
    kept = np.arange(0, 2000, 4)
    for cancels in (0, 1e9):  # always, never
        monkeypatch.setattr(featx.heads.solvers.eigenbasis, "_LITTLE_CANCELS", cancels)
        found = read_once(features, kept, 300)
        blocked = fit_linear(
            ArrayBlocks(features, 300), labels, NUM_CLASSES, first_pass=found, strengths=[0.1]
        )
        assert blocked.objective == pytest.approx(whole.objective, rel=1e-5)


def test_the_choice_is_that_of_arrays_where_all_samples_are_kept():
    features, labels = samples_of(4000)
    strengths = [1e-6, 1e-3, 1e-2, 10]
    whole = fit_linear(features, labels, NUM_CLASSES, strengths=strengths)
    found = read_once(features, np.arange(4000), 500)
    blocked = fit_linear(
        ArrayBlocks(features, 500), labels, NUM_CLASSES, first_pass=found, strengths=strengths
    )
    assert blocked.strength == whole.strength
    assert blocked.objective == pytest.approx(whole.objective, rel=1e-5)
    for ours, theirs in zip(blocked.path, whole.path, strict=True):
        assert ours.log_loss == pytest.approx(theirs.log_loss, abs=0.05)  # a fold, and five


def test_what_is_held_out_was_not_trained_on():
    """With labels that mean nothing and weak regularisation, seen samples look better."""
    random = np.random.default_rng(5)
    features = random.normal(size=(600, 100)).astype(np.float32)
    labels = random.integers(0, 3, 600)
    found = read_once(features, np.arange(600), 100)
    fit = fit_linear(
        ArrayBlocks(features, 100), labels, 3, first_pass=found, strengths=[10.0], hold_out=True
    )
    assert fit.held_out is not None
    seen = log_loss(logits(fit.layer, features), labels)
    assert log_loss(fit.held_out.logits, fit.held_out.labels) > 1.5 * seen


def test_a_class_that_is_all_held_out():
    features, labels = samples_of(600)
    labels[labels == 2] = 1
    labels[7] = 2  # one sample
    found = read_once(features, np.arange(600), 100)
    fit = fit_linear(
        ArrayBlocks(features, 100), labels, NUM_CLASSES, first_pass=found, strengths=[1e-3, 1e-2]
    )
    assert fit.held_out is not None
    assert np.isfinite(fit.held_out.logits).all()
    assert np.isfinite(fit.layer[0]).all()


def test_many_features_are_solved_without_a_rotation(monkeypatch):
    monkeypatch.setattr("featx.heads.samples.statistics.MOST_CORRELATED", 8)
    features, labels = samples_of()
    whole = fit_linear(features, labels, NUM_CLASSES, strengths=[0.01])
    found = read_once(features, np.arange(500), 300)
    assert not found.correlation.size
    blocked = fit_linear(
        ArrayBlocks(features, 300), labels, NUM_CLASSES, first_pass=found, strengths=[0.01]
    )
    assert blocked.objective == pytest.approx(whole.objective, rel=1e-5)


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("piece_rows", [97, 5000])
def test_ridge_is_that_of_arrays(weighted, piece_rows):
    features, labels = samples_of()
    weights = weights_for(labels, weighted=weighted)
    kept = np.arange(0, 2000, 3)
    found = read_once(features, kept, piece_rows)
    strengths = [1e-6, 1e-4, 1e-2, 1]
    whole = fit_ridge(features, labels, NUM_CLASSES, strengths=strengths, weights=weights)
    blocked = fit_ridge(
        *(ArrayBlocks(features, piece_rows), labels, NUM_CLASSES),
        first_pass=found,
        strengths=strengths,
        weights=weights,
    )
    assert blocked.strength == whole.strength
    for ours, theirs in zip(blocked.path, whole.path, strict=True):
        assert ours.error == pytest.approx(theirs.error, rel=1e-5)
        assert ours.top1 == pytest.approx(theirs.top1, abs=1.1 / len(labels))
    assert close(blocked.layer[0], whole.layer[0], 1e-4)
    assert close(blocked.held_out.logits[:, :3], whole.held_out.logits[kept][:, :3], 1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("piece_rows", [97, 5000])
def test_centroids_are_those_of_arrays(weighted, piece_rows):
    features, labels = samples_of()
    weights = weights_for(labels, weighted=weighted)
    kept = np.arange(0, 2000, 3)
    whole = fit_centroid(features, labels, NUM_CLASSES, weights=weights)
    blocked = fit_centroid(
        *(ArrayBlocks(features, piece_rows), labels, NUM_CLASSES),
        first_pass=read_once(features, kept, piece_rows),
        weights=weights,
    )
    for ours, theirs in zip(blocked.layer, whole.layer, strict=True):
        assert close(ours, theirs, 1e-6)
    assert close(blocked.held_out.logits[:, :3], whole.held_out.logits[kept][:, :3], 1e-5)


# --- lone samples and groups --------------------------------------------------------------------


def grouped(num_samples: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples of three classes and a stray one, in groups of five; some are in none."""
    features, labels = samples_of(num_samples)
    groups = np.where(np.arange(num_samples) % 4 == 0, -1, np.arange(num_samples) // 5)
    return features, np.append(labels[:-1], NUM_CLASSES), groups


@pytest.mark.parametrize("in_groups", [False, True])
@pytest.mark.parametrize("solver", ["ridge", "centroid"])
def test_the_same_samples_are_left_out_as_of_arrays(solver, in_groups):
    features, labels, groups = grouped()
    given_ = {"groups": groups if in_groups else None}
    fit = {"ridge": fit_ridge, "centroid": fit_centroid}[solver]
    whole = fit(features, labels, NUM_CLASSES + 1, **given_)
    found = read_once(features, np.arange(600), 70)
    blocked = fit(ArrayBlocks(features, 70), labels, NUM_CLASSES + 1, first_pass=found, **given_)
    ours, theirs = (each.held_out for each in (blocked, whole))
    assert ours.num_folds == theirs.num_folds == (5 if in_groups else 0)
    assert NUM_CLASSES not in ours.labels
    assert len(ours.labels) == (596 if in_groups else 599)  # the group of the stray one, too
    assert np.array_equal(ours.labels, theirs.labels)
    assert close(ours.logits, theirs.logits, 1e-4)
    assert close(blocked.layer[0], whole.layer[0], 1e-4)
    if solver == "ridge":
        assert blocked.strength == whole.strength
        assert [p.top1 for p in blocked.path] == pytest.approx([p.top1 for p in whole.path])


def test_strengths_are_chosen_without_the_only_sample_and_by_whole_groups():
    features, labels, groups = grouped()
    kept = np.sort(np.random.default_rng(0).permutation(599)[:300])
    fit = fit_linear(
        *(ArrayBlocks(features, 70), labels, NUM_CLASSES + 1),
        first_pass=read_once(features, kept, 70),
        groups=groups,
    )
    assert fit.held_out is not None
    inner = SOFTMAX.hold_out(labels[kept], 5, groups=groups[kept], seed=0)
    assert np.array_equal(fit.held_out.labels, labels[kept][inner])
    out = np.isin(groups, groups[kept][inner]) & (groups >= 0)
    out[kept[inner]] = True  # those of the same groups that were not kept are not trained on either
    assert out.sum() > inner.sum() + 10
    alone = np.isin(np.arange(len(out)), kept[inner])
    distances = []
    for rows in (~out, ~alone):
        rest = fit_linear(features[rows], labels[rows], NUM_CLASSES + 1, strengths=[fit.strength])
        expected = logits(rest.layer, features[kept][inner])
        distances.append(np.abs(present(fit.held_out.logits) - present(expected)).max())
    assert distances[0] < distances[1] / 5


def test_with_nothing_to_hold_out_heads_in_blocks_have_fixed_settings():
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels, rows = np.arange(30), ArrayBlocks(features, 7)
    found = read_once(features, np.arange(30), 7)
    for fit in (fit_linear, fit_ridge):
        head = fit(rows, labels, 30, first_pass=found)
        assert (head.strength, head.path, head.held_out) == (FIXED_STRENGTH, (), None)
    assert fit_centroid(rows, labels, 30, first_pass=found).held_out is None
    mlp = fit_mlp(
        *(rows, labels, 30, MLPOptions(max_epochs=3)),
        first_pass=read_once(features, np.arange(0), 7),
        pool_bytes=4 * 4 * 128,
    )
    assert (mlp.held_out, mlp.num_epochs) == (None, 3)


# --- in random order ----------------------------------------------------------------------------


def accuracy(layers, features: np.ndarray, labels: np.ndarray) -> float:
    return top1(apply_layers(layers, features), labels)


@pytest.mark.parametrize("ordered", [False, True])
def test_sgd_learns_as_well(ordered):
    features, labels = samples_of(ordered=ordered)
    features /= features.std(axis=0) + 1e-6
    features[:, -1] = 1
    options = SGDOptions(learning_rate=0.01, epochs=10, batch_size=32)
    whole = fit_sgd(features, labels, NUM_CLASSES, options).layer
    pool_bytes = 4 * 12 * 32 * 20
    layer = fit_sgd(
        ArrayBlocks(features, 10), labels, NUM_CLASSES, options, pool_bytes=pool_bytes
    ).layer
    ours, theirs = accuracy([layer], features, labels), accuracy([whole], features, labels)
    assert theirs > 0.75
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("ordered", [False, True])
def test_an_mlp_learns_as_well(ordered):
    features, labels = samples_of(ordered=ordered)
    options = MLPOptions(hidden=(16,), max_epochs=8, learning_rate=0.01)
    whole = fit_mlp(features, labels, NUM_CLASSES, options)
    kept = choose_held_out(labels, 12, NUM_CLASSES, loss=SOFTMAX, memory=10**6, seed=0)
    blocked = fit_mlp(
        *(ArrayBlocks(features, 10), labels, NUM_CLASSES, options),
        first_pass=read_once(features, kept, 100),
        pool_bytes=4 * 12 * 128 * 5,
    )
    theirs = accuracy(whole.layers, features, labels)
    assert theirs > 0.75
    assert accuracy(blocked.layers, features, labels) == pytest.approx(theirs, abs=0.02)
    assert len(blocked.held_out.labels) == len(kept)


# --- tags and numbers ---------------------------------------------------------------------------


def tagged(num_samples: int = 2000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping tags, from one in two to one in forty; features far from zero."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(num_samples, 12))
    scores = features @ random.normal(size=(12, 4)) + 2 * random.normal(size=(num_samples, 4))
    ranks = scores.argsort(axis=0).argsort(axis=0) / num_samples
    tags = ranks > [0.5, 0.8, 0.3, 0.975]
    features = features * random.uniform(0.1, 10, 12) + 30 * random.normal(size=12)
    return features.astype(np.float32), tags.astype(np.uint8)


def numbered(num_samples: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers that depend on the features, neither centred nor scaled."""
    features, _ = samples_of(num_samples)
    random = np.random.default_rng(1)
    numbers = features @ random.normal(size=(12, 2)) + random.normal(size=(num_samples, 2))
    return features, numbers * [1, 50] + [3, -100]


@pytest.mark.parametrize("strength", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("piece_rows", [97, 5000])
def test_the_optimum_of_tags_is_that_of_arrays(strength, piece_rows):
    features, tags = tagged()
    whole = fit_linear(features, tags, 4, strengths=[strength], loss=SIGMOID)
    kept = choose_subsample(tags, 12, 4, memory=0, seed=0, at_most=500)
    found = read_once(features, kept, piece_rows)
    rows = ArrayBlocks(features, piece_rows)
    alone = fit_linear(rows, tags, 4, first_pass=found, strengths=[strength], loss=SIGMOID)
    with_held_out = fit_linear(
        rows, tags, 4, first_pass=found, strengths=[strength], loss=SIGMOID, hold_out=True
    )
    for blocked in (alone, with_held_out):
        assert blocked.objective == pytest.approx(whole.objective, rel=1e-5)
        assert close(logits(blocked.layer, features), logits(whole.layer, features), 5e-3)
    assert alone.held_out is None
    assert with_held_out.held_out is not None
    assert with_held_out.held_out.labels.shape == with_held_out.held_out.logits.shape
    assert 80 < len(with_held_out.held_out.labels) < 120  # a fifth of those kept


def test_the_strength_for_tags_is_that_of_arrays_where_all_are_kept():
    features, tags = tagged()
    strengths = [1e-6, 1e-3, 1e-2, 10]
    whole = fit_linear(features, tags, 4, strengths=strengths, loss=SIGMOID)
    blocked = fit_linear(
        *(ArrayBlocks(features, 500), tags, 4),
        first_pass=read_once(features, np.arange(2000), 500),
        strengths=strengths,
        loss=SIGMOID,
    )
    assert blocked.strength == whole.strength
    assert [point.top1 for point in blocked.path] == [None] * 4


def test_what_is_held_out_of_tags_was_not_trained_on():
    """With tags that mean nothing and weak regularisation, seen samples look better."""
    random = np.random.default_rng(5)
    features = random.normal(size=(600, 100)).astype(np.float32)
    tags = random.integers(0, 2, (600, 3)).astype(np.uint8)
    found = read_once(features, np.arange(600), 100)
    fit = fit_linear(
        *(ArrayBlocks(features, 100), tags, 3),
        first_pass=found,
        strengths=[10.0],
        hold_out=True,
        loss=SIGMOID,
    )
    assert fit.held_out is not None
    seen = SIGMOID.mean(logits(fit.layer, features), tags)
    assert SIGMOID.mean(fit.held_out.logits, fit.held_out.labels) > 1.3 * seen


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("piece_rows", [97, 5000])
def test_ridge_on_numbers_is_that_of_arrays(weighted, piece_rows):
    features, numbers = numbered()
    weights = np.random.default_rng(2).uniform(0.3, 5, 2000) if weighted else np.ones(2000)
    kept = np.arange(0, 2000, 3)
    strengths = [1e-6, 1e-4, 1e-2, 1]
    whole = fit_ridge(features, numbers, 2, strengths=strengths, weights=weights)
    blocked = fit_ridge(
        *(ArrayBlocks(features, piece_rows), numbers, 2),
        first_pass=read_once(features, kept, piece_rows),
        strengths=strengths,
        weights=weights,
    )
    assert blocked.strength == whole.strength
    for ours, theirs in zip(blocked.path, whole.path, strict=True):
        assert ours.error == pytest.approx(theirs.error, rel=1e-4)
        assert ours.top1 is None
    for ours, theirs in zip(blocked.layer, whole.layer, strict=True):
        assert close(ours, theirs, 1e-4)
    assert close(blocked.held_out.logits, whole.held_out.logits[kept], 1e-4)


@pytest.mark.parametrize("loss", [SIGMOID, SQUARED])
def test_an_mlp_learns_tags_and_numbers_as_well(loss):
    features, targets = tagged() if loss is SIGMOID else numbered()
    if loss is SQUARED:
        targets = (targets - targets.mean(axis=0)) / targets.std(axis=0)
    num_outputs = targets.shape[1]
    options = MLPOptions(hidden=(16,), max_epochs=8, learning_rate=0.01)
    whole = fit_mlp(features, targets, num_outputs, options, loss=loss)
    kept = choose_held_out(targets, 12, num_outputs, loss=loss, memory=10**6, seed=0)
    blocked = fit_mlp(
        ArrayBlocks(features, 10),
        *(targets, num_outputs, options),
        first_pass=read_once(features, kept, 100),
        pool_bytes=4 * 12 * 128 * 5,
        loss=loss,
    )
    constant = np.zeros_like(targets, float)
    ours, theirs, knows_nothing = (
        loss.mean(said, targets)
        for said in (
            apply_layers(blocked.layers, features),
            apply_layers(whole.layers, features),
            constant,
        )
    )
    assert theirs < 0.6 * knows_nothing
    assert ours == pytest.approx(theirs, abs=0.03 * knows_nothing)
    assert np.array_equal(blocked.held_out.labels, targets[kept])
