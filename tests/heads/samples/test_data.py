"""Training data: statistics of one pass, and samples in random order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import ArrayBlocks, data_of

from featx.heads.samples.data import (
    pools_of,
    read_first_pass,
    shuffled_batches,
)
from featx.heads.samples.statistics import standardisation


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_a_first_pass_has_the_moments_and_the_subsample(n, piece_rows, seed):
    random = np.random.default_rng(seed)
    features = (random.normal(size=(n, 5)) * [1, 100, 1e-3, 0, 5] + 10).astype(np.float32)
    trained = np.sort(random.choice(n, random.integers(1, n + 1), replace=False))
    kept = np.sort(random.choice(len(trained), random.integers(0, len(trained) + 1), replace=False))
    found, bad = read_first_pass(ArrayBlocks(features, piece_rows), trained, kept)
    mean, scale = standardisation(features[trained])
    assert not len(bad)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-9)
    assert np.array_equal(found.features, features[trained[kept]])
    if len(trained) > 20:  # all of them are looked at
        expected = np.cov(features[trained].astype(np.float64), rowvar=False, bias=True)
        np.testing.assert_allclose(found.correlation, expected / np.outer(scale, scale), atol=1e-4)


def test_a_first_pass_finds_what_is_not_finite_in_any_split():
    features = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32)
    features[17, 3], features[401, 0], features[402, 1] = np.nan, np.inf, -np.inf
    _, bad = read_first_pass(ArrayBlocks(features, 64), np.arange(0, 500, 2), np.arange(3))
    assert bad.tolist() == [17, 401, 402]


@given(st.integers(1, 500), st.integers(1, 70), st.integers(1, 600), st.integers(0, 9))
def test_pools_have_every_sample_once(n, piece_rows, pool_rows, seed):
    features = np.arange(n, dtype=np.float32)[:, None] * [1, 2]
    random = np.random.default_rng(seed)
    seen, sizes = [], []
    for numbers, values in pools_of(ArrayBlocks(features, piece_rows), pool_rows, random):
        assert np.array_equal(values, features[numbers])
        seen += numbers.tolist()
        sizes.append(len(numbers))
    assert sorted(seen) == list(range(n))
    assert all(size == min(pool_rows, n) for size in sizes[:-1])


def test_a_pool_holds_as_many_whole_batches_as_fit() -> None:
    features = np.arange(40, dtype=np.float32)[:, None] * [1, 2]
    order = np.random.default_rng(3).permutation(40)  # of pieces of a row
    data = data_of(
        *(ArrayBlocks(features, 1), np.zeros(40, np.int64), 1), pool_bytes=4 * 2 * 4 * 3 + 5
    )
    batches = shuffled_batches(data, 4, np.random.default_rng(3))
    numbers = np.concatenate([rows for rows, _ in batches])
    assert set(numbers[:12]) == set(order[:12])
    assert set(numbers[:4]) != set(order[:4])


def test_selected_samples_keep_what_belongs_to_them() -> None:
    features = np.arange(6, dtype=np.float32)[:, None]
    groups = np.array([-1, 0, 0, -1, -1, 0])
    data = data_of(features, np.arange(6) % 2, 2, weights=np.arange(1.0, 7), groups=groups)
    some = data.select(np.array([1, 3]))
    assert some.array[:, 0].tolist() == [1, 3]
    assert some.targets.tolist() == [1, 1]
    assert some.weights.tolist() == [2, 4]
    assert some.groups.tolist() == [0, -1]
    assert data.select(np.array([0, 3, 4])).groups is None  # without groups: left out one by one
