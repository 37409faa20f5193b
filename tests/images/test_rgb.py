"""Pixels of every mode and depth, with values calculated by hand from what the files say."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from featx.errors import ImageError
from featx.images.decode import decode_image, rgb_image

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def packed(values: np.ndarray, depth: int) -> bytes:
    """Return one row's samples, most significant bits first."""
    bits = "".join(format(value, f"0{depth}b") for value in np.ravel(values))
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def png(values: np.ndarray, depth: int, colour: int, extra: bytes = b"", *, sub: int = 0) -> bytes:
    """Return a PNG of ``(height, width, bands)``; with ``sub`` bytes a pixel, rows are filtered."""
    rows = b""
    for row in values:
        data = packed(row, depth)
        shifted = bytes(sub) + data[: len(data) - sub]
        filtered = [(a - b * bool(sub)) & 255 for a, b in zip(data, shifted, strict=True)]
        rows += bytes([1 if sub else 0, *filtered])
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def pixels(content: bytes) -> np.ndarray:
    return decode_image(content, sample_id="x")


def assert_right(content: bytes, expected: np.ndarray) -> None:
    """Check pixels to one grey level; ``expected`` is ``(height, width, 1 or 3)``, 0 to 255."""
    found = pixels(content)
    assert found.shape == (*expected.shape[:2], 3)
    assert np.abs(found - expected).max() <= 1


def over_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return colours * opacity + 255 * (1 - opacity)


