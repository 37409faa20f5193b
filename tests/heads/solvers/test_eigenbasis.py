"""The basis: standardised, uncorrelated, and back to raw features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solving import eigenbasis_of

import featx.heads.solvers.eigenbasis
from featx.heads.head import apply_layers
from featx.heads.samples.statistics import standardisation

SHAPES = [(200, 7), (20, 50), (30, 30), (2, 5), (1, 3)]


def features_of(num_samples: int, num_features: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(num_features, num_features))
    return (random.normal(size=(num_samples, num_features)) @ mixing + 3).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_coordinates_are_uncorrelated_and_have_the_variances(shape):
    basis = eigenbasis_of(features_of(*shape))
    coordinates = basis.samples if basis.rotated else basis.samples @ basis.directions
    covariance = coordinates.T @ coordinates / shape[0]
    assert np.allclose(covariance, np.diag(basis.variances), atol=1e-5)
    unit = basis.directions.T @ basis.directions
    assert np.allclose(unit, np.eye(len(unit)), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double", [True, False])
def test_the_layer_gives_on_raw_features_what_the_weights_give_in_the_basis(
    monkeypatch, shape, double
):
    if not double:
        monkeypatch.setattr(featx.heads.solvers.eigenbasis, "_DOUBLE_UP_TO", 0)
    features = features_of(*shape)
    basis = eigenbasis_of(features)
    random = np.random.default_rng(1)
    weight, bias = random.normal(size=(4, len(basis.variances))), random.normal(size=4)
    expected = basis.samples @ basis.to_samples(weight).T + bias
    found = apply_layers([basis.layer(weight, bias)], features)
    assert np.allclose(found, expected, atol=1e-3)


def test_few_samples_of_many_features_are_few_coordinates():
    basis = eigenbasis_of(features_of(20, 500))
    assert basis.samples.shape == (20, 19)  # one is spent on the mean
    assert basis.rotated


@given(seed=st.integers(0, 2**32))
def test_a_gradient_by_sample_weights_is_one_by_the_basis(seed):
    """The chain rule: <g, to_samples(w)> = <from_samples(g), w>."""
    random = np.random.default_rng(seed)
    basis = eigenbasis_of(features_of(30, 6, seed))
    weight, gradient = random.normal(size=(2, 3, 6))
    one = (gradient * basis.to_samples(weight)).sum()
    other = (basis.from_samples(gradient) * weight).sum()
    assert one == pytest.approx(other)


def test_many_values_are_kept_in_float32(monkeypatch):
    features = features_of(100, 5)
    assert eigenbasis_of(features).samples.dtype == np.float64
    monkeypatch.setattr(featx.heads.solvers.eigenbasis, "_DOUBLE_UP_TO", 499)
    basis = eigenbasis_of(features)
    assert basis.samples.dtype == np.float32
    mean, scale = standardisation(features)
    assert np.allclose(basis.samples, (features - mean) / scale, atol=1e-5)


def test_the_decomposition_is_left_out_where_it_would_cost_too_much(monkeypatch):
    monkeypatch.setattr(featx.heads.solvers.eigenbasis, "MOST_CORRELATED", 5)
    basis = eigenbasis_of(features_of(40, 6))
    assert np.array_equal(basis.directions, np.eye(6))
    assert basis.samples.shape == (40, 6)


def test_constant_and_duplicated_features_are_finite():
    features = features_of(50, 4)
    wide = np.concatenate([features, features, np.full((50, 2), 7, np.float32)], axis=1)
    basis = eigenbasis_of(wide)
    assert np.isfinite(basis.samples).all()
    assert (basis.variances > 0).all()
    assert np.isfinite(basis.directions).all()
