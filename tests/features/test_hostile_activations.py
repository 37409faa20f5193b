"""Files of activations and views that are not what they say: refused, whoever reads them."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
from activations import cut_header, values_of, write_activations
from feature_files import flip, replace_column, set_header, with_details
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.artifact import Header
from featx.errors import ArtifactInvalid
from featx.features.blocks import Activations, _are_finite, reading_activations
from featx.features.file import FeatureFile, open_features, verify_features
from featx.features.records import RowLayout
from featx.features.schema import read_header

MAPS = RowLayout((4, 3, 3), "float16", 2)
SPLITS = np.repeat([1, 0, 2], [7, 40, 13]).astype(np.uint8)


@pytest.fixture
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 rows, 40 of them for training with 2 views; chunks of 5 rows."""
    monkeypatch.setattr("featx.features.columns._CHUNK_BYTES", 5 * MAPS.row_bytes)
    path = tmp_path / "maps.h5"
    write_activations(path, MAPS, 60, splits=SPLITS)
    return path


def refused(path: Path, match: str) -> None:
    for verify in (True, False):
        with pytest.raises(ArtifactInvalid, match=match) as caught:
            open_features(path, verify=verify)
        assert str(path) in str(caught.value)


def header_of(path: Path) -> Header:
    with h5py.File(path) as file:
        return read_header(file, path)


# --- columns --------------------------------------------------------------------------------------

VIEWS = (40, 2, 4, 3, 3)


@pytest.mark.parametrize(
    ("name", "dataset", "match"),
    [
        ("views", {}, "is missing"),
        ("views", {"data": np.zeros(VIEWS, "<f4")}, "has type <f4, expected <f2"),
        ("views", {"data": np.zeros(VIEWS, ">f2")}, "has type >f2"),
        ("views", {"data": np.zeros(VIEWS, "<i2")}, "has type <i2"),
        ("views", {"shape": VIEWS, "dtype": [("a", "<f2")]}, r"has type \|V2"),
        ("views", {"data": np.zeros((40, 3, 4, 3, 3), "<f2")}, r"has shape \(40, 3, 4, 3, 3\)"),
        ("views", {"data": np.zeros((40, 2, 4, 9), "<f2")}, r"has shape \(40, 2, 4, 9\)"),
        ("views", {"data": np.zeros((40, 2, 36), "<f2")}, r"has shape \(40, 2, 36\)"),
        ("views", {"data": np.float16(1)}, r"has shape \(\)"),
        ("views", {"data": h5py.Empty("<f2")}, "has shape None"),
        ("views", {"shape": VIEWS, "dtype": "<f2", "chunks": VIEWS}, "declares values"),
        ("features", {"data": np.zeros((60, 36), "<f2")}, r"has shape \(60, 36\)"),
        ("features", {"data": np.zeros((60, 4, 3, 3), "<f4")}, "has type <f4, expected <f2"),
        ("features", {"data": np.zeros((60, 4, 3, 3), "u1")}, r"has type \|u1"),
        ("features", {"data": np.zeros((59, 4, 3, 3), "<f2")}, r"has shape \(59, 4, 3, 3\)"),
    ],
)
def test_a_column_of_another_shape_or_type(maps, name, dataset, match):
    replace_column(maps, name, **dataset)
    refused(maps, f"column '{name}' {match}")


@pytest.mark.parametrize("num_viewed", [39, 41, 60])
def test_views_of_more_or_fewer_images_than_train(maps, num_viewed):
    data = np.zeros((num_viewed, *VIEWS[1:]), "<f2")
    replace_column(maps, "views", data=data)
    sha256 = header_of(maps).details["sha256"] | {"views": hashlib.sha256(data).hexdigest()}
    set_header(maps, with_details(header_of(maps), sha256=sha256))
    refused(maps, f"has views of {num_viewed} images, but 40 for training")
    with pytest.raises(ArtifactInvalid, match="but 40 for training"):
        verify_features(maps)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"shuffle": True}])
@pytest.mark.parametrize("name", ["features", "views"])
def test_a_filter_that_featx_does_not_write(maps, name, options):
    with h5py.File(maps) as file:
        data = file[name][:]
    replace_column(maps, name, data=data, chunks=data.shape, **options)
    refused(maps, f"column '{name}' uses a filter that featx does not write")