def samples(depth: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Return random samples, the first black and the last white."""
    values = np.random.default_rng(seed).integers(0, 2**depth, shape)
    values[0, 0], values[-1, -1] = 0, 2**depth - 1
    return values


class TestPng:
    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_grey(self, depth):
        values = samples(depth, 3, 7, 1)
        assert_right(png(values, depth, GREY), values * 255 / (2**depth - 1))

    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_a_transparent_grey(self, depth):
        values = samples(depth, 3, 7, 1)
        key = int(values[1, 1, 0])
        expected = np.where(values == key, 255, values * 255 / (2**depth - 1))
        assert_right(png(values, depth, GREY, chunk(b"tRNS", struct.pack(">H", key))), expected)

    @pytest.mark.parametrize("depth", [8, 16])
    @pytest.mark.parametrize("is_filtered", [False, True])
    @pytest.mark.parametrize("colour", [COLOUR, GREY_ALPHA, COLOUR_ALPHA])
    def test_colour_and_opacity(self, depth, colour, is_filtered):
        bands = {COLOUR: 3, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[colour]
        values = samples(depth, 4, 40, bands)
        expected = values * 255 / (2**depth - 1)
        if colour != COLOUR:
            expected = over_white(expected[..., :-1], expected[..., -1:] / 255)
        sub = bands * depth // 8 if is_filtered else 0
        assert_right(png(values, depth, colour, sub=sub), expected)

    @pytest.mark.parametrize("depth", [8, 16])
    def test_a_transparent_colour_is_exactly_that(self, depth):
        values = samples(depth, 2, 4, 3)
        key = values[0, 1].copy()
        values[0, 2] = key
        values[0, 3] = key ^ [0, 0, 1]  # the next one
        expected = values * 255 / (2**depth - 1)
        expected[0, 1:3] = 255
        extra = chunk(b"tRNS", struct.pack(">HHH", *key))
        assert_right(png(values, depth, COLOUR, extra), expected)

    @pytest.mark.parametrize("depth", [1, 2, 4, 8])
    @pytest.mark.parametrize("num_opacities", [None, 1, -1])
    def test_palettes(self, depth, num_opacities):
        rng, size = np.random.default_rng(0), 2**depth
        palette, opacity = rng.integers(0, 256, (size, 3)), np.full(size, 255)
        extra = chunk(b"PLTE", bytes(palette.ravel().tolist()))
        if num_opacities:
            count = num_opacities % (size + 1)
            opacity[:count] = rng.integers(0, 255, count)
            extra += chunk(b"tRNS", bytes(opacity[:count].tolist()))
        values = samples(depth, 3, 7)
        expected = over_white(palette[values], opacity[values][..., None] / 255)
        assert_right(png(values, depth, PALETTE, extra), expected)

    @pytest.mark.parametrize(("colour", "bands"), [(GREY_ALPHA, 2), (COLOUR_ALPHA, 4)])
    @pytest.mark.parametrize("depth", [8, 16])
    def test_nothing_to_see_is_white(self, depth, colour, bands):
        values = samples(depth, 2, 3, bands)
        values[..., -1] = 0
        assert (pixels(png(values, depth, colour)) == 255).all()
        values[1, 1, -1] = 1
        assert pixels(png(values, depth, colour)).min() >= 253

    def test_sixteen_bits_turn(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        values = samples(16, 2, 3, 3)
        found = pixels(png(values, 16, COLOUR, chunk(b"eXIf", exif.tobytes()[6:])))
        assert np.abs(found - np.rot90(values * 255 / 65535, -1)).max() <= 1

    def test_an_open_image_of_a_transparent_colour_of_sixteen_bits_is_refused(self):
        content = png(
            samples(16, 2, 3, 3), 16, COLOUR, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 999))
        )
        with pytest.raises(ImageError, match="transparent colour of 16 bits"):
            rgb_image(Image.open(io.BytesIO(content)), sample_id="x")


def bmp(
    bits: int,
    rows: list[bytes],
    width: int,
    palette: bytes = b"",
    masks: bytes = b"",
    header: int = 40,
) -> bytes:
    """Return a BMP of rows from the top."""
    data = b"".join(row + bytes(-len(row) % 4) for row in reversed(rows))
    compression = 3 if masks else 0
    fields = (header, width, len(rows), 1, bits, compression, len(data), 0, 0, len(palette) // 4, 0)
    head = (struct.pack("<IiiHHIIiiII", *fields) + masks).ljust(header, b"\0")
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


class TestBmp:
    @pytest.mark.parametrize("depth", [1, 4, 8])
    def test_palettes(self, depth):
        palette = np.random.default_rng(0).integers(0, 256, (2**depth, 4))
        values = samples(depth, 3, 5)
        rows = [packed(row, depth) for row in values]
        content = bmp(depth, rows, 5, bytes(palette.ravel().tolist()))
        assert_right(content, palette[values][..., 2::-1])

    @pytest.mark.parametrize("bits", [(5, 5, 5), (5, 6, 5)])
    def test_sixteen_bits_of_three_colours(self, bits):
        bands = [samples(depth, 3, 5, seed=depth) for depth in bits]
        shifts = (bits[1] + bits[2], bits[2], 0)
        values = sum(band << shift for band, shift in zip(bands, shifts, strict=True))
        masks = [(2**depth - 1) << shift for depth, shift in zip(bits, shifts, strict=True)]
        told = b"" if bits == (5, 5, 5) else struct.pack("<III", *masks)
        expected = [b * 255 / (2**depth - 1) for b, depth in zip(bands, bits, strict=True)]
        rows = [row.astype("<u2").tobytes() for row in values]
        assert_right(bmp(16, rows, 5, masks=told), np.stack(expected, axis=-1))

    @pytest.mark.parametrize("opacity", [0, 255, None])
    @pytest.mark.parametrize("header", [40, 56, 108, 124])
    def test_a_fourth_byte_is_opacity_where_it_is_called_so_and_not_empty(self, header, opacity):
        values = samples(8, 3, 5, 4)
        if opacity is not None:
            values[..., 3] = opacity
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        rows = [row.astype("u1").tobytes() for row in values]
        colours = values[..., 2::-1]
        plain = bmp(32, rows, 5, header=header)
        assert_right(plain, colours)
        if header > 40:
            mixed = over_white(colours, values[..., 3:] / 255) if opacity is None else colours
            assert_right(bmp(32, rows, 5, masks=masks, header=header), mixed)


class TestJpeg:
    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("L", 77, (77, 77, 77)),
            ("RGB", (200, 30, 90), (200, 30, 90)),
            ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
            ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
            ("CMYK", (100, 0, 50, 60), (118, 195, 157)),  # (255 - ink) * (255 - black) / 255
        ],
    )
    def test_modes(self, mode, colour, expected):
        buffer = io.BytesIO()
        image = Image.new(mode, (16, 16), colour)  # type: ignore[arg-type]
        image.save(buffer, "JPEG", quality=100, subsampling=0)
        assert np.abs(pixels(buffer.getvalue()).astype(int) - expected).max() <= 2
