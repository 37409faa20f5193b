"""Activations at a cut and views: what was appended comes back to the bit, on every path."""

from __future__ import annotations

import numpy as np
import pytest
from activations import write_activations
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.features.blocks import reading_activations
from featx.features.file import open_features, verify_features
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


@settings(max_examples=40, deadline=None)
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
