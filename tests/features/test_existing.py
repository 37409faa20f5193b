"""The rows of file and log under one numbering."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from feature_files import append_rows, batch_of, make_columns, make_header, write_features
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ArtifactInvalid
from featx.features.file import open_features
from featx.features.journal import Journal
from featx.features.publish import ExistingRows
from featx.features.records import RowLayout


@settings(max_examples=40, deadline=None)
@given(
    num_in_file=st.integers(0, 40),
    sizes=st.lists(st.integers(0, 9), max_size=6),
    half=st.booleans(),
    data=st.data(),
)
def test_any_row_is_found_wherever_it_is(num_in_file, sizes, half, data):
    num_rows = num_in_file + sum(sizes)
    columns = make_columns(num_rows)
    rows = np.random.default_rng(0).normal(size=(num_rows, 5)).astype(np.float32)
    if half:
        rows = rows.astype(np.float16).astype(np.float32)
    wanted = np.array(
        data.draw(st.lists(st.integers(0, num_rows - 1)) if num_rows else st.just([])), np.int64
    )
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder) / "f.h5", None
        if num_in_file:
            first = {name: column[:num_in_file] for name, column in columns.items()}
            dtype = "float16" if half else "float32"
            write_features(path, rows[:num_in_file], dtype=dtype, **first)
            file = open_features(path)
        with Journal(path, layout=RowLayout((5,))) as journal:
            journal.begin({})
            start = num_in_file
            for size in sizes:
                part = {name: column[start : start + size] for name, column in columns.items()}
                append_rows(journal, rows[start : start + size], part, size or 1)
                start += size
            known = ExistingRows(file, journal)
            assert (known.num_in_file, known.next_row) == (num_in_file, num_rows)
            assert np.array_equal(known.digests(), columns["digests"])
            with known.reading() as rows_at:
                block = rows_at(wanted)
    assert block.features.tobytes() == rows[wanted].tobytes()
    assert np.array_equal(block.digests, columns["digests"][wanted])
    assert np.array_equal(block.stamps, columns["stamps"][wanted])


def test_what_is_known_of_images_names_their_rows(tmp_path, values):
    skipped = [["gone", "it was empty", [5, 6, 7]]]
    path = tmp_path / "f.h5"
    write_features(path, values, header=make_header(8, skipped=skipped))
    with Journal(path, layout=RowLayout((8,))) as journal:
        journal.begin({})
        journal.append(batch_of(["a", "b", "c"], bad=["b"]))
        journal.append(batch_of(["d", "e"], bad=["d", "e"]))
        journal.append(batch_of(["f"]))
        known = ExistingRows(open_features(path), journal)
        blocks = list(known.images())
        with known.reading() as rows_at:
            assert np.array_equal(rows_at(np.array([61])).features, batch_of(["c"]).features)
    in_file, left_out, *in_log = blocks
    assert [block.sample_ids for block in in_log] == [("a", "b", "c"), ("d", "e"), ("f",)]
    assert [block.rows.tolist() for block in in_log] == [[60, -1, 61], [-1, -1], [62]]
    assert in_log[0].reasons == ("", "b is broken", "")
    assert np.array_equal(in_log[0].stamps, batch_of(["a", "b", "c"]).stamps)
    assert in_file.rows.tolist() == list(range(60))
    assert np.array_equal(in_file.stamps, open_features(path).stamps)
    assert (left_out.sample_ids, left_out.reasons) == (("gone",), ("it was empty",))
    assert left_out.rows.tolist() == [-1]
    assert left_out.stamps.tolist() == [[5, 6, 7]]


def test_a_file_that_was_replaced_meanwhile_is_not_mixed_in(published, values):
    with Journal(published, layout=RowLayout((8,))) as journal:
        known = ExistingRows(open_features(published), journal)
        write_features(published, values + 1, overwrite=True)
        with pytest.raises(ArtifactInvalid, match="was replaced"), known.reading():
            pytest.fail("opened")
