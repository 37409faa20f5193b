"""Views: drawn from content and number alone, within their ranges, and rendered as drawn."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from featx.errors import ConfigError
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.views import View, ViewsSpec, draw_view, render_view

PLAIN = PreprocessSpec(image_size=32, resize=40, mean=(0, 0, 0), std=(1, 1, 1))
ALL = ViewsSpec(8, augment=("crop", "flip", "color"))


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def photo(height: int = 60, width: int = 90) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def test_what_is_drawn_never_changes():
    drawn = [draw_view(ALL, digest(0), number, height=375, width=500) for number in (1, 2, 3)]
    assert [(view.box, view.flip) for view in drawn] == WRITTEN_DOWN
    assert drawn[0].factors == pytest.approx(FACTORS, abs=1e-9)


WRITTEN_DOWN = [
    ((44, 114, 362, 368), True),
    ((176, 9, 437, 317), False),
    ((131, 6, 416, 375), True),
]
FACTORS = (1.3384911501404293, 1.2229904926128463, 0.9154847682275083)


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    image=st.integers(0, 1000),
    number=st.integers(1, 8),
)
def test_boxes_lie_in_the_image(height: int, width: int, image: int, number: int):
    view = draw_view(ALL, digest(image), number, height=height, width=width)
    assert view.box is not None
    left, top, right, bottom = view.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert view.factors is not None
    assert all(0.6 <= factor <= 1.4 for factor in view.factors)


def test_areas_shapes_and_flips_spread_over_their_ranges():
    views = [draw_view(ALL, digest(i), 1 + i % 8, height=300, width=400) for i in range(4000)]
    boxes = np.array([view.box for view in views])
    sides = boxes[:, 2:] - boxes[:, :2]
    shares = sides.prod(axis=1) / (300 * 400)
    ratios = sides[:, 0] / sides[:, 1]
    assert 0.34 < shares.min() < 0.37
    assert shares.max() > 0.97
    assert 0.74 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.35
    assert abs(np.mean([view.flip for view in views]) - 0.5) < 0.03


def test_no_two_views_of_an_image_are_alike():
    views = {draw_view(ALL, digest(5), number, height=300, width=400) for number in range(1, 9)}
    assert len(views) == 8
    boxes = {draw_view(ALL, digest(i), 1, height=300, width=400).box for i in range(200)}
    assert len(boxes) == 200


def test_what_is_not_asked_for_changes_nothing_else():
    for number in range(1, 9):
        whole = draw_view(ALL, digest(1), number, height=300, width=400)
        crop = draw_view(ViewsSpec(8, augment=("crop",)), digest(1), number, height=300, width=400)
        flip = draw_view(ViewsSpec(8, augment=("flip",)), digest(1), number, height=300, width=400)
        assert crop == View(box=whole.box)
        assert flip == View(flip=whole.flip)


def test_a_view_of_nothing_is_the_evaluation_view():
    pixels = render_view(photo(), View(), PLAIN)
    assert np.array_equal(pixels, preprocess(photo(), PLAIN))


def test_a_view_shows_its_box_flipped_and_changed():
    box = (10, 20, 42, 52)  # as large as the network's input: only cut
    cut = np.asarray(photo().crop(box))
    assert np.array_equal(render_view(photo(), View(box=box), PLAIN), cut)
    assert np.array_equal(render_view(photo(), View(box=box, flip=True), PLAIN), cut[:, ::-1])
    darker = render_view(photo(), View(box=box, factors=(0.5, 1.0, 1.0)), PLAIN)
    assert np.abs(darker.astype(float) - cut / 2).max() <= 1


def test_the_spec_is_read_as_it_was_written():
    spec = ViewsSpec(3, augment=("color",), scale=(0.2, 0.9))
    assert ViewsSpec.from_dict(spec.to_dict()) == spec
    assert spec.fingerprint != ViewsSpec(3, augment=("color",)).fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_views": 0}, "views must be 1 to 1000; got 0"),
        ({"augment": ("rotate",)}, "augment takes each of crop, flip, color"),
        ({"augment": ("flip", "flip")}, "at most once"),
        ({"scale": (0.0, 1.0)}, "scale must be two shares"),
        ({"ratio": (2.0, 1.0)}, "ratio must be two numbers"),
        ({"jitter": math.nan}, "jitter must be at least 0"),
        ({"version": 2}, "draws views of version 1, not 2"),
        ({"colour": 1}, "not a spec of views"),
    ],
)
def test_a_bad_spec_is_refused(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        ViewsSpec.from_dict(ViewsSpec(2).to_dict() | values)
