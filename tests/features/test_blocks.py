"""Blocks of a feature file: its rows, whatever their order and layout; damage is noticed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from feature_files import flip, write_features

import featx.features.blocks
import featx.features.columns
from featx.errors import ArtifactInvalid, ArtifactMissing
from featx.features.blocks import FeatureRows, reading_blocks
from featx.features.file import open_features

NUM_ROWS, NUM_FEATURES = 1000, 7


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 36 rows, blocks of three chunks."""
    monkeypatch.setattr(featx.features.columns, "_CHUNK_BYTES", 1024)
    monkeypatch.setattr(featx.features.blocks, "_BLOCK_BYTES", 3 * 36 * NUM_FEATURES * 4)


@pytest.fixture
def values() -> np.ndarray:
    values = np.random.default_rng(3).normal(size=(NUM_ROWS, NUM_FEATURES))
    return values.astype(np.float16).astype(np.float32)


@pytest.fixture(params=["float32", "float16"])
def path(request, tmp_path: Path, values: np.ndarray) -> Path:
    path = tmp_path / "features.h5"
    write_features(path, values, dtype=request.param)
    return path


def put_together(rows: FeatureRows, order: np.ndarray | None = None) -> np.ndarray:
    everything = np.full(rows.shape, np.nan, np.float32)
    for where, values in rows.blocks(order):
        assert np.isnan(everything[where]).all(), "a row came twice"
        everything[where] = values
        values[:] = -1  # they are the caller's
    return everything


def test_all_rows_come_once_in_their_places(path, values):
    with reading_blocks(open_features(path)) as every:
        assert every.shape == values.shape
        for _ in range(3):
            assert np.array_equal(put_together(every), values)
        order = np.random.default_rng(0).permutation(every.num_pieces)
        assert np.array_equal(put_together(every, order), values)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_some_rows_come_like_all(path, values, share):
    rows = np.flatnonzero(np.random.default_rng(1).random(NUM_ROWS) < share)
    with reading_blocks(open_features(path)) as every:
        some = every.only(rows)
        assert np.array_equal(put_together(some), values[rows])
        order = np.random.default_rng(0).permutation(some.num_pieces)
        assert np.array_equal(put_together(some, order), values[rows])
        again = some.only(np.arange(0, len(rows), 3))
        assert np.array_equal(put_together(again), values[rows[::3]])


def test_pieces_without_a_row_are_not_read(path):
    with h5py.File(path) as file:
        column = file["features"]
        chunk_bytes = column.chunks[0] * NUM_FEATURES * column.dtype.itemsize
    with reading_blocks(open_features(path)) as every:
        put_together(every)
        before = every.bytes_read
        put_together(every.only(np.array([5, 6])))
        assert every.bytes_read - before == chunk_bytes


def test_leaving_half_way_leaves_nothing_running(path, values):
    with reading_blocks(open_features(path)) as every:
        for _ in range(5):
            next(every.blocks())
        assert np.array_equal(put_together(every), values)


def test_another_layout_is_read_by_hdf5(path, values):
    with h5py.File(path, "r+") as file:
        column = file["features"]
        kept, dtype = column[:], column.dtype
        del file["features"]
        file.create_dataset("features", data=kept, dtype=dtype, chunks=(100, 3))
    with reading_blocks(open_features(path)) as every:
        assert np.array_equal(put_together(every), values)


@pytest.fixture
def place(path: Path) -> int:
    """Where a byte of the features lies in the file."""
    with h5py.File(path) as file:
        return int(file["features"].id.get_chunk_info(5).byte_offset + 3)


def test_damage_from_before_shows_in_the_first_pass(path, place):
    cache = open_features(path, features_later=True)
    flip(path, place)
    with reading_blocks(cache) as every, pytest.raises(ArtifactInvalid, match="sha256"):
        put_together(every)
    with pytest.raises(ArtifactInvalid, match=r"sha256|damaged"):
        _ = cache.features


def test_damage_in_the_middle_shows_in_the_next_pass(path, place):
    with reading_blocks(open_features(path, features_later=True)) as every:
        put_together(every)
        flip(path, place)
        with pytest.raises(ArtifactInvalid, match="changed or damaged while it was read"):
            put_together(every)


def test_a_cut_file_in_the_middle(path, place):
    with reading_blocks(open_features(path)) as every:
        put_together(every)
        with path.open("r+b") as file:
            file.truncate(place)
        with pytest.raises(ArtifactInvalid, match="replaced or removed"):
            put_together(every)


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_another_file_in_its_place(path, tmp_path, change):
    with reading_blocks(open_features(path)) as every:
        put_together(every)
        path.unlink()
        if change == "replace":
            write_features(path, np.ones((NUM_ROWS, NUM_FEATURES), np.float32))
        with pytest.raises(ArtifactInvalid, match="replaced or removed"):
            put_together(every)


def test_another_file_since_it_was_opened(path):
    cache = open_features(path)
    write_features(path, np.ones((NUM_ROWS, NUM_FEATURES), np.float32), overwrite=True)
    with pytest.raises(ArtifactInvalid, match="replaced"), reading_blocks(cache):
        pass
    path.unlink()
    with pytest.raises(ArtifactMissing), reading_blocks(cache):
        pass


def test_checking_later_reads_the_same(path, values):
    assert np.array_equal(open_features(path, features_later=True).features, values)
