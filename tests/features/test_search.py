"""Nearest rows: those of brute force, whatever the blocks; bad rows leave the others alone."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.features import search
from featx.features.search import nearest_neighbours, usable_rows, whitened


def noise(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(2, 12), st.integers(1, 70), st.integers(1, 9))
def test_neighbours_are_those_of_brute_force_whatever_the_blocks(count, width, block, k):
    units = noise(count, width, count)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    found = nearest_neighbours(units, k, block=block)
    cosines = units.astype(float) @ units.T.astype(float)
    np.fill_diagonal(cosines, -np.inf)
    most = min(k, count - 1)
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :most]
    assert np.array_equal(found.rows[:, :most], expected)
    assert (found.rows[:, most:] == -1).all()
    assert np.array_equal(found.rows, nearest_neighbours(units, k).rows)


def test_equal_rows_are_exactly_alike_and_ordered_by_row():
    features = noise(50, 5)
    features[[9, 20, 7]] = features[3]
    found = nearest_neighbours(whitened(features), 5)
    assert found.rows[9, :3].tolist() == [3, 7, 20]
    assert found.cosines[9, :3].tolist() == [1.0, 1.0, 1.0]
    assert np.nanmax(found.cosines) == 1.0


def test_rows_without_values_leave_the_others_the_neighbours_that_they_have():
    features = noise(60, 6)
    bad = features.copy()
    bad[[5, 10, 15]] = np.array([np.nan, np.inf, 0])[:, None]
    rows = usable_rows(bad)
    assert sorted(set(range(60)) - set(rows.tolist())) == [5, 10, 15]
    with_them = rows[nearest_neighbours(whitened(bad[rows]), 3).rows]
    without = np.delete(features, [5, 10, 15], axis=0)
    assert np.array_equal(with_them, rows[nearest_neighbours(whitened(without), 3).rows])


def test_whitening_makes_directions_alike_and_stands_more_features_than_rows():
    features = noise(2000, 4) * [10, 1, 3, 2]
    spread = whitened(features.astype(np.float32)).std(axis=0)
    assert spread.max() / spread.min() < 1.1
    few = whitened(noise(30, 80))
    assert np.isfinite(few).all()
    assert np.allclose(np.linalg.norm(few, axis=1), 1, atol=1e-5)


class Index:
    """An index as faiss makes one, that looks at a part of the rows until it probes them all."""

    def __init__(self):
        self.nprobe, self.asked = 1, []

    def train(self, rows):
        pass

    def add(self, rows):
        self.rows = rows

    def search(self, queries, k):
        self.asked.append(self.nprobe)
        cosines = queries @ self.rows.T
        if self.nprobe < 64:
            cosines[:, ::2] = -1
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, order, axis=1), order


def test_an_index_probes_more_until_it_finds_what_exact_search_does(monkeypatch):
    index, faiss = Index(), ModuleType("faiss")
    faiss.METRIC_INNER_PRODUCT = 0
    faiss.index_factory = lambda width, text, metric: index
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    units = whitened(noise(400, 8))
    exact = nearest_neighbours(units, 4)
    monkeypatch.setattr(search, "EXACT_UP_TO", 100)
    found = nearest_neighbours(units, 4)
    assert np.array_equal(found.rows, exact.rows)
    assert np.array_equal(found.cosines, exact.cosines)
    assert index.asked[0] == 16
    assert index.asked[-1] == 64


def test_without_faiss_many_rows_are_compared_all_the_same(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(search, "EXACT_UP_TO", 10)
    units = whitened(noise(40, 8))
    found = nearest_neighbours(units, 2)
    assert "featx[search]" in caplog.text
    assert (found.rows >= 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_have_no_neighbours(count):
    assert (nearest_neighbours(whitened(noise(count, 3)), 4).rows == -1).all()
