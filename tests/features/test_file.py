"""The feature file's reader: exact values or a refusal, and no look at anything foreign."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
from feature_files import (
    as_version_2,
    batch_of,
    make_columns,
    make_samples,
    replace_column,
    set_header,
    verifier,
    with_details,
    write_features,
)
from headers import complete_header
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.artifact import MAX_HEADER_BYTES
from featx.errors import (
    ArtifactError,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMissing,
    ConfigError,
)
from featx.features.columns import BLOCK_ROWS
from featx.features.file import FeatureFile, open_features, verify_features
from featx.features.journal import Journal
from featx.features.publish import ExistingRows, publish_features
from featx.features.records import Batch, RowLayout
from featx.features.schema import COLUMNS
from featx.heads.head import Head, save_head
from featx.images.sources import UNKNOWN_TIME

# --- write, then read ---------------------------------------------------------------------------

file_names = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)
odd_ids = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    file_names.map(lambda name: name.decode("utf-8", "surrogateescape")),
)


int64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    num_rows, num_features = draw(st.integers(1, 50)), draw(st.integers(1, 30))
    classes = tuple(draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True)))
    bits = np.random.default_rng(draw(st.integers(0, 2**32))).integers(
        0, 2**32, (num_rows, num_features), dtype=np.uint32
    )
    column = {"min_size": num_rows, "max_size": num_rows}
    return {
        "classes": classes,
        "features": bits.view(np.float32),  # NaN, infinities and denormals among them
        "labels": np.array(draw(st.lists(st.integers(-1, len(classes) - 1), **column))),
        "splits": np.array(draw(st.lists(st.integers(0, 2), **column)), dtype=np.uint8),
        "sample_ids": draw(st.lists(odd_ids, unique=True, **column)),
        "digests": np.frombuffer(
            draw(st.binary(min_size=16 * num_rows, max_size=16 * num_rows)), np.uint8
        ).reshape(num_rows, 16),
        "stamps": np.array(draw(st.lists(st.tuples(*[int64] * 3), **column)), dtype=np.int64),
        "groups": draw(st.lists(st.sampled_from(["", "a", "b", "ü"]), **column)),
    }


@settings(max_examples=60, deadline=None)
@given(table=tables())
def test_what_is_written_is_read(table):
    header = complete_header(
        "features", {"num_features": table["features"].shape[1]}, table.pop("classes")
    )
    features = table.pop("features")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.h5"
        with Journal(path, layout=RowLayout((features.shape[1],))) as journal:
            journal.begin({})
            names, digests, stamps = (table[k] for k in ("sample_ids", "digests", "stamps"))
            journal.append(Batch(tuple(names), stamps, digests, ("",) * len(names), features))
            publish_features(
                path,
                header,
                ExistingRows(None, journal),
                samples=make_samples(table),
                rows=np.arange(len(names)),
                verifier=verifier,
            )
        opened = open_features(path)
        assert opened.features.tobytes() == features.tobytes()
    names = list(dict.fromkeys(filter(None, table["groups"])))
    expected_groups = [names.index(name) if name else -1 for name in table["groups"]]
    assert opened.classes == header.classes
    assert opened.header.spec == header.spec
    assert opened.num_features == features.shape[1]
    assert len(opened) == len(features)
    assert opened.labels.dtype == np.int64
    assert np.array_equal(opened.labels, table["labels"])
    assert opened.splits.dtype == np.uint8
    assert np.array_equal(opened.splits, table["splits"])
    assert list(opened.sample_ids) == table["sample_ids"]
    assert np.array_equal(opened.digests, table["digests"])
    assert opened.stamps.dtype == np.int64
    assert np.array_equal(opened.stamps, table["stamps"])
    assert opened.groups.dtype == np.int64
    assert opened.groups.tolist() == expected_groups


def test_many_blocks_and_chunks(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2 * BLOCK_ROWS + 123, 70)).astype(np.float32)
    columns = make_columns(len(rows))
    write_features(tmp_path / "f.h5", rows, **columns)
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].id.get_num_chunks() > 2
    opened = open_features(tmp_path / "f.h5")
    assert opened.features.tobytes() == rows.tobytes()
    assert np.array_equal(opened.labels, columns["labels"])
    assert list(opened.sample_ids) == columns["sample_ids"]


def test_rows_longer_than_a_chunk(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, 2**18 + 5)).astype(np.float32)
    write_features(tmp_path / "f.h5", rows)
    assert open_features(tmp_path / "f.h5").features.tobytes() == rows.tobytes()


def test_rows_of_a_split(published):
    opened = open_features(published)
    rows = [opened.rows(split) for split in opened.split_names]
    assert opened.split_names == ("train", "val", "test")
    assert sorted(np.concatenate(rows)) == list(range(len(opened)))
    for index, part in enumerate(rows):
        assert (opened.splits[part] == index).all()
        assert (np.diff(part) > 0).all()
    with pytest.raises(ConfigError, match="train, val, test; got 'valid'"):
        opened.rows("valid")


def test_a_path_may_be_text_and_a_link(published, tmp_path):
    (tmp_path / "link.h5").symlink_to(published)
    assert len(open_features(str(tmp_path / "link.h5"))) == 60


def test_reading_leaves_the_file_as_it_is(published):
    before = published.read_bytes()
    published.chmod(0o444)
    assert open_features(published).features.any()
    assert published.read_bytes() == before


def test_float16_rows_are_read_as_float32(tmp_path, values):
    write_features(tmp_path / "f.h5", values, dtype="float16")
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].dtype == np.dtype("<f2")
    opened, half = open_features(tmp_path / "f.h5"), values.astype(np.float16)
    assert opened.features.dtype == np.float32
    assert np.array_equal(opened.features, half.astype(np.float32))
    with opened.reading() as rows_at:
        assert rows_at(np.array([3, 1])).dtype == np.float32
        assert np.array_equal(rows_at(np.array([3, 1])), half[[3, 1]].astype(np.float32))


# --- between opening and reading ----------------------------------------------------------------


def test_features_of_another_file_are_never_mixed_in(published, values):
    opened = open_features(published)
    write_features(published, values + 1, overwrite=True)
    with pytest.raises(ArtifactInvalid, match="was replaced since"):
        _ = opened.features


def test_the_same_content_again_is_fine(published, values):
    opened = open_features(published)
    write_features(published, values, overwrite=True)
    assert np.array_equal(opened.features, values)


def test_a_file_that_went_away_is_an_artifact_error(published):
    opened = open_features(published)
    published.unlink()
    with pytest.raises(ArtifactMissing):
        _ = opened.features
    published.write_bytes(b"something else")
    with pytest.raises(ArtifactInvalid):
        _ = opened.features


def test_features_are_read_once(published, values):
    opened = open_features(published)
    first = opened.features
    published.unlink()
    assert opened.features is first
    assert np.array_equal(first, values)


rows_wanted = st.lists(st.integers(0, 59), max_size=80)


@given(wanted=rows_wanted)
def test_rows_are_read_in_any_order(read_ids, wanted):
    opened, features = read_ids
    with opened.reading() as rows_at:
        found = rows_at(np.array(wanted, dtype=np.int64))
    assert found.tobytes() == features[wanted].tobytes()


@pytest.fixture
def read_ids(published: Path, values: np.ndarray) -> tuple[FeatureFile, np.ndarray]:
    return open_features(published), values


def test_rows_far_apart_cost_no_more_than_their_chunks(tmp_path):
    rows = np.arange(40_000 * 64, dtype=np.float32).reshape(-1, 64)  # ten chunks
    write_features(tmp_path / "f.h5", rows)
    opened = open_features(tmp_path / "f.h5")
    wanted = np.array([39_999, 0, 5, 20_000, 5])
    tracemalloc.start()
    try:
        with opened.reading() as rows_at:
            assert np.array_equal(rows_at(wanted), rows[wanted])
        assert tracemalloc.get_traced_memory()[1] < rows.nbytes / 2
    finally:
        tracemalloc.stop()


def test_rows_of_another_file_are_never_mixed_in(published, values):
    opened = open_features(published)
    write_features(published, values + 1, overwrite=True)
    with pytest.raises(ArtifactInvalid, match="was replaced since"), opened.reading():
        pytest.fail("opened")


def test_a_reader_keeps_what_it_opened(published, values):
    """Publishing moves a file to the name; the one that was there lives on for its reader."""
    with open_features(published).reading() as rows_at:
        write_features(published, values + 1, overwrite=True)
        assert np.array_equal(rows_at(np.arange(60)), values)


# --- unfinished ---------------------------------------------------------------------------------


def test_an_unfinished_extraction_says_how_far_it_is(tmp_path):
    path = tmp_path / "f.h5"
    with Journal(path, layout=RowLayout((8,))) as journal:
        journal.begin({"num_samples": 1200})
        journal.append(batch_of([f"{i}" for i in range(7)], bad=["3"]))
        expected = "is unfinished: 7 of 1,200 images. Run the same featx extract again"
        refused(path, expected, ArtifactIncomplete)
        journal.append(batch_of(["a", "b"]))
        refused(path, "is unfinished: 9 of 1,200 images", ArtifactIncomplete)
    refused(path, "is unfinished: 9 of 1,200 images", ArtifactIncomplete)


def test_beside_a_published_file_the_log_is_nobodys_business(published):
    with Journal(published, layout=RowLayout((8,))) as journal:
        journal.begin({"num_samples": 3})
        journal.append(batch_of(["a"]))
        assert len(open_features(published)) == 60


@pytest.mark.parametrize("content", [b"", b"fx", b"fxj1", b"fxj1" + bytes(100)])
def test_a_log_that_has_hardly_begun(tmp_path, content):
    (tmp_path / "f.h5.partial").write_bytes(content)
    refused(tmp_path / "f.h5", "is unfinished: 0 of 0 images", ArtifactIncomplete)


def test_something_else_in_the_place_of_the_log(tmp_path):
    (tmp_path / "f.h5.partial").write_text("notes of mine")
    with pytest.raises(ArtifactError, match=r"partial' is not a journal"):
        open_features(tmp_path / "f.h5")
    (tmp_path / "f.h5.partial").unlink()
    for make in (os.mkdir, os.mkfifo):
        make(tmp_path / "f.h5.partial")
        refused(tmp_path / "f.h5", "does not exist", ArtifactMissing)
        if make is os.mkdir:
            (tmp_path / "f.h5.partial").rmdir()


def test_a_name_that_cannot_be(tmp_path):
    with pytest.raises(ArtifactError, match="name too long"):
        open_features(tmp_path / ("x" * 300))


# --- not a feature file -------------------------------------------------------------------------


def refused(path: Path, match: str, kind: type[ArtifactError] = ArtifactInvalid) -> None:
    """The file is refused, whether columns are verified or not, and named."""
    for verify in (True, False):
        with pytest.raises(kind, match=match) as caught:
            open_features(path, verify=verify)
        assert type(caught.value) is kind
        assert caught.value.path == path
        assert str(path) in str(caught.value)


def test_missing(tmp_path):
    refused(tmp_path / "f.h5", r"does not exist\. Make it with 'featx extract'", ArtifactMissing)


def test_folder(tmp_path):
    refused(tmp_path, "is not a file")


@pytest.mark.parametrize(
    "content",
    [b"", b"path,label\na.jpg,ant\n", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(2000)],
    ids=["empty", "text", "signature only", "signature and zeros"],
)
def test_other_content(tmp_path, content):
    path = tmp_path / "f.h5"
    path.write_bytes(content)
    refused(path, "is not a featx feature file")


def test_a_head_instead(tmp_path):
    layer = (np.zeros((2, 3), np.float32), np.zeros(2, np.float32))
    save_head(tmp_path / "h.h5", Head(complete_header("head", {"num_features": 3}), (layer,)))
    refused(tmp_path / "h.h5", "is not a featx feature file")


@pytest.mark.parametrize(
    "flag",
    [None, False, 0, 1, "yes", np.bytes_(b""), np.nan, [], [True] * 2, [True] * 5000,
     h5py.Empty(bool)],
    ids=repr,
)  # fmt: skip
def test_incomplete(published, flag):
    """The mark is one true value, as featx writes it; anything else is none."""
    with h5py.File(published, "r+") as file:
        del file.attrs["complete"]
        if flag is not None:
            file.attrs["complete"] = flag
    refused(published, "is incomplete: the extraction did not finish", ArtifactIncomplete)


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (np.array([b"{}", b"{}"]), "not text of fixed length"),
        (np.bytes_(b"[1, 2]"), "no readable featx header"),
        (np.bytes_(b"\xff\xfe\x00"), "no readable featx header"),
        (np.bytes_(b"9" * 10_000), "no readable featx header"),
    ],
)
def test_a_header_that_is_none(published, value, match):
    with h5py.File(published, "r+") as file:
        del file.attrs["header"]
        file.attrs["header"] = value
    refused(published, match)


def test_a_header_of_another_kind_or_version(published):
    header = open_features(published).header
    set_header(published, replace(header, kind="head"))
    refused(published, "holds a head, but cached features is needed here")
    set_header(published, replace(header, schema_version=1))
    refused(published, "schema version 1; this featx reads 2 to 4. Make the file again")
    set_header(published, replace(header, schema_version=5))
    refused(published, "schema version 5; this featx reads 2 to 4. A newer featx wrote it")


def test_a_header_of_another_version_than_the_columns(published):
    set_header(published, replace(open_features(published).header, schema_version=2))
    refused(published, r"column 'stamps' has shape \(60, 3\), expected \(60, 2\)")


def test_details_that_nobody_knows_are_left_alone(published):
    header = with_details(open_features(published).header, etags={"a": [1, None]}, parts=3)
    set_header(published, header)
    opened = open_features(published)
    assert (opened.header, len(opened.features)) == (header, 60)


def test_a_file_of_the_version_before_is_read_like_a_new_one(published, values):
    new = open_features(published)
    as_version_2(published)
    for options in ({}, {"features_later": True}, {"verify": False}):
        old = open_features(published, **options)
        assert old.features.tobytes() == values.tobytes()
        assert np.array_equal(old.stamps[:, :2], new.stamps[:, :2])
        assert (old.stamps[:, 2] == UNKNOWN_TIME).all()
        assert (old.groups == -1).all()
        assert old.groups.shape == (60,)
    verify_features(published)


def test_links_called_as_columns_of_later_versions_are_not_followed(published, tmp_path, watch):
    foreign = tmp_path / "foreign.h5"
    shutil.copy(published, foreign)
    as_version_2(published)
    with h5py.File(published, "r+") as file:
        file["groups"] = h5py.ExternalLink(str(foreign), "/groups")
    was_opened = watch(foreign)
    assert (open_features(published).groups == -1).all()
    assert not was_opened()


def test_an_altered_header(published):
    with h5py.File(published, "r+") as file:
        text = bytes(file.attrs["header"])
        del file.attrs["header"]
        file.attrs["header"] = np.bytes_(text.replace(b'"resize":32', b'"resize":33'))
    refused(published, "does not match its checksum")


def test_a_header_that_is_too_large(published):
    header = open_features(published).header
    set_header(published, with_details(header, padding="x" * (MAX_HEADER_BYTES + 1)))
    refused(published, f"over {MAX_HEADER_BYTES}")


@pytest.mark.parametrize("sha256", [None, "x", [], {}, {"features": 3}])
def test_a_header_without_column_checksums(published, sha256):
    set_header(published, with_details(open_features(published).header, sha256=sha256))
    with pytest.raises(ArtifactInvalid, match="sha256"):
        open_features(published)


@pytest.mark.parametrize("num_rows", [None, 61, 59, 0, -1, "60", [60]])
def test_a_header_with_another_row_count(published, num_rows):
    set_header(published, with_details(open_features(published).header, num_rows=num_rows))
    refused(published, "column 'features' has shape|details.num_rows is")


# --- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column(published, name):
    replace_column(published, name)
    refused(published, f"column '{name}' is missing")


@pytest.mark.parametrize(
    ("name", "dataset", "match"),
    [
        ("features", {"data": np.zeros((60, 8), ">f4")}, "type >f4"),
        ("features", {"data": np.zeros((60, 8), "<f8")}, "type <f8"),
        ("features", {"data": np.zeros((60, 8), "<i4")}, "type <i4"),
        ("features", {"data": np.zeros((60, 9), "<f4")}, r"shape \(60, 9\)"),
        ("features", {"data": np.zeros((59, 8), "<f4")}, r"shape \(59, 8\)"),
        ("features", {"data": np.zeros(480, "<f4")}, r"shape \(480,\)"),
        ("features", {"data": np.float32(1)}, r"shape \(\)"),
        ("features", {"data": h5py.Empty("<f4")}, "shape None"),
        ("labels", {"data": np.zeros(60, "<i4")}, "type <i4"),
        ("labels", {"data": np.zeros(60, "<u8")}, "type <u8"),
        ("labels", {"data": np.zeros((60, 1), "<i8")}, r"shape \(60, 1\)"),
        ("labels", {"data": np.zeros(60, ">i8")}, "type >i8"),
        ("labels", {"shape": 60, "dtype": h5py.enum_dtype({"a": 1}, "i4")}, "type <i4"),
        ("labels", {"shape": 60, "dtype": h5py.vlen_dtype(np.int64)}, r"type \|O"),
        ("labels", {"shape": 60, "dtype": h5py.regionref_dtype}, r"type \|O"),
        ("labels", {"shape": 60, "dtype": [("a", "<i8")]}, r"type \|V8"),
        ("labels", {"shape": 10**15, "dtype": "<i8", "chunks": 1000}, "shape"),
        ("splits", {"data": np.zeros(60, "<i8")}, "type <i8"),
        ("splits", {"data": np.zeros(60, bool)}, r"type \|b1"),
        ("sample_ids", {"data": ["a"] * 60, "dtype": h5py.string_dtype()}, r"type \|O"),
        ("sample_ids", {"shape": 60, "dtype": h5py.ref_dtype}, r"type \|O"),
        ("sample_ids", {"shape": 60, "dtype": [("a", "S3")]}, r"type \|V3"),
        ("sample_ids", {"shape": 60, "dtype": "V20"}, r"type \|V20"),
        ("digests", {"data": np.zeros((60, 32), "u1")}, r"shape \(60, 32\)"),
        ("digests", {"data": np.zeros((60, 16), "i1")}, r"type \|i1"),
        ("stamps", {"data": np.zeros((60, 2), "<i8")}, r"shape \(60, 2\)"),
        ("stamps", {"data": np.zeros(60, "<i8")}, r"shape \(60,\)"),
        ("stamps", {"data": np.zeros((60, 3), "<u8")}, "type <u8"),
        ("groups", {"data": np.zeros(60, "<i4")}, "type <i4"),
        ("groups", {"data": np.zeros((60, 1), "<i8")}, r"shape \(60, 1\)"),
    ],
)
def test_a_column_of_another_shape_or_type(published, name, dataset, match):
    replace_column(published, name, **dataset)
    refused(published, f"column '{name}' has {match}")


def test_something_else_instead_of_a_column(published):
    for value in (None, np.dtype("<i8")):  # a group, and a type
        with h5py.File(published, "r+") as file:
            del file["labels"]
            if value is None:
                file.create_group("labels")
            else:
                file["labels"] = value
        refused(published, "column 'labels' is not a dataset")
    replace_column(published, "labels", shape=60, dtype="<i8", chunks=60)
    refused(published, "column 'labels' declares values that the file does not hold")


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "lzf"},
        {"shuffle": True},
        {"scaleoffset": 0},
        {"compression": 32015, "allow_unknown_filter": True},
    ],
    ids=["gzip", "lzf", "shuffle", "scaleoffset", "a plugin"],
)
def test_a_filter_that_featx_does_not_write(published, options):
    if options.get("allow_unknown_filter"):  # nothing may be written through it here
        options = options | {"shape": 60, "dtype": "<i8", "chunks": 60}
    else:
        options = options | {"data": np.zeros(60, "<i8"), "chunks": 60}
    replace_column(published, "labels", **options)
    refused(published, "column 'labels' uses a filter that featx does not write")


@pytest.mark.parametrize("name", COLUMNS)
def test_an_altered_value_with_right_hdf5_checksums(published, name):
    with h5py.File(published, "r+") as file:
        column = file[name]
        if name == "sample_ids":
            column[3] = b"train/bee/0003.jpg"
        else:
            column[3] = (column[3] + 1) % 2
    for check in (open_features, verify_features):
        with pytest.raises(ArtifactInvalid, match=f"column '{name}' does not have the sha256"):
            check(published)
    assert len(open_features(published, verify=False)) == 60


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("labels", 3, "labels outside -1 to 2"),
        ("labels", -2, "labels outside -1 to 2"),
        ("labels", 2**62, "labels outside -1 to 2"),
        ("splits", 3, "splits outside 0 to 2"),
        ("groups", -2, "groups outside -1 to 59"),
        ("groups", 60, "groups outside -1 to 59"),
    ],
)
def test_indices_of_nothing(published, name, value, match):
    header = open_features(published).header
    with h5py.File(published, "r+") as file:
        file[name][:] = value
        sha256 = hashlib.sha256(file[name][:].tobytes()).hexdigest()
    checksums = dict(header.details["sha256"]) | {name: sha256}
    set_header(published, with_details(header, sha256=checksums))
    refused(published, match)


@pytest.mark.parametrize("label", [3, -2])
def test_what_the_reader_would_refuse_is_not_published(tmp_path, values, label):
    with pytest.raises(ArtifactInvalid, match="labels outside -1 to 2"):
        write_features(tmp_path / "f.h5", values, labels=np.full(60, label))


@pytest.mark.parametrize("chunks_stored", [0, 1])
def test_a_shape_bomb_costs_nothing(published, monkeypatch, chunks_stored):
    num_rows, num_features = 10**9, 10**4
    header = with_details(open_features(published).header, num_rows=num_rows)
    set_header(published, replace(header, spec={**header.spec, "num_features": num_features}))
    shapes = {
        "features": ((num_rows, num_features), "<f4"),
        "labels": ((num_rows,), "<i8"),
        "splits": ((num_rows,), "u1"),
        "sample_ids": ((num_rows,), "S200"),
        "digests": ((num_rows, 16), "u1"),
        "stamps": ((num_rows, 3), "<i8"),
        "groups": ((num_rows,), "<i8"),
    }
    with h5py.File(published, "r+") as file:
        for name, (shape, dtype) in shapes.items():
            del file[name]
            chunk = (100, *(min(size, 100) for size in shape[1:]))
            column = file.create_dataset(name, shape, dtype, chunks=chunk, fletcher32=True)
            if chunks_stored:
                column[:100] = np.zeros((), dtype)
    assert published.stat().st_size < 2**23
    monkeypatch.setattr(h5py.Dataset, "__getitem__", read := Mock())
    tracemalloc.start()
    try:
        refused(published, "column 'features' declares values that the file does not hold")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    read.assert_not_called()


def test_names_nobody_asked_for_are_not_looked_at(published, tmp_path, watch):
    foreign = tmp_path / "foreign.h5"
    shutil.copy(published, foreign)
    with h5py.File(published, "r+") as file:
        file["extra"] = h5py.ExternalLink(str(foreign), "/labels")
    was_opened = watch(foreign)
    assert len(open_features(published)) == 60
    assert not was_opened()


# --- who else has it open -----------------------------------------------------------------------

HOLD = """
import h5py, sys
file = h5py.File(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
rows = file["features"]
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path, mode: str, **options: Any) -> Iterator[None]:
    """Have another process hold a file open."""
    command = [sys.executable, "-c", HOLD, path, mode, repr(options)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        yield
        process.communicate("")


ways = pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("r", {}), ("r", {"locking": False}), ("r", {"locking": True}), ("r", {"swmr": True}),
        ("r", {"driver": "core"}), ("r", {"driver": "stdio"}), ("r", {"libver": "latest"}),
        ("r+", {}), ("a", {"locking": False}), ("r+", {"libver": "latest"}),
    ],
)  # fmt: skip


