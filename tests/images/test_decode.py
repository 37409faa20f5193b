"""Decoding: every kind of file that a folder of images may hold, good, odd, damaged or hostile."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from featx.errors import ConfigError, ImageError
from featx.images import decode
from featx.images.decode import (
    DIGEST_BYTES,
    FORMATS,
    MAX_PIXELS,
    check_max_pixels,
    content_digest,
    decode_image,
    is_animated,
    read_image_file,
    rgb_image,
)
from featx.images.preprocess import MAX_ASPECT_RATIO

ID = "ants/some image.jpg"
LOSSLESS = ("PNG", "BMP", "TIFF", "WEBP")


def noise(height: int = 20, width: int = 30, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    options = {"lossless": True, "exact": True} | options if kind == "WEBP" else options
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    """Return a gradient: JPEG keeps it nearly as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)]
    return np.stack(planes, axis=2).astype(np.uint8)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width: int, height: int, rows: bytes = b"", *, depth: int = 8, cut: int = 0) -> bytes:
    """Return an RGB PNG that claims a size; its rows are what is given, ``cut`` bytes short."""
    content = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", content[: len(content) - cut]),
            png_chunk(b"IEND", b""),
        )
    )


def refused(content: bytes, message: str | None = None) -> ImageError:
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(content, sample_id=ID)
    assert caught.value.sample_id == ID
    assert ID in str(caught.value)
    assert caught.value.reason.endswith(".")
    assert not caught.value.reason.endswith((" .", ": .", ".."))
    return caught.value


def decoded(content: bytes) -> np.ndarray:
    pixels = decode_image(content, sample_id=ID)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return pixels


class TestFormats:
    @pytest.mark.parametrize("kind", LOSSLESS)
    @given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 9))
    @settings(max_examples=15)
    def test_lossless_pixels_come_back(self, kind, height, width, seed):
        pixels = noise(height, width, seed=seed)
        np.testing.assert_array_equal(decoded(encode(pixels, kind)), pixels)

    def test_jpeg_comes_back_nearly(self):
        pixels = smooth()
        found = decoded(encode(pixels, "JPEG", quality=98))
        assert np.abs(found.astype(int) - pixels).max() <= 8

    @pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 2}, {"quality": 5}])
    def test_all_sorts_of_jpeg_open(self, options):
        assert decoded(encode(smooth(), "JPEG", **options)).shape == (40, 60, 3)

    @pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "TGA", "SGI", "PDF", "EPS", "JPEG2000"])
    def test_formats_that_are_not_allowed_are_refused(self, kind):
        message = "not an image of a known format \\(JPEG, PNG"
        refused(encode(noise(16, 16), kind), message)

    @pytest.mark.parametrize(
        "content",
        [
            b"<html><body>404 Not Found</body></html>",
            b"{}",
            b"\0" * 1000,
            "grüße".encode(),
            b"\x00\x05\x16\x07" + b"\0" * 80,  # AppleDouble, ._photo.jpg
        ],
    )
    def test_text_and_the_like_are_refused(self, content):
        refused(content, "not an image of a known format")

    def test_an_empty_file_is_called_empty(self):
        assert refused(b"").reason == "the file is empty."

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
    def test_of_an_animation_the_first_frame_counts(self, kind):
        frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        with Image.open(io.BytesIO(content)) as image:
            assert image.n_frames == 3  # type: ignore[attr-defined]
        assert (decoded(content) == (255, 0, 0)).all()


