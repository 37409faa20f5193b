"""Nearest rows: those of brute force, whatever the blocks; bad rows leave the others alone."""

from __future__ import annotations

import subprocess
import sys

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


def test_no_row_is_found_twice_or_its_own_where_products_are_rounded_otherwise(monkeypatch):
    units = noise(55, 2)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    exact = nearest_neighbours(units, 1)
    known = search._least_of_some
    monkeypatch.setattr(search, "_least_of_some", lambda *some: known(*some) + 2 * search._ROUNDING)
    found = nearest_neighbours(units, 1, block=1)
    assert np.array_equal(found.rows, exact.rows)
    monkeypatch.setattr(search, "_least_of_some", lambda *_: np.ones(55, np.float32))
    assert (nearest_neighbours(units, 5).rows == -1).all()


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


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss")


def test_an_index_finds_what_exact_search_does_and_says_how_much(faiss, monkeypatch):
    random = np.random.default_rng(5)
    centres = 3 * random.normal(size=(30, 16))
    features = random.normal(size=(3000, 16)) + centres[random.integers(0, 30, 3000)]
    features[::7] = features[1::7][: len(features[::7])]  # and copies
    units = whitened(features.astype(np.float32))
    exact = nearest_neighbours(units, 4)
    monkeypatch.setattr(search, "EXACT_UP_TO", 1000)
    found = nearest_neighbours(units, 4)
    shares = [len(np.intersect1d(*each)) / 4 for each in zip(found.rows, exact.rows, strict=True)]
    assert np.mean(shares) >= 0.98
    assert (found.rows != np.arange(3000)[:, None]).all()
    assert "by faiss, which finds" in found.note
    measured = float(found.note.split("which finds ")[1].split("%")[0])
    assert 99 <= measured <= 100
    assert not exact.note


def test_an_index_that_misses_too_much_is_not_used(faiss, monkeypatch):
    """Noise has no lists: whichever of them are looked at, the nearest are in others."""
    units = whitened(noise(8000, 48))
    exact = nearest_neighbours(units, 4)
    monkeypatch.setattr(search, "EXACT_UP_TO", 1000)
    found = nearest_neighbours(units, 4)
    assert "faiss finds only" in found.note
    assert np.array_equal(found.rows, exact.rows)
    assert np.array_equal(found.cosines, exact.cosines)


def test_rows_that_an_index_does_not_find_are_none():
    found = search._without_own(np.array([[4, 0, 7], [-1, -1, -1], [2, -1, -1]]), np.arange(3), 2)
    assert found.tolist() == [[4, 7], [-1, -1], [-1, -1]]


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


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_rows():
    """All products at once would be 10 GiB."""
    code = (
        "import resource, numpy as np\n"
        "from featx.features.search import nearest_neighbours, whitened\n"
        "rows = np.random.default_rng(0).normal(size=(50_000, 48)).astype(np.float32)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (rows.nbytes + 2**30,) * 2)\n"
        "print(nearest_neighbours(whitened(rows), 8).rows.shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "(50000, 8)", run.stderr
