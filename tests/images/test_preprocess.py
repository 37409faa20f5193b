"""The geometry: pixel for pixel what torchvision's presets do to PIL images."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from featx.errors import ConfigError, ImageError
from featx.images.preprocess import (
    MAX_ASPECT_RATIO,
    PreprocessSpec,
    check_aspect_ratio,
    crop_offset,
    preprocess,
    resized_shape,
    resized_square,
)

SPEC = PreprocessSpec(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = replace(SPEC, image_size=24, resize=29)

specs = st.builds(
    lambda size, more, mean, std, none, interpolation, decode: PreprocessSpec(
        size,
        size if none else size + more,
        mean,
        std,
        "none" if none else "center",
        interpolation,
        decode,
    ),
    st.integers(1, 4096),
    st.integers(0, 4096),
    st.tuples(*[st.floats(-10, 10)] * 3),
    st.tuples(*[st.floats(1e-6, 10)] * 3),
    st.booleans(),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from(["full", "scaled"]),
)


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvision_square(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    filters = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
    size = [spec.resize, spec.resize] if spec.crop == "none" else spec.resize
    steps = transforms.Compose(
        [
            transforms.Resize(size, filters[spec.interpolation], antialias=True),
            transforms.CenterCrop(spec.image_size),
        ]
    )
    return np.asarray(steps(Image.fromarray(pixels)))


class TestGeometry:
    @given(
        height=st.integers(1, 400),
        width=st.integers(1, 400),
        size=st.integers(1, 40),
        more=st.integers(0, 20),
        crop=st.sampled_from(["center", "none"]),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
        seed=st.integers(0, 3),
    )
    @settings(max_examples=200)
    def test_it_is_torchvisions(self, *, height, width, size, more, crop, interpolation, seed):
        assume(max(height, width) <= MAX_ASPECT_RATIO * min(height, width))
        resize = size if crop == "none" else size + more
        spec = replace(SPEC, image_size=size, resize=resize, crop=crop, interpolation=interpolation)
        pixels = noise(height, width, seed=seed)
        found = preprocess(pixels, spec)
        assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
        np.testing.assert_array_equal(found, torchvision_square(pixels, spec))

    @given(
        height=st.integers(1, 400),
        width=st.integers(1, 400),
        size=st.integers(1, 40),
        more=st.integers(0, 20),
        crop=st.sampled_from(["center", "none"]),
    )
    @settings(max_examples=200)
    def test_the_resized_square_has_only_the_crop_left_to_do(
        self, *, height, width, size, more, crop
    ):
        assume(max(height, width) <= MAX_ASPECT_RATIO * min(height, width))
        spec = replace(
            SPEC, image_size=size, resize=size if crop == "none" else size + more, crop=crop
        )
        pixels = noise(height, width)
        square = resized_square(pixels, spec)
        assert square.shape == (spec.resize, spec.resize, 3)
        margin = crop_offset(spec.resize, size)
        cut = square[margin : margin + size, margin : margin + size]
        np.testing.assert_array_equal(cut, preprocess(pixels, spec))
        np.testing.assert_array_equal(preprocess(square, spec), cut)

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("shape", [(375, 500), (500, 375), (256, 256), (224, 300), (333, 999)])
    def test_it_is_torchvisions_at_the_usual_sizes(self, shape, interpolation):
        spec = replace(SPEC, interpolation=interpolation)
        pixels = noise(*shape)
        np.testing.assert_array_equal(preprocess(pixels, spec), torchvision_square(pixels, spec))

    def test_torchvisions_own_preset_agrees(self):
        from torchvision.transforms._presets import ImageClassification

        pixels = noise(301, 417)
        preset = ImageClassification(crop_size=224, mean=SPEC.mean, std=SPEC.std)
        expected = preset(Image.fromarray(pixels)).numpy().transpose(1, 2, 0)
        found = (preprocess(pixels, SPEC) / np.float32(255) - SPEC.mean) / SPEC.std
        np.testing.assert_allclose(found, expected, atol=1e-5)

    @given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 16384))
    def test_the_resized_shape_is_that_of_torchvisions_division(self, height, width, size):
        spec = replace(SPEC, image_size=1, resize=size)
        short, long = min(height, width), max(height, width)
        other = int(size * long / short)  # torchvision/transforms/functional.py
        expected = (size, other) if height <= width else (other, size)
        assert resized_shape(height, width, spec) == expected

    @given(st.integers(1, 4096), st.integers(0, 400))
    def test_the_crop_is_in_the_middle_and_inside(self, size, more):
        offset = crop_offset(size + more, size)
        assert 0 <= offset <= more
        assert abs(2 * offset - more) <= 1
        assert offset == round(more / 2.0)

    def test_an_image_of_the_right_size_is_left_alone(self):
        pixels = noise(29, 29)
        spec = replace(SMALL, image_size=29)
        np.testing.assert_array_equal(preprocess(pixels, spec), pixels)

    def test_only_the_middle_counts_with_a_crop_and_everything_without(self):
        pixels = noise(40, 200)
        changed = pixels.copy()
        changed[:, :20] = 255 - changed[:, :20]
        np.testing.assert_array_equal(preprocess(pixels, SMALL), preprocess(changed, SMALL))
        whole = replace(SMALL, resize=24, crop="none")
        assert (preprocess(pixels, whole) != preprocess(changed, whole)).any()

    def test_a_view_gives_what_its_copy_gives(self):
        view = noise(80, 90)[::2, ::-1]
        expected = preprocess(np.ascontiguousarray(view), SMALL)
        np.testing.assert_array_equal(preprocess(view, SMALL), expected)

    def test_the_input_is_not_touched(self):
        pixels = noise(50, 60)
        before = pixels.copy()
        preprocess(pixels, SMALL)
        np.testing.assert_array_equal(pixels, before)

    @pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
    def test_a_flat_image_stays_flat(self, value):
        for interpolation in ("bilinear", "bicubic"):
            spec = replace(SMALL, interpolation=interpolation)
            flat = np.full((61, 37, 3), value, np.uint8)
            assert (preprocess(flat, spec) == value).all()


class TestSpec:
    @given(specs)
    def test_it_survives_json(self, spec):
        values = json.loads(json.dumps(spec.to_dict()))
        assert PreprocessSpec.from_dict(values) == spec
        assert PreprocessSpec.from_dict(values).to_dict() == spec.to_dict()

    def test_full_decoding_is_not_spelled_out(self):
        """So that specs, and with them fingerprints, of before there was another way stay."""
        assert "decode" not in SPEC.to_dict()
        assert PreprocessSpec.from_dict(SPEC.to_dict()).decode == "full"
        assert replace(SPEC, decode="scaled").to_dict() == SPEC.to_dict() | {"decode": "scaled"}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_size": 0}, "image_size must be 1 to 4096 pixels; got 0"),
            ({"image_size": -5}, "image_size must be 1 to 4096 pixels; got -5"),
            ({"image_size": 4097, "resize": 5000}, "image_size must be 1 to 4096 pixels; got 4097"),
            ({"image_size": 224.5}, "image_size must be a whole number; got 224.5"),
            ({"image_size": "224"}, "image_size must be a whole number; got '224'"),
            ({"image_size": True}, "image_size must be a whole number; got True"),
            ({"resize": None}, "resize must be a whole number; got None"),
            ({"resize": 223}, r"at least the image size \(224 pixels\) and at most 16384; got 223"),
            ({"resize": 16385}, "at most 16384; got 16385"),
            ({"crop": "middle"}, "crop must be one of center, none, squash, border; got 'middle'"),
            ({"crop": None}, "crop must be one of center, none, squash, border; got None"),
            ({"crop": "none"}, "a resize of 256 cannot be kept. Leave out resize=…"),
            ({"decode": "half"}, "decode must be one of full, scaled; got 'half'"),
            ({"interpolation": "nearest"}, "must be one of bilinear, bicubic; got 'nearest'"),
            ({"std": (1, 0, 1)}, r"std above 0; got .*\(1, 0, 1\)"),
            ({"std": (1, -1, 1)}, "std above 0"),
            ({"std": (1, 1)}, "need three finite values"),
            ({"mean": (0, 0, 0, 0)}, "need three finite values"),
            ({"mean": ()}, "need three finite values"),
            ({"mean": (0, float("nan"), 0)}, "need three finite values"),
            ({"std": (float("nan"), 1, 1)}, "need three finite values"),
            ({"std": (1, float("inf"), 1)}, "need three finite values"),
        ],
        ids=str,
    )
    def test_values_that_cannot_be_are_named(self, change, message):
        with pytest.raises(ConfigError, match=message):
            replace(SPEC, **change)

    @pytest.mark.parametrize(
        "values",
        [
            {},
            {"mean": 1, "std": 2},
            {"mean": [0], "std": [1]},
            {key: value for key, value in SPEC.to_dict().items() if key != "resize"},
            SPEC.to_dict() | {"colour": "red"},
            SPEC.to_dict() | {"mean": ["a", "b", "c"]},
            SPEC.to_dict() | {"image_size": None},
        ],
        ids=str,
    )
    def test_what_is_no_spec_is_refused(self, values):
        with pytest.raises(ConfigError):
            PreprocessSpec.from_dict(values)


def overridden(
    spec: PreprocessSpec = SPEC,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    crop: Any = None,
) -> PreprocessSpec:
    return spec.with_overrides(image_size=image_size, resize=resize, crop=crop)


class TestOverrides:
    @given(specs)
    def test_none_of_them_changes_nothing(self, spec):
        assert overridden(spec) == spec

    def test_an_image_size_alone_fills_the_square(self):
        found = overridden(image_size=96)
        assert (found.image_size, found.resize, found.crop) == (96, 96, "center")

    def test_an_image_size_with_its_resize(self):
        found = overridden(image_size=96, resize=110)
        assert (found.image_size, found.resize) == (96, 110)

    def test_a_resize_alone(self):
        assert overridden(resize=300) == replace(SPEC, resize=300)

    def test_no_crop_squeezes_the_whole_image(self):
        found = overridden(crop="none")
        assert (found.image_size, found.resize, found.crop) == (224, 224, "none")
        assert overridden(found, image_size=64).resize == 64

    def test_back_to_a_crop(self):
        found = overridden(overridden(crop="none"), crop="center", resize=256)
        assert found == SPEC

    def test_mean_std_and_interpolation_stay(self):
        spec = replace(SPEC, interpolation="bicubic")
        found = overridden(spec, image_size=96, crop="none")
        assert (found.mean, found.std, found.interpolation) == (spec.mean, spec.std, "bicubic")

    def test_the_way_to_decode_is_one(self):
        spec = replace(SPEC, decode="scaled")
        assert spec.with_overrides(image_size=96, resize=None, crop=None).decode == "scaled"
        changed = SPEC.with_overrides(image_size=None, resize=None, crop=None, decode="scaled")
        assert changed == spec

    @pytest.mark.parametrize(
        "values",
        [
            {"image_size": 0},
            {"image_size": -1},
            {"resize": 0},
            {"resize": 100},
            {"crop": ""},
            {"crop": "none", "resize": 300},
            {"image_size": 300, "resize": 299},
        ],
        ids=str,
    )
    def test_values_that_cannot_be_are_refused_not_ignored(self, values):
        with pytest.raises(ConfigError):
            overridden(**values)


class TestAspectRatio:
    @given(st.integers(1, 10**5), st.integers(1, 10**5))
    def test_the_limit_is_the_ratio_of_the_sides(self, height, width):
        if max(height, width) / min(height, width) <= MAX_ASPECT_RATIO:
            check_aspect_ratio(height, width, sample_id="a")
        else:
            with pytest.raises(ImageError, match=f"'a': {width}×{height} pixels is too narrow"):
                check_aspect_ratio(height, width, sample_id="a")


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (40, 40), (32, 32), (32, 50), (9, 80)])
@pytest.mark.parametrize("crop", ["center", "none"])
def test_a_pil_image_gives_the_pixels_of_its_array(shape, crop):
    spec = replace(SPEC, image_size=32, resize=40 if crop == "center" else 32, crop=crop)
    pixels = noise(*shape, seed=1)
    found = preprocess(Image.fromarray(pixels), spec)
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found, preprocess(pixels, spec))
    np.testing.assert_array_equal(found, torchvision_square(pixels, spec))