class TestModes:
    def test_grey_becomes_three_equal_channels(self):
        grey = noise()[:, :, 0]
        expected = np.repeat(grey[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(decoded(encode(grey)), expected)

    def test_black_and_white(self):
        bits = noise()[:, :, 0] > 127
        expected = np.repeat(bits[:, :, None], 3, axis=2) * np.uint8(255)
        np.testing.assert_array_equal(decoded(encode(Image.fromarray(bits))), expected)

    def test_palette_becomes_its_colours(self):
        image = Image.fromarray(noise()).convert("P")
        expected = np.asarray(image.convert("RGB"))
        for kind in ("PNG", "GIF", "BMP"):
            np.testing.assert_array_equal(decoded(encode(image, kind)), expected)

    def test_cmyk_becomes_the_colours_it_prints(self):
        image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # cyan 0, magenta and yellow full
        found = decoded(encode(image, "JPEG", quality=100))
        assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3

    @given(seed=st.integers(0, 50))
    def test_transparent_pixels_lie_over_white(self, seed):
        layers = np.random.default_rng(seed).integers(0, 256, (5, 7, 4), dtype=np.uint8)
        alpha = layers[:, :, 3:].astype(float) / 255
        expected = layers[:, :, :3] * alpha + 255 * (1 - alpha)
        for kind in ("PNG", "WEBP", "TIFF"):
            found = decoded(encode(Image.fromarray(layers, "RGBA"), kind))
            assert np.abs(found - expected).max() <= 1

    def test_opaque_red_is_red(self):
        assert (decoded(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 255)))) == (255, 0, 0)).all()

    def test_grey_with_alpha_lies_over_white(self):
        for alpha, grey in ((1, 254), (255, 40), (128, 147)):
            found = decoded(encode(Image.new("LA", (4, 4), (40, alpha))))
            assert np.abs(found.astype(int) - grey).max() <= 1

    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_a_transparent_palette_entry_is_white(self, kind):
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.putdata([0, 1])
        found = decoded(encode(image, kind, transparency=0))
        assert found.tolist() == [[[255, 255, 255], [0, 255, 0]]]

    def test_palette_entries_may_be_half_transparent(self):
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putdata([0, 1])
        found = decoded(encode(image, transparency=bytes([0, 128])))
        assert found[0, 0].tolist() == [255, 255, 255]
        assert np.abs(found[0, 1].astype(int) - 127).max() <= 1

    def test_a_transparent_colour_is_white(self):
        pixels = np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
        found = decoded(encode(pixels, transparency=(255, 0, 0)))
        assert found.tolist() == [[[255, 255, 255], [0, 0, 255]]]

    def test_sixteen_bits_are_scaled_not_cut(self):
        grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        expected = np.round(grey / 65535 * 255).astype(np.uint8)
        for kind in ("PNG", "TIFF"):
            found = decoded(encode(Image.fromarray(grey), kind))
            np.testing.assert_array_equal(found, np.repeat(expected[:, :, None], 3, axis=2))

    def test_sixteen_bits_of_either_byte_order(self):
        for mode in ("I;16", "I;16B"):
            image = Image.new(mode, (3, 2), 65535 // 5)
            assert (decoded(encode(image, "TIFF")) == 51).all()

    def test_a_transparent_sixteen_bit_grey_is_white(self):
        grey = np.array([[500, 501, 40000]], dtype=np.uint16)
        found = decoded(encode(Image.fromarray(grey), transparency=500))
        assert found[0, :, 0].tolist() == [255, 2, 156]

    def test_sixteen_bit_colour_keeps_its_high_byte(self):
        row = b"\0" + struct.pack(">6H", 0xFF00, 0x8000, 0x0100, 0x00FF, 0x4000, 0xFFFF)
        found = decoded(png(2, 1, row, depth=16))
        expected = np.array([[[255, 128, 1], [0, 64, 255]]])
        assert np.abs(found.astype(int) - expected).max() <= 1

    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_thirty_two_bits_are_refused_by_name(self, dtype):
        grey = np.linspace(0, 1000, 12).reshape(3, 4).astype(dtype)
        error = refused(encode(Image.fromarray(grey), "TIFF"), "32-bit grey")
        assert "convert it to 8 or 16 bits" in error.reason

    def test_every_mode_that_pillow_knows_is_taken_or_refused_by_name(self):
        for mode in (
            "1",
            "L",
            "P",
            "LA",
            "PA",
            "RGB",
            "RGBA",
            "RGBX",
            "RGBa",
            "La",
            "CMYK",
            "YCbCr",
        ):
            white = tuple(255 for _ in Image.new(mode, (1, 1)).getbands())
            found = rgb_image(Image.new(mode, (3, 2), white), sample_id=ID)
            assert (found.size, found.mode) == ((3, 2), "RGB")
        for mode in ("I", "F"):
            with pytest.raises(ImageError, match=ID):
                rgb_image(Image.new(mode, (3, 2)), sample_id=ID)


def orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


# What a camera held that way stored, from the upright image: the EXIF standard, part 4.6.4.
AS_STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


# Pillow warns of such EXIF on its own; that must not decide what becomes of the image.
EXIF_WARNINGS = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


class TestOrientation:
    @pytest.mark.parametrize("value", AS_STORED)
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_the_image_comes_out_upright(self, kind, value):
        upright = noise(5, 9)
        stored = np.ascontiguousarray(AS_STORED[value](upright))
        found = decoded(encode(stored, kind, exif=orientation(value)))
        np.testing.assert_array_equal(found, upright)

    @pytest.mark.parametrize("value", AS_STORED)
    def test_jpeg_likewise(self, value):
        upright = smooth()
        stored = np.ascontiguousarray(AS_STORED[value](upright))
        found = decoded(encode(stored, "JPEG", quality=98, exif=orientation(value)))
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() <= 8

    @pytest.mark.parametrize("value", [0, 9, 255, 65535])
    def test_values_without_a_meaning_are_passed_over(self, value):
        pixels = noise()
        found = decoded(encode(pixels, exif=orientation(value)))
        np.testing.assert_array_equal(found, pixels)

    def test_sixteen_bit_and_transparent_images_turn_too(self):
        grey = np.array([[0, 65535, 257]], dtype=np.uint16)
        found = decoded(encode(Image.fromarray(grey), exif=orientation(6)))
        assert found[:, 0, 0].tolist() == [0, 255, 1]
        clear = Image.new("RGBA", (3, 1), (9, 9, 9, 0))
        clear.putpixel((0, 0), (9, 9, 9, 255))
        found = decoded(encode(clear, exif=orientation(8)))
        assert found[:, 0].tolist() == [[255, 255, 255], [255, 255, 255], [9, 9, 9]]

    def test_a_pil_image_turns_once(self):
        content = encode(noise(5, 9), exif=orientation(6))
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(rgb_image(image, sample_id=ID), decoded(content))

    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0", b"Exif\0\0rubbish rubbish", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"\xff"]
    )
    @EXIF_WARNINGS
    def test_damaged_exif_does_not_cost_the_image(self, exif):
        found = decoded(encode(smooth(), "JPEG", exif=exif))
        assert found.shape == (40, 60, 3)

    @EXIF_WARNINGS
    def test_no_damage_to_exif_costs_the_image(self):
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "hello"
        content = encode(smooth(), "JPEG", exif=exif.tobytes())
        start = content.index(b"Exif\0\0") + 6
        dice = random.Random(0)
        for _ in range(500):
            damaged = bytearray(content)
            for _ in range(dice.randint(1, 3)):
                damaged[start + dice.randrange(len(exif.tobytes()) - 6)] = dice.randrange(256)
            assert decoded(bytes(damaged)).shape in ((40, 60, 3), (60, 40, 3))


