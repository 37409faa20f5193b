"""Which numbers may be stored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featx.errors import BackboneError, ConfigError
from featx.features.values import (
    MAX_FLOAT16_LOSS,
    require_finite,
    require_float16,
    require_no_underflow,
)

NAMES = [f"{number}.jpg" for number in range(30)]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.integers(1, 5)), elements=finite)


@given(features=matrices)
def test_numbers_pass(features):
    require_finite(features, NAMES[: len(features)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@given(features=matrices.filter(len), data=st.data())
def test_what_is_no_number_names_its_images(value, features, data):
    bad = data.draw(st.sets(st.integers(0, len(features) - 1), min_size=1))
    features = features.copy()
    for row in bad:
        features[row, data.draw(st.integers(0, features.shape[1] - 1))] = value
    with pytest.raises(BackboneError, match="NaN or infinite") as caught:
        require_finite(features, NAMES[: len(features)])
    for row in range(len(features)):
        assert (f"'{row}.jpg'" in str(caught.value)) == (row in bad)


def test_ten_names_are_enough():
    with pytest.raises(BackboneError, match=r"'9\.jpg' and 20 more\. ") as caught:
        require_finite(np.full((30, 2), np.nan, np.float32), NAMES)
    assert "'10.jpg'" not in str(caught.value)


@given(features=matrices)
def test_float16_that_passes_is_as_close_as_promised(features):
    try:
        require_float16(features, NAMES[: len(features)])
    except ConfigError:
        return
    stored = features.astype(np.float16).astype(np.float64)
    assert np.isfinite(stored).all()
    lost = np.linalg.norm(stored - features, axis=1)
    assert (lost <= MAX_FLOAT16_LOSS * np.linalg.norm(features.astype(np.float64), axis=1)).all()


@given(
    features=hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 6), st.integers(1, 5)),
        elements=st.one_of(st.just(0.0), st.floats(2**-14, 65504, width=32)),
    )
)
def test_rows_in_its_range_pass(features):
    """Zeros too: what is nothing loses nothing."""
    require_float16(features, NAMES[: len(features)])
    require_float16(-features, NAMES[: len(features)])


@pytest.mark.parametrize("value", [65505, -65520, 3e38])
def test_an_overflow_names_image_and_value(value):
    features = np.ones((3, 4), np.float32)
    features[1, 2] = value
    with pytest.raises(ConfigError, match="65,504") as caught:
        require_float16(features, NAMES[:3])
    assert f"'1.jpg' is {abs(value):.6g}. Use float32" in str(caught.value)


@pytest.mark.parametrize("value", [1e-5, 1e-8, 1e-45])
def test_an_underflow_names_the_image(value):
    features = np.ones((3, 4), np.float32)
    features[2] = value
    with pytest.raises(ConfigError, match=r"'2\.jpg' by .*%.*0\.1% allowed.*Use float32"):
        require_float16(features, NAMES[:3])


def test_small_values_beside_large_ones_may_vanish():
    require_float16(np.array([[1, 1e-9, 0]], np.float32), NAMES[:1])


def test_one_bad_row_is_not_hidden_by_good_ones():
    features = np.ones((1000, 8), np.float32)
    features[777] = 1e-9
    with pytest.raises(ConfigError, match="'image 777'"):
        require_float16(features, [f"image {number}" for number in range(1000)])


def test_zeros_alone_are_what_fp16_lost():
    with pytest.raises(ConfigError, match=r"of 8 images are zero.*--precision bf16"):
        require_no_underflow(np.zeros((8, 5), np.float32))


@pytest.mark.parametrize(
    "features", [np.zeros((0, 5)), np.zeros((7, 5)), np.diag([*9 * [0], 1e-12])]
)
def test_some_zeros_are_no_underflow(features):
    require_no_underflow(features.astype(np.float32))
