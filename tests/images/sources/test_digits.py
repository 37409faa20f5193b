"""The built-in digits."""

from __future__ import annotations

import numpy as np

from featx.images.sources import open_source
from featx.images.sources.arrays import open_digits


def test_all_digits_are_there():
    source = open_digits()
    assert len(source.samples) == 1797
    assert source.classes == tuple("0123456789")
    assert {sample.split for sample in source.samples} == {"train"}
    labels = [sample.label for sample in source.samples]
    assert labels[:12] == [*range(10), 0, 1]
    assert all(170 < labels.count(digit) < 190 for digit in range(10))


def test_ids_are_unique_and_in_order():
    ids = [sample.sample_id for sample in open_digits().samples]
    assert ids[0] == "digits/0000"
    assert ids[-1] == "digits/1796"
    assert ids == sorted(set(ids))


def test_pixels_are_grey_and_use_the_whole_range():
    source = open_digits()
    images = np.stack([source.read(index) for index in range(0, 1797, 10)])
    assert images.shape[1:] == (8, 8, 3)
    assert images.dtype == np.uint8
    assert (images == images[..., :1]).all()
    assert (images.min(), images.max()) == (0, 255)
    assert len(np.unique(images)) == 17  # the levels 0 to 16


def test_two_openings_agree_and_the_uri_finds_it_again():
    one, two = open_digits(), open_source(open_digits().uri)
    assert one.samples == two.samples
    np.testing.assert_array_equal(one.read(7), two.read(7))


def test_digits_never_change():
    source = open_digits()
    assert {source.stamp(index) for index in (0, 900, 1796)} == {(0, 0, 0)}
