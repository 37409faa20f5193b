"""Layouts of rows in a journal: any shape, type and number of views, and no other's rows."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from activations import append_batches, values_of
from feature_files import batch_of, make_columns
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ArtifactMismatch, ConfigError
from featx.features.journal import Journal
from featx.features.records import Batch, RowLayout, pack, read_record, require_float16, unpack

LAYOUTS = st.builds(
    RowLayout,
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["float16", "float32", "uint8"]),
    st.integers(0, 3),
)
MAPS = RowLayout((2, 3), "float16", 2)


def equal(a: Batch, b: Batch) -> bool:
    same = all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes()
        for name in ("stamps", "digests", "features")
    )
    views = b"" if a.views is None else a.views.tobytes()
    return (
        same
        and (a.sample_ids, a.reasons) == (b.sample_ids, b.reasons)
        and views == (b"" if b.views is None else b.views.tobytes())
    )


@st.composite
def batches(draw: st.DrawFn, layout: RowLayout) -> Batch:
    names = [str(i) for i in range(draw(st.integers(0, 5)))]
    bad = [name for name in names if draw(st.booleans())]
    images = batch_of(names, bad=bad)
    features, views = values_of(layout, len(images.features), draw(st.integers(0, 99)))
    has_views = layout.num_views > 0 and draw(st.booleans())
    return Batch(
        *(images.sample_ids, images.stamps, images.digests, images.reasons, features),
        views if has_views else None,
    )


@given(data=st.data(), layout=LAYOUTS)
def test_a_batch_comes_back_to_the_bit_with_its_views_or_without(data, layout):
    batch = data.draw(batches(layout))
    found = unpack(pack(batch, layout), layout)
    assert equal(found, batch)
    assert found.features.dtype == layout.dtype
    assert (found.views is None) == (batch.views is None or not len(batch.features))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), layout=LAYOUTS)
def test_a_journal_cut_at_any_byte_resumes(data, layout, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "f.h5"
    parts = data.draw(st.lists(batches(layout), min_size=1, max_size=4))
    with Journal(path, layout=layout) as journal:
        journal.begin({"a": 1})
        for part in parts:
            journal.append(part)
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with Journal(path, layout=layout) as journal:
        kept = list(journal.batches())
        assert len(kept) <= len(parts)
        if not kept:
            journal.begin({"a": 1})
        for part in parts[len(kept) :]:
            journal.append(part)
    with Journal(path, layout=layout) as journal:
        assert all(equal(a, b) for a, b in zip(journal.batches(), parts, strict=True))
        has_views = [part.views is not None for part in parts for _ in part.features]
        assert journal.has_views().tolist() == has_views
        rows = journal.rows(np.arange(journal.num_rows))
        assert rows.has_views.tolist() == has_views
        assert rows.features.tobytes() == b"".join(part.features.tobytes() for part in parts)
        if rows.views is not None:
            views = [part.views for part in parts if part.views is not None]
            assert rows.views[rows.has_views].tobytes() == b"".join(v.tobytes() for v in views)
            assert not rows.views[~rows.has_views].any()


def write_journal(path: Path, layout: RowLayout) -> bytes:
    columns = make_columns(12)
    with Journal(path, layout=layout) as journal:
        journal.begin({"a": 1})
        append_batches(journal, *values_of(layout, 12), columns, 3)
    return journal.path.read_bytes()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (MAPS, RowLayout((3, 2), "float16", 2)),
        (MAPS, RowLayout((2, 3), "float32", 2)),
        (MAPS, RowLayout((2, 3), "float16")),
        (MAPS, RowLayout((6,))),
        (RowLayout((6,)), MAPS),
        (RowLayout((6,)), RowLayout((6,), num_views=1)),
        (RowLayout((6,)), RowLayout((12,), "float16")),
        (RowLayout((4, 2, 3), "uint8"), RowLayout((6,))),
    ],
)
def test_a_journal_of_another_layout_is_refused_and_kept(tmp_path, first, second):
    path = tmp_path / "f.h5"
    content = write_journal(path, first)
    with Journal(path, layout=second) as journal:
        batch = Batch((), np.empty((0, 3)), np.empty((0, 16)), (), np.empty((0, second.size)))
        looks = (
            lambda: list(journal.batches()),
            lambda: journal.rows(np.arange(2)),
            lambda: journal.append(batch),
        )
        for look in looks:
            with pytest.raises(ArtifactMismatch, match="holds rows of another layout than") as err:
                look()
            assert str(second) in str(err.value)
            assert "restart=True" in str(err.value)
        assert journal.path.read_bytes() == content
        journal.begin({})
    write_journal(path, second)


def test_a_journal_of_vectors_does_not_name_its_layout(tmp_path):
    assert b"layout" not in write_journal(tmp_path / "f.h5", RowLayout((6,)))[:200]
    maps = write_journal(tmp_path / "g.h5", MAPS)[:200]
    assert b'"layout":{"dtype":"float16","num_views":2,"shape":[2,3]}' in maps


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_rows_of_another_type_are_not_converted(dtype):
    batch = batch_of(["a"])
    rows = Batch(batch.sample_ids, batch.stamps, batch.digests, ("",), np.ones((1, 6), dtype))
    with pytest.raises(ValueError, match="do not fit 2 × 3 float16"):
        pack(rows, MAPS)


def test_a_layout_says_its_size_and_bytes():
    layout = RowLayout((256, 14, 14), "float16", 4)
    assert (layout.size, layout.row_bytes) == (50176, 100352)
    assert str(layout) == "256 × 14 × 14 float16 with 4 views"
    assert str(RowLayout((512,))) == "512 float32"


@pytest.mark.parametrize("value", [65504.5, 65520, -65521, 1e30, np.inf])
def test_activations_that_overflow_name_image_cut_and_option(value):
    rows = np.ones((3, 2, 5), np.float32)
    rows[1, 1, 3] = value
    with pytest.raises(ConfigError, match=r"an activation of 'b' at the cut 'layer4' is") as err:
        require_float16(rows, "abc", cut="layer4")
    assert "Use dtype='float32'" in str(err.value)
    require_float16(np.full((2, 3, 3), 65504, np.float32), "ab", cut="layer4")


def test_activations_too_small_for_float16_name_image_cut_and_option(monkeypatch):
    monkeypatch.setattr("featx.features.records._AT_ONCE", 8)
    rows = np.random.default_rng(0).normal(size=(4, 2, 5)).astype(np.float32)
    require_float16(rows, "abcd", cut="layer4")
    rows[2] *= 1e-7
    message = r"the activations of 'c' at the cut 'layer4' by .*Use dtype='float32'"
    with pytest.raises(ConfigError, match=message):
        require_float16(rows, "abcd", cut="layer4")


def test_each_record_is_read_once_by_readers_of_ascending_rows(tmp_path, monkeypatch):
    write_journal(tmp_path / "f.h5", MAPS)
    with Journal(tmp_path / "f.h5", layout=MAPS) as journal:
        num_records = len(list(journal.batches()))
        read = Mock(side_effect=read_record)
        monkeypatch.setattr("featx.features.journal.read_record", read)
        for row in range(12):
            journal.rows(np.array([row]))
        assert read.call_count == num_records > 3


def test_records_longer_than_the_system_reads_at_once(tmp_path, monkeypatch):
    content = write_journal(tmp_path / "f.h5", MAPS)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, place: pread(file, min(size, 100), place))
    with Journal(tmp_path / "f.h5", layout=MAPS) as journal:
        assert journal.num_rows == 12
        assert journal.rows(np.arange(12)).features.tobytes() == values_of(MAPS, 12)[0].tobytes()
        assert journal.path.read_bytes() == content