class TestLimits:
    def test_a_bomb_is_refused_by_its_header(self):
        refused(png(20000, 20000), "pixels")
        refused(png(2**31 - 1, 2**31 - 1), "cannot be decoded")

    def test_the_limit_is_ours_for_images_that_are_open_already(self):
        image = Image.new("1", (1, 1))
        image._size = (20000, 20000)
        with pytest.raises(ImageError, match=f"20000×20000 pixels is more than the {MAX_PIXELS}"):
            rgb_image(image, sample_id=ID)

    def test_nobody_lifted_pillows_limits(self):
        assert Image.MAX_IMAGE_PIXELS is not None
        assert 2 * Image.MAX_IMAGE_PIXELS <= MAX_PIXELS
        assert not ImageFile.LOAD_TRUNCATED_IMAGES

    @pytest.mark.parametrize("size", [(1, 1), (1, MAX_ASPECT_RATIO), (MAX_ASPECT_RATIO, 1)])
    def test_small_and_slim_images_open(self, size):
        assert decoded(encode(noise(*size))).shape == (*size, 3)

    @pytest.mark.parametrize("size", [(1, 20000), (20000, 2), (1, MAX_ASPECT_RATIO + 1)])
    def test_strips_are_refused(self, size):
        error = refused(encode(np.zeros((*size, 3), np.uint8)), "too narrow")
        assert f"{size[1]}×{size[0]}" in error.reason

    def test_images_without_pixels_are_refused(self):
        refused(png(0, 5))
        refused(png(5, 0))
        with pytest.raises(ImageError, match="0×0 pixels is not an image"):
            rgb_image(Image.new("RGB", (0, 0)), sample_id=ID)

    def test_a_text_bomb_in_a_png_is_never_unpacked(self):
        text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 200_000_000))
        content = encode(noise())
        tracemalloc.start()
        try:
            np.testing.assert_array_equal(decoded(content[:33] + text + content[33:]), noise())
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()


