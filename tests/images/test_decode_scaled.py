"""Decoding JPEGs scaled: when, by how much, and with every rule that holds for full decoding."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from featx.errors import ImageError
from featx.images.decode import decode_image, decoded, rgb_image
from featx.images.preprocess import PreprocessSpec, draft_size, preprocess, resized_shape

ID = "ants/some image.jpg"
FULL = PreprocessSpec(image_size=20, resize=24, mean=(0, 0, 0), std=(1, 1, 1))
SCALED = replace(FULL, decode="scaled")
SQUEEZED = replace(SCALED, resize=20, crop="none")

JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "subsampled": {"subsampling": 2},
    "not subsampled": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
}
MODES = ("RGB", "L", "CMYK")


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Return a gradient with stripes, so that no two places look alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    stripes = 40 * ((rows // 9 + columns // 13) % 2)
    planes = [rows * 215 / height, columns * 215 / width, (rows + columns) * 215 / (height + width)]
    pixels = np.stack([plane + stripes for plane in planes], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, *, orientation: int = 1, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **{"quality": 92} | options)
    return file.getvalue()


def scaled(content: bytes, spec: PreprocessSpec = SCALED) -> np.ndarray:
    return decode_image(content, sample_id=ID, preprocess=spec)


def refusal(content: bytes, spec: PreprocessSpec) -> str | None:
    try:
        decode_image(content, sample_id=ID, preprocess=spec)
    except ImageError as err:
        return err.reason
    return None


class TestRule:
    @given(
        size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
        resize=st.integers(1, 120),
        squeeze=st.booleans(),
        orientation=st.sampled_from(range(1, 9)),
    )
    @settings(max_examples=80)
    def test_never_below_twice_the_target_and_as_small_as_that_allows(
        self, size, resize, squeeze, orientation
    ):
        height, width = size
        if max(size) > 100 * min(size):
            return
        crop: Any = "none" if squeeze else "center"
        spec = replace(SCALED, image_size=resize, resize=resize, crop=crop)
        content = jpeg(Image.new("L", (width, height), 99), orientation=orientation)
        whole = decode_image(content, sample_id=ID).shape[:2]
        found = scaled(content, spec).shape[:2]
        factor = next(f for f in (1, 2, 4, 8) if found == tuple(-(-side // f) for side in whole))
        target = resized_shape(*whole, spec)
        assert factor == 1 or all(side >= 2 * new for side, new in zip(found, target, strict=True))
        if factor < 8:
            beyond = [side // (2 * factor) for side in whole]
            assert any(side < 2 * new for side, new in zip(beyond, target, strict=True))

    @pytest.mark.parametrize(
        ("side", "factor"), [(47, 1), (95, 1), (96, 2), (191, 2), (192, 4), (384, 8), (3000, 8)]
    )
    def test_a_half_a_quarter_an_eighth(self, side, factor):
        content = jpeg(Image.new("RGB", (side, side)))
        assert scaled(content).shape == (-(-side // factor), -(-side // factor), 3)

    def test_a_size_is_only_asked_for_where_it_is_wanted(self):
        assert draft_size(3000, 4000, FULL) is None
        assert draft_size(3000, 4000, SCALED) == (48, 64)
        assert draft_size(3000, 4000, SQUEEZED) == (40, 40)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
    def test_other_formats_are_decoded_in_full(self, kind):
        file = io.BytesIO()
        picture(300, 400).save(file, kind)
        np.testing.assert_array_equal(
            scaled(file.getvalue()), decode_image(file.getvalue(), sample_id=ID)
        )

    def test_pixels_and_open_images_are_taken_as_they_are(self):
        pixels = np.asarray(picture(300, 400))
        assert decoded(pixels, sample_id=ID, preprocess=SCALED) is pixels
        with Image.open(io.BytesIO(jpeg(picture(300, 400)))) as image:
            assert rgb_image(image, sample_id=ID).size == (400, 300)
            assert image.size == (400, 300)


class TestPixels:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("options", JPEGS.values(), ids=list(JPEGS))
    @pytest.mark.parametrize("spec", [SCALED, SQUEEZED], ids=["center", "none"])
    def test_the_square_looks_as_if_decoded_in_full(self, mode, options, spec):
        content = jpeg(picture(451, 602, mode), **options)
        whole, part = decode_image(content, sample_id=ID), scaled(content, spec)
        assert part.shape == (57, 76, 3)
        off = np.abs(preprocess(whole, spec).astype(int) - preprocess(part, spec))
        assert off.mean() < 3

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied(self, orientation):
        content = jpeg(picture(451, 602), orientation=orientation)
        whole, part = decode_image(content, sample_id=ID), scaled(content)
        assert part.shape[:2] == ((76, 57) if orientation >= 5 else (57, 76))
        off = np.abs(preprocess(whole, SCALED).astype(int) - preprocess(part, SCALED))
        assert off.mean() < 3

    @pytest.mark.parametrize("options", JPEGS.values(), ids=list(JPEGS))
    def test_small_images_keep_every_pixel(self, options):
        for height, width in ((1, 1), (20, 30), (47, 95), (95, 95)):
            content = jpeg(picture(height, width), **options)
            np.testing.assert_array_equal(scaled(content), decode_image(content, sample_id=ID))

    def test_the_first_picture_of_a_camera_is_used(self):
        pictures = [picture(400, 500), picture(200, 100)]
        content = jpeg(pictures[0], kind="MPO", save_all=True, append_images=pictures[1:])
        assert Image.open(io.BytesIO(content)).format == "MPO"
        assert scaled(content).shape == (50, 63, 3)

    @pytest.mark.parametrize("function", [decode_image, decoded])
    def test_every_way_gives_the_same(self, function):
        content = jpeg(picture(400, 500))
        found = np.asarray(function(content, sample_id=ID, preprocess=SCALED))
        np.testing.assert_array_equal(found, scaled(content))
        whole = np.asarray(function(content, sample_id=ID, preprocess=FULL))
        np.testing.assert_array_equal(whole, np.asarray(function(content, sample_id=ID)))
        assert whole.shape == (400, 500, 3)


class TestRefusals:
    def test_the_limit_is_for_the_whole_image(self):
        content = jpeg(picture(100, 100))
        assert scaled(content).shape == (50, 50, 3)
        with pytest.raises(ImageError, match="100×100 pixels is more than the 9999 allowed"):
            decode_image(content, sample_id=ID, max_pixels=9_999, preprocess=SCALED)

    def test_too_narrow_is_too_narrow(self):
        content = jpeg(Image.new("L", (20_200, 200)))
        with pytest.raises(ImageError, match="too narrow"):
            scaled(content)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("options", JPEGS.values(), ids=list(JPEGS))
    def test_what_is_cut_short_is_refused_as_in_full(self, mode, options):
        """A part is used only where both ways find all of it."""
        content, dice = jpeg(picture(120, 130, mode), **options), random.Random(7)
        whole = scaled(content)
        cuts = {*dice.sample(range(len(content)), 25), *range(len(content) - 25, len(content))}
        for length in cuts:
            beginning = content[:length]
            assert refusal(beginning, SCALED) == refusal(beginning, FULL)
            if refusal(beginning, SCALED) is None:
                np.testing.assert_array_equal(scaled(beginning), whole)