def test_views_elsewhere_are_not_followed(maps, tmp_path, watch):
    foreign = tmp_path / "foreign.h5"
    foreign.write_bytes(maps.read_bytes())
    was_opened = watch(foreign)
    with h5py.File(maps, "r+") as file:
        del file["views"]
        file["views"] = h5py.ExternalLink(str(foreign), "/views")
    refused(maps, "column 'views' is missing, or a link")
    layout = h5py.VirtualLayout(VIEWS, "<f2")
    layout[:] = h5py.VirtualSource(str(foreign), "views", VIEWS)
    with h5py.File(maps, "r+") as file:
        del file["views"]
        file.create_virtual_dataset("views", layout)
    was_opened()
    refused(maps, "column 'views' keeps its values in another file")
    outside = [(str(foreign), 0, h5py.h5f.UNLIMITED)]
    replace_column(maps, "views", shape=VIEWS, dtype="<f2", external=outside)
    refused(maps, "column 'views' keeps its values in another file")
    assert not was_opened()


def test_a_shape_bomb_costs_nothing(maps, monkeypatch):
    shape = [2**10, 2**9, 2**9]
    header = header_of(maps)
    set_header(maps, replace(header, spec={**header.spec, "shape": shape}))
    replace_column(
        maps, "features", shape=(60, *shape), dtype="<f2", chunks=(1, 8, 8, 8), fletcher32=True
    )
    replace_column(
        maps, "views", shape=(40, 2, *shape), dtype="<f2", chunks=(1, 1, 8, 8, 8), fletcher32=True
    )
    monkeypatch.setattr(h5py.Dataset, "__getitem__", read := Mock())
    tracemalloc.start()
    try:
        refused(maps, "column 'features' declares values that the file does not hold")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    read.assert_not_called()


# --- header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"cut": None}, r"spec\.cut is None, expected text"),
        ({"shape": None}, r"spec\.shape is None, expected a list"),
        ({"shape": []}, r"spec\.shape is \[\]"),
        ({"shape": [4, 3, -3]}, r"spec\.shape\[2\] is -3"),
        ({"shape": [4, 3, 0]}, r"spec\.shape\[2\] is 0"),
        ({"shape": [4, 3, 3.0]}, r"spec\.shape\[2\] is 3\.0"),
        ({"shape": [True, 3, 3]}, r"spec\.shape\[0\] is True"),
        ({"shape": [4, 3, 2**40]}, r"spec\.shape\[2\] is 1099511627776"),
        ({"shape": [2**14, 2**15]}, r"product is at most 268,435,456"),
        ({"shape": [1, 1, 1, 4, 3, 3]}, "1 to 4 numbers"),
        ({"shape": "433"}, r"spec\.shape is '433'"),
        ({"cut": "input"}, r"spec\.shape is \[4, 3, 3\], expected \[32, 32, 3\] at the input"),
    ],
)
def test_a_cut_that_cannot_be(maps, spec, match):
    header = header_of(maps)
    set_header(maps, replace(header, spec={**header.spec, **spec}))
    refused(maps, match)


@pytest.mark.parametrize("name", ["cut", "shape"])
def test_cut_and_shape_go_together(maps, name):
    header = header_of(maps)
    spec = {key: value for key, value in header.spec.items() if key != name}
    set_header(maps, replace(header, spec=spec))
    refused(maps, rf"spec\.{name} is missing")


VIEWS_SPEC = cut_header(MAPS).details["views"]