class TestMaxPixels:
    def test_the_limit_counts_height_times_width(self):
        content = encode(noise(20, 30))
        assert decode_image(content, sample_id=ID, max_pixels=600).shape == (20, 30, 3)
        with pytest.raises(ImageError, match="30×20 pixels is more than the 599 allowed") as caught:
            decode_image(content, sample_id=ID, max_pixels=599)
        assert caught.value.sample_id == ID

    @pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
    def test_it_is_told_by_the_header_before_any_pixel_is_decoded(self, kind, monkeypatch):
        content = encode(noise(20, 30), kind)

        def fail(*_: object) -> None:
            raise AssertionError("decoded")

        monkeypatch.setattr(decode, "_upright", fail)
        with pytest.raises(ImageError, match="more than the 100 allowed"):
            decode_image(content, sample_id=ID, max_pixels=100)

    def test_a_bombs_pixels_are_never_made(self):
        tracemalloc.start()
        try:
            with pytest.raises(ImageError, match="9000×9000 pixels is more than the 1000000 allow"):
                decode_image(png(9000, 9000), sample_id=ID, max_pixels=1_000_000)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    def test_open_images_and_pixels_keep_it_too(self):
        pixels = noise(20, 30)
        for read in (
            lambda: rgb_image(Image.fromarray(pixels), sample_id=ID, max_pixels=599),
            lambda: decode.decoded(pixels, sample_id=ID, max_pixels=599),
            lambda: decode.decoded(encode(pixels), sample_id=ID, max_pixels=599),
        ):
            with pytest.raises(ImageError, match="more than the 599 allowed"):
                read()

    @pytest.mark.parametrize("limit", [0, -1, MAX_PIXELS + 1, 2**40, 1e6, True, "9"])
    def test_it_may_only_be_lowered(self, limit):
        content, pixels = encode(noise()), noise()
        for read in (
            lambda: check_max_pixels(limit),
            lambda: decode_image(content, sample_id=ID, max_pixels=limit),
            lambda: rgb_image(Image.fromarray(pixels), sample_id=ID, max_pixels=limit),
            lambda: decode.decoded(pixels, sample_id=ID, max_pixels=limit),
        ):
            with pytest.raises(ConfigError, match=f"max_pixels must be .*; got {limit!r}"):
                read()

    def test_the_message_says_whose_limit_it_is(self):
        with pytest.raises(ConfigError, match=rf"1 to {MAX_PIXELS}, Pillow's own limit"):
            check_max_pixels(MAX_PIXELS + 1)
        for limit in (1, MAX_PIXELS):
            check_max_pixels(limit)


def frames(count: int) -> list[Image.Image]:
    return [Image.fromarray(noise(12, 16, seed=seed)) for seed in range(count)]


def animation(kind: str, count: int) -> bytes:
    first, *others = frames(count)
    return encode(first, kind, save_all=True, append_images=others)