@ways
def test_a_file_that_this_process_has_open_is_read(published, values, mode, options):
    with h5py.File(published, mode, **options) as file:
        rows = file["features"]
        opened = open_features(published)
        assert opened.features.tobytes() == values.tobytes()
        with opened.reading() as rows_at:
            assert np.array_equal(rows_at(np.array([3, 1])), values[[3, 1]])
        assert np.array_equal(rows[:], values)  # it stays open
    verify_features(published)


@pytest.mark.parametrize(("mode", "options"), [("r", {}), ("r+", {}), ("a", {"locking": False})])
def test_a_file_that_another_process_has_open_is_read(published, values, mode, options):
    with held_elsewhere(published, mode, **options):
        assert open_features(published).features.tobytes() == values.tobytes()
    verify_features(published)


def test_a_lock_that_the_environment_enforces_is_named(published, monkeypatch):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")  # which overrides what a program asks for
    code = "import sys, featx; featx.open_features(sys.argv[1])"
    with held_elsewhere(published, "r+"):
        command = [sys.executable, "-c", code, published]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("featx.errors.ArtifactBusy: ")
    assert "is open in a program that may change it. Close it there" in last


def test_a_file_that_is_open_is_replaced_and_its_reader_keeps_the_old_one(published, values):
    with h5py.File(published) as here, held_elsewhere(published, "r"):
        write_features(published, values + 1, overwrite=True)
        assert np.array_equal(here["features"][:], values)
        assert np.array_equal(open_features(published).features, values + 1)


def test_every_truncation_at_a_round_number(published, tmp_path):
    content, damaged = published.read_bytes(), tmp_path / "damaged.h5"
    for size in range(0, len(content) - 1, 512):
        damaged.write_bytes(content[:size])
        with pytest.raises(ArtifactInvalid):
            open_features(damaged)