@pytest.mark.parametrize(
    ("views", "match"),
    [
        (None, r"details\.views is None, expected a mapping"),
        ({}, r"details\.views\.num_views is missing"),
        (VIEWS_SPEC | {"num_views": 3}, r"column 'views' has shape"),
        (VIEWS_SPEC | {"num_views": 0}, r"num_views is 0"),
        (VIEWS_SPEC | {"num_views": 1001}, r"num_views is 1001"),
        (VIEWS_SPEC | {"num_views": 2.0}, r"num_views is 2\.0"),
        (VIEWS_SPEC | {"augment": ["crop", "shear"]}, r"augment\[1\] is 'shear'"),
        (VIEWS_SPEC | {"augment": ["crop", "crop"]}, "its views cannot be read: augment takes"),
        (VIEWS_SPEC | {"augment": "flip"}, r"augment is 'flip'"),
        (VIEWS_SPEC | {"scale": [0.5, 0.3]}, "its views cannot be read: scale must be"),
        (VIEWS_SPEC | {"scale": [0.5, 1.5]}, "its views cannot be read: scale must be"),
        (VIEWS_SPEC | {"scale": [0.5]}, r"scale is \[0\.5\]"),
        (VIEWS_SPEC | {"ratio": [0, 1]}, r"ratio\[0\] is 0"),
        (VIEWS_SPEC | {"jitter": 1}, "its views cannot be read: jitter"),
        (VIEWS_SPEC | {"jitter": 2}, r"jitter is 2"),
        (VIEWS_SPEC | {"version": 2}, "its views cannot be read: this featx draws views of"),
        (VIEWS_SPEC | {"hue": 1}, r"details\.views\.hue is 1, expected no such field"),
    ],
)
def test_views_that_cannot_be(maps, views, match):
    set_header(maps, with_details(header_of(maps), views=views))
    refused(maps, match)


def test_views_and_their_column_go_together(maps):
    header = header_of(maps)
    sha256 = {name: own for name, own in header.details["sha256"].items() if name != "views"}
    set_header(maps, with_details(header, sha256=sha256))
    refused(maps, r"details\.sha256 is .*expected views where details\.views describes them")
    details = {name: value for name, value in header.details.items() if name != "views"}
    set_header(maps, replace(header, details=details))
    refused(maps, r"details\.sha256 is .*expected views where")


@pytest.mark.parametrize("dtype", ["uint8", "float64", None])
def test_pixels_alone_are_whole_numbers(maps, dtype):
    set_header(maps, with_details(header_of(maps), dtype=dtype))
    refused(maps, r"details\.dtype is")


def test_a_type_that_the_columns_do_not_have(maps):
    set_header(maps, with_details(header_of(maps), dtype="float32"))
    refused(maps, "column 'features' has type <f2, expected <f4")


@pytest.mark.parametrize(
    ("layout", "version"),
    [
        (MAPS, 4),
        (replace(MAPS, num_views=0), 4),
        (RowLayout((5,), num_views=1), 4),
        (RowLayout((5, 5, 3), "uint8"), 4),
        (RowLayout((5,)), 3),
    ],
)
def test_files_with_a_cut_or_views_have_a_version_that_older_readers_refuse(
    tmp_path, monkeypatch, layout, version
):
    path = tmp_path / "f.h5"
    write_activations(path, layout, 10)
    assert header_of(path).schema_version == version
    monkeypatch.setattr("featx.artifact.header.NEWEST_SCHEMA_VERSION", 3)  # as an older featx
    if version == 4:
        refused(path, "has schema version 4; this featx reads 2 to 3. A newer featx wrote it")
    else:
        open_features(path)


# --- values ---------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_the_views_is_noticed_at_opening(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "f.h5"
    write_activations(path, MAPS, 12, splits=np.zeros(12, np.uint8))
    with h5py.File(path) as file:
        column = file["views"]
        chunks = range(column.id.get_num_chunks())
        info = column.id.get_chunk_info(data.draw(st.sampled_from(chunks)))
        rows = np.prod(column.chunks) * 2
    flip(path, info.byte_offset + data.draw(st.integers(0, int(rows) - 1)))
    for check in (open_features, verify_features):
        with pytest.raises(ArtifactInvalid):
            check(path)
    with (
        pytest.raises(ArtifactInvalid),
        reading_activations(open_features(path, features_later=True)),
    ):
        pass


def read_all(cache: FeatureFile, activations: Activations) -> None:
    activations.read(np.arange(len(cache)))
    for view in (1, 2):
        activations.read(cache.rows("train"), view)


@pytest.mark.parametrize("name", ["features", "views"])
def test_damage_in_the_middle_shows_at_the_next_reading(maps, name):
    cache, place = open_features(maps), place_in(maps, name)
    with reading_activations(cache) as activations:
        for _ in range(2):
            read_all(cache, activations)
        flip(maps, place)
        with pytest.raises(ArtifactInvalid, match=f"its {name} are not what they were"):
            read_all(cache, activations)


