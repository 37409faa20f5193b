"""Nearest centroid: the largest cosine wins, and a sample does not vouch for itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solving import fit_centroid, samples_of

from featx.heads.head import apply_layers
from featx.heads.samples.folds import divide


def cosines(
    features: np.ndarray, labels: np.ndarray, at: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    """Cosine to each class's centroid, by the words of the documentation."""
    unit = features - mean
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centroids = np.stack([unit[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    here = at - mean
    return here @ centroids.T / np.linalg.norm(here, axis=1, keepdims=True)


@given(num_features=st.integers(2, 20), num_classes=st.integers(2, 5), seed=st.integers(0, 2**32))
def test_logits_are_cosines_times_lengths(num_features, num_classes, seed):
    features, labels = samples_of(30, num_features, num_classes, seed)
    logits = apply_layers([fit_centroid(features, labels, num_classes).layer], features)
    mean = features.mean(axis=0, dtype=np.float64)
    expected = cosines(features.astype(np.float64), labels, features.astype(np.float64), mean)
    lengths = np.linalg.norm(features - mean, axis=1)
    assert np.allclose(logits, expected * (lengths / lengths.mean())[:, None], atol=1e-4)


@given(seed=st.integers(0, 2**32), weighted=st.booleans())
def test_a_sample_is_left_out_of_its_own_centroid(seed, weighted):
    features, labels = samples_of(15, 6, 3, seed)
    repeats = np.random.default_rng(seed).integers(1, 4, 15) if weighted else np.ones(15, int)
    fit = fit_centroid(features, labels, 3, weights=repeats.astype(float))
    mean = features.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(features - mean, axis=1)
    for row in range(15):
        rest = np.repeat(np.delete(np.arange(15), row), np.delete(repeats, row))
        expected = cosines(
            features[rest].astype(np.float64), labels[rest], features[row : row + 1], mean
        )
        found = fit.held_out.logits[row] / lengths[row] * lengths.mean()
        assert np.allclose(found, expected[0], atol=1e-4)


def test_a_class_without_samples_is_never_predicted():
    features, labels = samples_of(40, 5, 2)
    fit = fit_centroid(features, 2 * labels, 4)
    assert set(apply_layers([fit.layer], features).argmax(axis=1)) <= {0, 2}
    assert set(fit.held_out.logits.argmax(axis=1)) <= {0, 2}


@pytest.mark.parametrize(("counts", "left_out"), [([1, 1], 0), ([1, 4], 0), ([1, 3, 2], 5)])
def test_the_only_sample_of_a_class_is_not_left_out(counts, left_out):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    fit = fit_centroid(features, labels, len(counts))
    if not left_out:
        assert fit.held_out is None
        return
    assert fit.held_out is not None
    assert (fit.held_out.num_folds, len(fit.held_out.labels)) == (0, left_out)
    assert np.isfinite(fit.held_out.logits).all()
    assert (fit.held_out.labels > 0).all()


def test_groups_are_left_out_in_folds():
    features, labels = samples_of(40, 6, 3)
    groups = np.arange(40) // 4
    fit = fit_centroid(features, labels, 3, groups=groups)
    division = divide(labels, groups=groups)
    assert division is not None
    assert fit.held_out is not None
    assert fit.held_out.num_folds == len(division.held_out_folds)
    mean = features.mean(axis=0, dtype=np.float64)
    usual = np.linalg.norm(features - mean, axis=1)
    expected = []
    for fold in division.held_out_folds:
        rest, out = division.fold != fold, division.fold == fold
        own = cosines(features[rest].astype(np.float64), labels[rest], features[out], mean)
        expected.append(own * usual[out, None] / usual[rest].mean())
    assert np.allclose(fit.held_out.logits, np.concatenate(expected), atol=1e-4)


def test_constant_features_are_finite():
    fit = fit_centroid(np.full((6, 3), 2, np.float32), np.arange(6) % 2, 2)
    assert np.isfinite(fit.layer[0]).all()
    assert np.isfinite(fit.held_out.logits).all()


def test_deterministic_and_float32():
    first, second = (fit_centroid(*samples_of(60, 8, 3), 3) for _ in range(2))
    assert first.layer[0].tobytes() == second.layer[0].tobytes()
    assert [part.dtype for part in first.layer] == [np.float32, np.float32]
