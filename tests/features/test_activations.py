"""Activations at a cut and views: what was appended comes back to the bit, on every path."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from activations import append_batches, cut_header, values_of, write_activations
from feature_files import InThisProcess, make_columns, make_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ArtifactMismatch
from featx.features.blocks import reading_activations, reading_blocks, reading_stored
from featx.features.columns import block_sizes, schema_of
from featx.features.file import open_features, verify_features
from featx.features.journal import Journal
from featx.features.publish import ExistingRows, publish_features, required_bytes
from featx.features.records import RowLayout

LAYOUTS = st.one_of(
    st.builds(
        RowLayout,
        st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple),
        st.sampled_from(["float16", "float32"]),
        st.integers(0, 3),
    ),
    st.builds(lambda n, v: RowLayout((n, n, 3), "uint8", v), st.integers(1, 5), st.integers(0, 3)),
    st.builds(lambda n, v: RowLayout((n,), "float32", v), st.integers(1, 9), st.integers(0, 3)),
)


@settings(max_examples=25, deadline=None)
@given(layout=LAYOUTS, num_rows=st.integers(1, 40), step=st.integers(1, 9), data=st.data())
def test_what_was_appended_comes_back_to_the_bit(tmp_path_factory, layout, num_rows, step, data):
    path = tmp_path_factory.mktemp("cut") / "f.h5"
    splits = np.array(data.draw(st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featx.features.columns._CHUNK_BYTES", data.draw(st.sampled_from([64, 4096])))
        patch.setattr("featx.features.columns._BLOCK_BYTES", data.draw(st.sampled_from([64, 4096])))
        features, views = write_activations(
            path, layout, num_rows, step=step, splits=splits.astype(np.uint8)
        )
    verify_features(path)
    cache = open_features(path, features_later=data.draw(st.booleans()))
    assert (cache.row_shape, cache.dtype, cache.num_views) == (
        layout.shape,
        layout.dtype,
        layout.num_views,
    )
    train = cache.rows("train")
    assert len(views) == len(train)
    rows = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)))
    with reading_activations(cache) as activations:
        for _ in range(2):
            assert activations.read(rows).tobytes() == features[rows].tobytes()
            for view in range(layout.num_views):
                some = np.isin(train, rows)
                found = activations.read(train[some], view + 1)
                assert found.tobytes() == views[some, view].tobytes()
                assert (found.shape[1:], found.dtype) == (layout.shape, features.dtype)
    if len(layout.shape) == 1:
        assert cache.features.tobytes() == features.tobytes()
        assert cache.view_features.tobytes() == views.tobytes()
        with cache.reading() as rows_at:
            assert rows_at(rows[::-1]).tobytes() == features[rows[::-1]].tobytes()


MAPS = RowLayout((4, 3, 3), "float16", 2)
SIXTY = np.repeat([1, 0, 2], [7, 40, 13]).astype(np.uint8)
"""Splits of 60 rows: the training rows are consecutive, and begin within a chunk."""


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 rows, blocks of 2 to 3 chunks."""
    monkeypatch.setattr("featx.features.columns._CHUNK_BYTES", 5 * MAPS.row_bytes)
    monkeypatch.setattr("featx.features.columns._BLOCK_BYTES", 15 * 3 * MAPS.row_bytes)