class TestAnimation:
    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_more_than_one_frame_or_page_is_told(self, kind):
        assert is_animated(animation(kind, 2))
        assert is_animated(animation(kind, 5))

    @pytest.mark.parametrize("kind", FORMATS)
    def test_a_single_image_is_none(self, kind):
        assert not is_animated(encode(noise(), kind))
        if kind not in ("JPEG", "BMP"):
            assert not is_animated(animation(kind, 1))

    @pytest.mark.parametrize("kind", ["JPEG", "MPO", "BMP", "PNG", "WEBP"])
    def test_what_can_have_no_frames_is_not_opened(self, kind, monkeypatch):
        content = animation("MPO", 2) if kind == "MPO" else encode(noise(), kind)
        monkeypatch.setattr(Image, "open", None)
        assert not is_animated(content)

    def test_a_cameras_second_picture_is_no_frame_and_the_first_is_read(self):
        images = frames(2)
        content = encode(images[0], "MPO", save_all=True, append_images=images[1:], quality=98)
        expected = decoded(encode(frames(1)[0], "JPEG", quality=98))
        np.testing.assert_array_equal(decoded(content), expected)

    def test_bytes_that_look_like_an_announcement_are_looked_at(self):
        content = encode(noise())
        assert not is_animated(content[:33] + png_chunk(b"tEXt", b"acTL\0acTL") + content[33:])

    @given(
        start=st.sampled_from([b"", b"GIF89a", b"II*\0\x08\0\0\0", b"MM\0*", b"MM\0+", b"II+\0"]),
        rest=st.binary(max_size=60),
    )
    def test_any_bytes_get_an_answer(self, start, rest):
        assert is_animated(start + rest) in (True, False)
        assert is_animated(b"\x89PNG\r\n\x1a\nacTL" + rest) is False
        assert is_animated(b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\x02" + rest) is False

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_so_does_every_beginning_of_an_animation(self, kind):
        content = animation(kind, 2)
        for length in range(0, len(content), 7):
            assert is_animated(content[:length]) in (True, False)


@functools.cache
def whole_files() -> dict[str, bytes]:
    """Return one file of each kind that cameras, editors and scanners write."""
    image, palette = frames(1)[0], frames(1)[0].convert("P")
    bits, deep = image.convert("1"), Image.fromarray(noise().astype(np.uint16)[:, :, 0] * 257)
    files = {kind: encode(image.copy(), kind) for kind in FORMATS}
    files |= {f"animated {kind}": animation(kind, 2) for kind in ("GIF", "WEBP", "PNG", "TIFF")}
    for name, options in (
        ("progressive", {"progressive": True}),
        ("restarts", {"restart_marker_blocks": 1}),
        ("turned", {"exif": orientation(6)}),
    ):
        files[f"JPEG {name}"] = encode(image.copy(), "JPEG", **options)
    files["JPEG CMYK"] = encode(image.convert("CMYK"), "JPEG")
    files["MPO"] = animation("MPO", 2)
    files["WEBP lossy"] = encode(image.copy(), "WEBP", lossless=False)
    for kind in ("PNG", "GIF", "BMP"):
        files[f"{kind} palette"] = encode(palette.copy(), kind)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"TIFF {compression}"] = encode(image.copy(), "TIFF", compression=compression)
    files["TIFF group4"] = encode(bits, "TIFF", compression="group4")
    files["TIFF 16 bit"], files["PNG 16 bit"] = encode(deep, "TIFF"), encode(deep, "PNG")
    return files


class TestTruncation:
    @pytest.mark.parametrize(("kind", "content"), whole_files().items(), ids=list(whole_files()))
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_a_beginning_is_refused_or_has_all_pixels(self, kind, content):
        """What a file without its end still shows is all there: its end held no pixels."""
        whole, dice = decoded(content), random.Random(kind)
        cuts = {*dice.sample(range(len(content)), 40), *range(len(content) - 40, len(content))}
        for length in cuts:
            with contextlib.suppress(ImageError):
                np.testing.assert_array_equal(decoded(content[:length]), whole)

    @given(data=st.data())
    @settings(max_examples=100)
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_damage_of_any_kind_gives_pixels_or_an_image_error(self, data):
        content = bytearray(data.draw(st.sampled_from(list(whole_files().values()))))
        for at, value in data.draw(
            st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), max_size=6)
        ).items():
            content[at] = value
        damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
        assert is_animated(damaged) in (True, False)
        with contextlib.suppress(ImageError):
            assert decode_image(damaged, sample_id=ID, max_pixels=10_000).size


