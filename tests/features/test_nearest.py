"""Rows nearest to some vectors: those of brute force in float64, from memory or from the file."""

from __future__ import annotations

import numpy as np
import pytest
from caches import write_cache
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.features import nearest
from featx.features.blocks import reading_blocks
from featx.features.file import open_features
from featx.features.nearest import RowsInMemory, nearest_rows


def by_hand(features, queries):
    """Return all cosines in float64."""
    mean = features.astype(float).mean(axis=0)
    queries, features = queries - mean, features - mean
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(features, axis=1)
    return queries @ features.T / np.maximum(lengths, 1e-300)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 45),
    st.sampled_from([1e-4, 1.0, 1e4]),
    st.integers(0, 2**32 - 1),
)
def test_neighbours_are_those_of_brute_force(count, width, k, spread, seed):
    """A spread far below the mean leaves float32 hardly a digit of what tells rows apart."""
    random = np.random.default_rng(seed)
    features = (1000 + spread * random.normal(size=(count, width))).astype(np.float32)
    queries = (1000 + spread * random.normal(size=(3, width))).astype(np.float32)
    rows, cosines = nearest_rows(RowsInMemory(features), queries, k)
    expected = by_hand(features, queries)
    assert rows.shape == (3, min(k, count))
    for found, values, own in zip(rows, cosines, expected, strict=True):
        assert len(set(found.tolist())) == len(found)
        assert values == pytest.approx(own[found], abs=1e-7)
        assert values == pytest.approx(np.sort(own)[::-1][: len(found)], abs=1e-7)


def test_rows_that_float32_cannot_tell_apart_are_ordered_as_in_float64():
    """The screen alone mixes them up."""
    random = np.random.default_rng(0)
    features = random.normal(size=(3000, 64)).astype(np.float32)
    one = random.normal(size=64)
    features[500:900] = one + 1e-4 * random.normal(size=(400, 64))
    query = one.astype(np.float32)[None]
    rows, _ = nearest_rows(RowsInMemory(features), query, 30)
    expected = by_hand(features, query)[0]
    assert rows[0].tolist() == np.argsort(-expected, kind="stable")[:30].tolist()
    mean = features.mean(axis=0)
    screened = (features - mean) @ (query[0] - mean)
    screened /= np.linalg.norm(features - mean, axis=1)
    assert rows[0].tolist() != np.argsort(-screened, kind="stable")[:30].tolist()


def test_equal_rows_are_exactly_alike_and_ordered_by_row():
    features = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    features[[40, 20, 7]] = features[3]
    rows, cosines = nearest_rows(RowsInMemory(features), features[[20]], 5)
    assert rows[0, :4].tolist() == [3, 7, 20, 40]
    assert cosines[0, :4].tolist() == [1.0] * 4
    assert cosines.max() == 1.0


def test_neither_blocks_nor_the_file_change_a_bit(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    features = random.normal(3, 1, (700, 24)).astype(np.float32)
    queries = features[[5, 600]]
    rows, cosines = nearest_rows(RowsInMemory(features), queries, 9)
    path = write_cache(tmp_path / "f.h5", features, np.zeros(700), np.zeros(700, np.uint8))
    with reading_blocks(open_features(path, features_later=True)) as blocks:
        found = nearest_rows(blocks, queries, 9)
    assert np.array_equal(found[0], rows)
    assert np.array_equal(found[1], cosines)
    for size in (1, 7, 256):
        monkeypatch.setattr(nearest, "_BLOCK", size)
        found = nearest_rows(RowsInMemory(features), queries, 9)
        assert np.array_equal(found[0], rows)
        assert np.array_equal(found[1], cosines)


def test_rows_without_values_change_nothing_for_the_others():
    features = np.random.default_rng(2).normal(size=(60, 5)).astype(np.float32)
    bad = features.copy()
    bad[[4, 30]] = np.array([np.nan, np.inf])[:, None]
    rows, cosines = nearest_rows(RowsInMemory(bad), features[:2], 60)
    others = np.delete(np.arange(60), [4, 30])
    expected = nearest_rows(RowsInMemory(features[others]), features[:2], 60)
    assert np.array_equal(rows, others[expected[0]])
    assert np.array_equal(cosines, expected[1])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_very_large_values_have_neighbours_too(scale):
    """Their squares are nothing, or infinite, in float32."""
    features = (scale * np.random.default_rng(3).normal(size=(80, 6))).astype(np.float32)
    rows, cosines = nearest_rows(RowsInMemory(features), features[:1], 4)
    expected = by_hand(features / scale, features[:1] / scale)[0]
    assert rows[0].tolist() == np.argsort(-expected, kind="stable")[:4].tolist()
    assert cosines[0] == pytest.approx(expected[rows[0]])