def test_a_cut_file_is_damaged(maps):
    cache, place = open_features(maps), place_in(maps, "views")
    with reading_activations(cache) as activations:
        read_all(cache, activations)
        with maps.open("r+b") as file:
            file.truncate(place)
        with pytest.raises(ArtifactInvalid, match="damaged while it was read"):
            read_all(cache, activations)


def place_in(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_chunk_info(3).byte_offset + 17)


def test_another_file_in_its_place_is_not_read(maps):
    cache = open_features(maps)
    with reading_activations(cache) as activations:
        before = activations.read(np.arange(60)).tobytes()
        write_activations(maps, MAPS, 60, seed=1, splits=SPLITS)
        assert activations.read(np.arange(60)).tobytes() == before
    with pytest.raises(ArtifactInvalid, match="was replaced since"), reading_activations(cache):
        pass


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["features", "views"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_are_no_numbers_are_refused_when_read(tmp_path, name, dtype, value):
    layout, path = replace(MAPS, dtype=dtype), tmp_path / "f.h5"
    write_activations(path, layout, 60, splits=SPLITS)
    with h5py.File(path, "r+") as file:
        column = file[name]
        column[(11, 1, 2, 1, 1) if name == "views" else (18, 2, 1, 1)] = value
        sha256 = hashlib.sha256(column[:].tobytes()).hexdigest()
    checksums = header_of(path).details["sha256"] | {name: sha256}
    set_header(path, with_details(header_of(path), sha256=checksums))
    cache = open_features(path)
    with reading_activations(cache) as activations:
        view = 2 if name == "views" else 0
        rows = cache.rows("train")
        activations.read(rows[:11], view)
        message = f"NaN or infinite values of '{cache.sample_ids[18]}'"
        for _ in range(2):
            with pytest.raises(ArtifactInvalid, match=message):
                activations.read(rows, view)
    if name == "views":
        tuned = cache.with_network(lambda part: part.reshape(len(part), -1)[:, 20:24])
        with pytest.raises(ArtifactInvalid, match="NaN or infinite views"):
            _ = tuned.view_features


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@given(data=st.data())
def test_any_bits_are_finite_or_not_as_numpy_says(dtype, data):
    size = np.dtype(dtype).itemsize
    content = data.draw(st.binary(min_size=3 * size, max_size=3 * size))
    rows = np.frombuffer(content, dtype).reshape(1, 3)
    assert _are_finite(rows).tolist() == [bool(np.isfinite(rows).all())]
    for value in (np.nan, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).tiny, -0.0):
        assert _are_finite(np.array([[1, value, 2]], dtype)).tolist() == [np.isfinite(value)]


def test_another_layout_is_read_by_hdf5(maps):
    features, views = values_of(MAPS, 60)
    for name, chunks in (("features", (7, 2, 3, 3)), ("views", (7, 2, 4, 3, 3)), ("views", None)):
        with h5py.File(maps) as file:
            data = file[name][:]
        replace_column(maps, name, data=data, chunks=chunks)
        verify_features(maps)
        cache = open_features(maps)
        train = cache.rows("train")
        with reading_activations(cache) as activations:
            assert activations.read(np.arange(60)).tobytes() == features.tobytes()
            some = train[::3]
            assert activations.read(some, 2).tobytes() == views[some, 1].tobytes()


def test_threads_read_the_same_as_one(maps):
    features, views = values_of(MAPS, 60)
    cache, wrong = open_features(maps), []
    with reading_activations(cache) as activations:

        def read(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(200):
                rows = np.flatnonzero(random.random(60) < 0.2)
                rows = rows[SPLITS[rows] == 0]
                view = int(random.integers(0, 3))
                expected = views[rows, view - 1] if view else features[rows]
                if activations.read(rows, view).tobytes() != expected.tobytes():
                    wrong.append(seed)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_processes_that_were_forked_read_the_same_as_one(maps):
    cache = open_features(maps)
    with reading_activations(cache) as activations:

        def digest() -> str:
            random, found = np.random.default_rng(0), hashlib.sha256()
            for _ in range(500):
                rows = 7 + np.flatnonzero(random.random(40) < 0.1)
                found.update(activations.read(rows, int(random.integers(0, 3))).data)
            return found.hexdigest()

        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        children = [context.Process(target=lambda: answers.put(digest())) for _ in range(4)]
        for child in children:
            child.start()
        assert {answers.get() for _ in children} == {digest()}
        for child in children:
            child.join()