class TestDamage:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
    def test_a_file_cut_short_is_refused(self, kind):
        content = encode(noise(40, 40), kind)
        for length in (8, 30, len(content) // 2, len(content) * 9 // 10):
            refused(content[:length])

    def test_a_jpeg_without_its_last_two_bytes_is_refused(self):
        refused(encode(noise(), "JPEG")[:-2], "truncated")

    def test_an_image_that_lost_its_end_names_the_reason(self):
        assert "cannot be decoded" in refused(encode(noise(40, 40), "JPEG")[:900]).reason

    def test_rows_missing_from_a_png_are_noticed(self):
        rows = b"".join(b"\0" + row.tobytes() for row in noise(20, 20))
        np.testing.assert_array_equal(decoded(png(20, 20, rows)), noise(20, 20))
        refused(png(20, 20, rows, cut=len(rows) // 2), "cannot be decoded")
        refused(png(20, 20, rows, cut=12), "cannot be decoded")

    @given(st.binary(max_size=300))
    def test_random_bytes_are_an_image_error(self, content):
        refused(content)

    @given(
        start=st.sampled_from(
            [
                *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"),
                *(b"RIFF\x40\0\0\0WEBPVP8" + kind for kind in (b" ", b"L", b"X")),
            ]
        ),
        rest=st.binary(max_size=200),
    )
    @settings(max_examples=150)
    def test_random_bytes_behind_a_magic_number(self, start, rest):
        self.only_image_errors(start + rest)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
    def test_flipped_bits_give_pixels_or_an_image_error(self, kind):
        content = encode(noise(), kind)
        dice = random.Random(kind)
        for _ in range(120):
            damaged = bytearray(content)
            for _ in range(dice.choice((1, 1, 2, 8))):
                # Half of the flips hit the header, where they do most.
                end = dice.choice((len(damaged), min(len(damaged), 120)))
                damaged[dice.randrange(end)] ^= 1 << dice.randrange(8)
            self.only_image_errors(bytes(damaged))

    def test_a_flipped_bit_in_a_pngs_pixels_is_noticed(self):
        content = encode(noise())
        for at in range(45, len(content) - 20, 37):
            damaged = bytearray(content)
            damaged[at] ^= 16
            refused(bytes(damaged))

    def test_errors_without_a_text_are_named_by_their_type(self, monkeypatch):
        content = encode(noise())

        def fail(*_: object) -> None:
            raise EOFError

        monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
        monkeypatch.setattr(Image.Image, "load", fail)
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        assert refused(content).reason == "cannot be decoded: EOFError."

    def test_running_out_of_memory_names_the_image(self, monkeypatch):
        def fail(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(decode, "_upright", fail)
        assert refused(encode(noise())).reason == "cannot be decoded: MemoryError."

    @staticmethod
    def only_image_errors(content: bytes) -> None:
        with warnings.catch_warnings(), contextlib.suppress(ImageError):
            warnings.simplefilter("ignore")  # Pillow's own, of damaged metadata
            assert decoded(content).size
        with contextlib.suppress(ImageError):  # and with its warnings as errors
            decoded(content)


class TestReading:
    def read(self, path: Path) -> bytes:
        return read_image_file(path, sample_id=ID)

    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(ImageError, match=message) as caught:
            self.read(path)
        assert caught.value.sample_id == ID

    def test_the_content_is_read_as_it_is(self, tmp_path):
        (tmp_path / "a").write_bytes(bytes(range(256)))
        assert self.read(tmp_path / "a") == bytes(range(256))

    @pytest.mark.parametrize("name", ["png.jpg", "A.JPG", "蚂蚁 ü.png", "x" * 246 + ".png"])
    def test_a_name_says_nothing_of_the_content(self, tmp_path, name):
        (tmp_path / name).write_bytes(encode(noise()))
        np.testing.assert_array_equal(decoded(self.read(tmp_path / name)), noise())

    def test_a_name_that_is_not_utf8(self, tmp_path):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
        Path(path).write_bytes(b"x")
        assert self.read(Path(path)) == b"x"

    def test_a_pipe_is_refused_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.jpg")
        self.refused(tmp_path / "pipe.jpg", "not a regular file")

    def test_devices_and_folders_are_refused(self, tmp_path):
        for path in (Path("/dev/zero"), Path("/dev/null"), tmp_path):
            self.refused(path, "not a regular file")

    def test_what_is_gone_or_never_was_is_named(self, tmp_path):
        (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        self.refused(tmp_path / "vanished.jpg", "cannot be read: No such file")
        self.refused(tmp_path / "dangling.jpg", "cannot be read: No such file")
        self.refused(tmp_path / "loop.jpg", "cannot be read: Too many levels")
        self.refused(tmp_path / ("x" * 300), "cannot be read: File name too long")
        self.refused(Path("a\0b.jpg"), "cannot be read: embedded null byte")

    @pytest.mark.skipif(os.getuid() == 0, reason="root may read anything")
    def test_a_locked_file_is_named(self, tmp_path):
        (tmp_path / "locked.jpg").write_bytes(b"x")
        (tmp_path / "locked.jpg").chmod(0)
        self.refused(tmp_path / "locked.jpg", "Permission denied")

    def test_a_disk_that_fails_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "a.jpg").write_bytes(b"x")

        def fail(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fdopen", fail)
        self.refused(tmp_path / "a.jpg", "cannot be read: Input/output error")

    def test_a_huge_file_is_refused_before_it_is_read(self, tmp_path):
        with (tmp_path / "huge.jpg").open("wb") as file:
            file.truncate(2**40)  # holes: takes no space
        self.refused(tmp_path / "huge.jpg", f"{2**40} bytes is more than")

    def test_no_way_out_leaves_a_descriptor_open(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        before = len(os.listdir("/proc/self/fd"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "none", Path("/dev/null")):
            with pytest.raises(ImageError):
                self.read(path)
        assert len(os.listdir("/proc/self/fd")) == before


class TestContent:
    def test_digests_tell_contents_apart(self):
        digests = {content_digest(content) for content in (b"", b"a", b"b", noise(), noise(seed=1))}
        assert len(digests) == 5
        assert {len(digest) for digest in digests} == {DIGEST_BYTES}

    def test_the_digest_is_that_of_sha256sum(self):
        assert content_digest(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223"

    def test_a_view_has_the_digest_of_its_pixels(self):
        pixels = noise()
        assert content_digest(pixels[::2, ::3]) == content_digest(pixels[::2, ::3].copy())

    def test_pixels_pass_and_bytes_are_decoded(self):
        pixels = noise()
        assert decode.decoded(pixels, sample_id=ID) is pixels
        np.testing.assert_array_equal(decode.decoded(encode(pixels), sample_id=ID), pixels)
        with pytest.raises(ImageError, match=ID):
            decode.decoded(b"x", sample_id=ID)

    def test_the_module_text_names_the_formats(self):
        assert decode.__doc__ is not None
        for kind in FORMATS:
            assert kind in decode.__doc__.upper()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "1"])
def test_decoded_is_what_decode_image_gives(mode):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    image = Image.fromarray(grey) if mode == "I;16" else Image.new(mode, (8, 8), 0xFF000001)
    file = io.BytesIO()
    image.save(file, "PNG")
    found = decode.decoded(file.getvalue(), sample_id="a")
    assert isinstance(found, Image.Image)
    assert found.mode == "RGB"
    expected = decode_image(file.getvalue(), sample_id="a")
    np.testing.assert_array_equal(np.asarray(found), expected)
    pixels = np.zeros((4, 4, 3), np.uint8)
    assert decode.decoded(pixels, sample_id="a") is pixels


@pytest.mark.parametrize("size", [1, 16, 4096, 3_000_001])
def test_the_content_digest_covers_all_of_a_file(size):
    content = bytearray(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
    digest = content_digest(bytes(content))
    for place in {0, size // 3, size // 2, size - 1}:
        content[place] ^= 1
        assert content_digest(bytes(content)) != digest, place
        content[place] ^= 1
    assert content_digest(bytes(content)) == digest
    assert content_digest(bytes(content) + b"\0") != digest


def test_the_content_digest_covers_all_pixels():
    pixels = np.zeros((30, 20, 3), np.uint8)
    digest = content_digest(pixels)
    for place in ((0, 0, 0), (15, 10, 1), (29, 19, 2)):
        changed = pixels.copy()
        changed[place] = 1
        assert content_digest(changed) != digest, place