@pytest.fixture
def maps(tmp_path: Path, small_chunks: None) -> Path:
    path = tmp_path / "maps.h5"
    write_activations(path, MAPS, 60, splits=SIXTY)
    return path


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("layout", [MAPS, replace(MAPS, num_views=0)])
def test_an_epoch_reads_what_it_asks_for(tmp_path, layout):
    path = tmp_path / "maps.h5"
    features, views = write_activations(path, layout, 60, splits=SIXTY)
    versions = np.concatenate([features[7:47, None], views], axis=1)
    cache = open_features(path)
    train = cache.rows("train")
    with reading_activations(cache) as activations:
        assert activations.block_rows == 5
        random = np.random.default_rng(0)
        for _ in range(4):
            before = activations.bytes_read
            for start in 5 * random.permutation(len(train) // 5):
                rows, view = train[start : start + 5], int(random.integers(0, layout.num_views + 1))
                found = activations.read(rows, view)
                assert found.tobytes() == versions[start : start + 5, view].tobytes()
            asked = len(train) * layout.row_bytes
            assert activations.bytes_read - before <= 1.2 * asked


def test_a_chunk_holds_one_view_of_consecutive_training_rows(maps):
    with h5py.File(maps) as file:
        assert file["views"].shape == (40, 2, 4, 3, 3)
        assert file["views"].chunks == (5, 1, 4, 3, 3)
        assert file["features"].chunks == (5, 4, 3, 3)


@pytest.mark.parametrize("num_views", [1, 30, 1000])
def test_chunks_are_smaller_where_many_views_are_written_side_by_side(num_views):
    layout = RowLayout((256, 14, 14), "float16", num_views)
    chunks = schema_of(layout, 10_000, 10_000, 9)["views"].chunks
    size = chunks[0] * layout.row_bytes
    assert chunks[1:] == (1, 256, 14, 14)
    assert 0 < size <= 2**20
    assert size == chunks[0] * layout.row_bytes >= (2**19 if num_views < 30 else layout.row_bytes)
    assert num_views * size <= 2**24 or chunks[0] == 1


@pytest.mark.parametrize("num_views", [0, 4])
def test_blocks_are_bounded_by_bytes_and_end_where_chunks_of_views_do(num_views):
    layout = RowLayout((75_000,), "float16", num_views)
    is_train = np.random.default_rng(0).random(5000) < 0.7
    schema = schema_of(layout, 5000, int(is_train.sum()), 9)
    sizes = list(block_sizes(is_train, replace(layout, shape=(75, 1000)), schema))
    assert sum(sizes) == 5000
    assert max(sizes) * layout.row_bytes * (1 + num_views) <= 2**25
    if num_views:
        ends = np.cumsum(is_train)[np.cumsum(sizes)[:-1] - 1]
        assert not (ends % schema["views"].chunks[0]).any()


def test_memory_of_publishing_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("featx.features.columns._CHUNK_BYTES", 2**16)
    monkeypatch.setattr("featx.features.columns._BLOCK_BYTES", 2**20)
    monkeypatch.setattr("featx.features.hdf5.BLOCK_BYTES", 2**20)
    layout = RowLayout((3, 50, 50), "float16", 4)  # 15 kB a view
    columns = make_columns(400)
    columns["splits"][:] = 0
    samples, header = make_samples(columns), cut_header(layout)
    features = np.ones((400, layout.size), np.float16)
    views = np.ones((50, 4, layout.size), np.float16)
    with Journal(tmp_path / "f.h5", layout=layout) as journal:
        journal.begin({})
        for start in range(0, 400, 50):
            part = {name: column[start : start + 50] for name, column in columns.items()}
            append_batches(journal, features[start : start + 50], views, part, 10)
        peaks = []
        for count in (100, 400):
            tracemalloc.start()
            publish_features(
                tmp_path / "f.h5",
                header,
                ExistingRows(None, journal),
                samples=samples[:count],
                rows=np.arange(count),
                verifier=InThisProcess(),
                overwrite=True,
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks) < 6e6  # 30 MB are written
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("layout", [MAPS, RowLayout((5,), num_views=2), RowLayout((5,))])
def test_required_bytes_are_those_that_are_written(tmp_path, layout):
    columns = make_columns(200)
    with Journal(tmp_path / "f.h5", layout=layout) as journal:
        journal.begin({"made": "up"})
        append_batches(journal, *values_of(layout, 200), columns, 20)
        journal_bytes = journal.path.stat().st_size
    write_activations(tmp_path / "f.h5", layout, 200)
    file_bytes = (tmp_path / "f.h5").stat().st_size
    num_train = int((columns["splits"] == 0).sum())
    found = required_bytes(layout, 200, num_train)
    assert 0.8 * journal_bytes < found[0] < 2 * journal_bytes
    assert file_bytes < found[1] + 2000
    assert required_bytes(layout, 0)[0] == 0 < required_bytes(layout, 0)[1]
    big = RowLayout((256, 14, 14), "float16", 4)
    for size in required_bytes(big, 10_000, 8000):
        assert size == pytest.approx(big.row_bytes * (10_000 + 4 * 8000), rel=0.01)
    wide = RowLayout((512,))
    assert required_bytes(wide, 9000, dtype="float16")[1] < 0.6 * required_bytes(wide, 9000)[1]


@pytest.mark.parametrize(
    "layout", [MAPS, RowLayout((2, 2, 3), "uint8", 1), RowLayout((6,), num_views=3)]
)
@pytest.mark.parametrize("num_in_file", [1, 23, 60])
def test_rows_of_the_file_are_published_again_with_their_views(tmp_path, layout, num_in_file):
    whole, path = tmp_path / "whole.h5", tmp_path / "f.h5"
    columns = make_columns(60)
    write_activations(whole, layout, 60, **columns)
    features, views = values_of(layout, 60)
    first, rest = (
        {name: column[part] for name, column in columns.items()}
        for part in (slice(num_in_file), slice(num_in_file, None))
    )
    with Journal(path, layout=layout) as journal:
        journal.begin({})
        append_batches(journal, features[:num_in_file], views[:num_in_file], first, 4)
        options = {"verifier": InThisProcess(), "overwrite": True}
        publish_features(
            path,
            cut_header(layout),
            ExistingRows(None, journal),
            samples=make_samples(first),
            rows=np.arange(num_in_file),
            **options,
        )
        journal.begin({})
        append_batches(journal, features[num_in_file:], views[num_in_file:], rest, 4)
        existing = ExistingRows(open_features(path), journal)
        assert np.array_equal(existing.has_views, columns["splits"] == 0)
        with existing.reading() as rows_at:
            order = np.random.default_rng(0).permutation(60)
            block = rows_at(order)
            assert block.features.tobytes() == features[order].tobytes()
            assert np.array_equal(block.has_views, existing.has_views[order])
            assert block.views[block.has_views].tobytes() == (
                views[order][block.has_views].tobytes()
            )
        publish_features(
            path,
            cut_header(layout),
            existing,
            samples=make_samples(columns),
            rows=np.arange(60),
            **options,
        )
    assert path.read_bytes() == whole.read_bytes()


def test_views_of_images_that_became_validation_are_dropped(maps, tmp_path):
    columns = make_columns(60) | {"splits": np.where(np.arange(60) % 2, SIXTY, 1).astype(np.uint8)}
    _, views = values_of(MAPS, 60)
    with Journal(tmp_path / "none.h5", layout=MAPS) as journal:
        journal.begin({})
        publish_features(
            tmp_path / "f.h5",
            cut_header(MAPS),
            ExistingRows(open_features(maps), journal),
            samples=make_samples(columns),
            rows=np.arange(60),
            verifier=InThisProcess(),
        )
    cache = open_features(tmp_path / "f.h5")
    train = cache.rows("train")
    assert len(train) == 20
    with reading_activations(cache) as activations:
        assert activations.read(train, 2).tobytes() == views[train, 1].tobytes()
        with pytest.raises(ValueError, match="outside the training split have no views"):
            activations.read(np.arange(3), 1)


def test_a_training_row_without_views_is_not_published(tmp_path):
    columns = make_columns(10) | {"splits": np.ones(10, np.uint8)}
    path = tmp_path / "f.h5"
    with Journal(path, layout=MAPS) as journal:
        journal.begin({})
        append_batches(journal, *values_of(MAPS, 10), columns, 4)
        columns["splits"][3] = 0
        with pytest.raises(ValueError, match="no views"):
            publish_features(
                path,
                cut_header(MAPS),
                ExistingRows(None, journal),
                samples=make_samples(columns),
                rows=np.arange(10),
                verifier=InThisProcess(),
            )
    assert not path.exists()


# --- what is behind the cut -----------------------------------------------------------------------


def network(rows: np.ndarray) -> np.ndarray:
    """Stand in for the rest of a network that gives 4 features, float32."""
    assert rows.shape[1:] == MAPS.shape
    return 2 * rows.reshape(len(rows), -1)[:, :4].astype(np.float32) + 1


def test_a_network_makes_vectors_of_activations(maps, monkeypatch):
    monkeypatch.setattr("featx.features.file._NETWORK_BYTES", 7 * MAPS.row_bytes)
    cache = open_features(maps, features_later=True)
    features, views = values_of(MAPS, 60)
    expected = network(features.reshape(-1, *MAPS.shape))
    tuned = cache.with_network(network)
    assert tuned.features.tobytes() == expected.tobytes()
    assert tuned.view_features.shape == (40, 2, 4)
    assert tuned.view_features.tobytes() == network(views[7:47].reshape(-1, *MAPS.shape)).tobytes()
    rows = np.random.default_rng(0).permutation(60)[:37]
    with tuned.reading() as rows_at:
        assert rows_at(rows).tobytes() == expected[rows].tobytes()
        assert rows_at(rows[:0]).shape == (0, 4)
    with reading_blocks(tuned) as blocks:
        assert blocks.shape == (60, 4)
        for some in (np.arange(60), np.arange(3, 50, 7)):
            found = np.concatenate([values.copy() for _, values in blocks.only(some).blocks()])
            assert found.tobytes() == expected[some].tobytes()


def test_activations_are_no_features_without_a_network(maps):
    cache = open_features(maps)
    for look in (
        lambda: cache.features,
        lambda: cache.view_features,
        lambda: cache.reading().__enter__(),
        lambda: reading_blocks(cache).__enter__(),
    ):
        with pytest.raises(ArtifactMismatch, match="activations at the cut 'layer4'"):
            look()


def test_an_error_of_the_network_is_not_taken_for_damage(maps):
    def broken(rows: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    cache = open_features(maps).with_network(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        _ = cache.features
    with cache.reading() as rows_at, pytest.raises(RuntimeError, match="out of memory"):
        rows_at(np.arange(3))


def test_stored_rows_come_block_by_block_as_they_are(maps):
    features, _ = values_of(MAPS, 60)
    with reading_stored(open_features(maps).with_network(network)) as rows:
        found = np.concatenate([values.copy() for _, values in rows.blocks()])
    assert found.dtype == np.float16
    assert found.tobytes() == features.tobytes()
