"""TIFFs of every kind of sample: right to one grey level, or refused by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from featx.errors import ImageError
from featx.images.decode import decode_image
from featx.images.rgb import describe_tiff

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
RAW, DEFLATE = 1, 8
_SIZES = {3: ("H", 2), 4: ("I", 4)}
REVERSED = bytes(int(format(byte, "08b")[::-1], 2) for byte in range(256))


def tiff(
    strips: Sequence[bytes],
    *,
    bits: tuple[int, ...] = (8,),
    photometric: int | None = BLACK_IS_ZERO,
    size: tuple[int, int] = (8, 8),
    rows: int | None = None,
    order: str = "<",
    compression: int = RAW,
    more: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """Return a TIFF; ``size`` is height and width, ``more`` has tags of type SHORT."""
    if compression == DEFLATE:
        strips = [zlib.compress(strip) for strip in strips]
    tags: dict[int, tuple[int, tuple[int, ...]]] = {
        256: (4, (size[1],)),
        257: (4, (size[0],)),
        258: (3, bits),
        259: (3, (compression,)),
        273: (4, tuple(0 for _ in strips)),
        277: (3, (len(bits),)),
        278: (4, (rows or size[0],)),
        279: (4, tuple(map(len, strips))),
        **{tag: (3, values) for tag, values in (more or {}).items()},
    }
    if photometric is not None:
        tags[262] = (3, (photometric,))
    at = 8 + 2 + 12 * len(tags) + 4
    places = {}
    for tag, (kind, values) in tags.items():
        if (length := _SIZES[kind][1] * len(values)) > 4:
            places[tag], at = at, at + length
    starts = [at + sum(map(len, strips[:number])) for number in range(len(strips))]
    tags[273] = (4, tuple(starts))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    tail = b""
    for tag, (kind, values) in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(values)}{_SIZES[kind][0]}", *values)
        value = struct.pack(f"{order}I", places[tag]) if tag in places else raw.ljust(4, b"\0")
        head += struct.pack(f"{order}HHI", tag, kind, len(values)) + value
    for tag in places:
        kind, values = tags[tag]
        tail += struct.pack(f"{order}{len(values)}{_SIZES[kind][0]}", *values)
    return head + bytes(4) + tail + b"".join(strips)


def packed(values: np.ndarray, depth: int, order: str = "<") -> bytes:
    if depth >= 8 and depth != 12:
        return values.astype(f"{order}u{depth // 8}").tobytes()
    data = b""
    for row in values:
        bits = "".join(format(value, f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        data += bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return data


def samples(depth: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(depth).integers(0, 2**depth, shape)
    values[0, 0], values[-1, -1] = 0, 2**depth - 1
    return values


def assert_right(content: bytes, expected: np.ndarray) -> None:
    found = decode_image(content, sample_id="x")
    assert found.shape == (*expected.shape[:2], 3)
    assert np.abs(found - expected).max() <= 1


def refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(content, sample_id="x")


COMPRESSIONS = pytest.mark.parametrize("compression", [RAW, DEFLATE])
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
DEPTHS = pytest.mark.parametrize("depth", [1, 2, 4, 8, 12, 16])


class TestGrey:
    @COMPRESSIONS
    @ORDERS
    @DEPTHS
    @pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, WHITE_IS_ZERO])
    @pytest.mark.parametrize("width", [8, 7])
    def test_every_depth(self, depth, order, photometric, compression, width):
        values = samples(depth, 8, width)
        content = tiff(
            [packed(values, depth, order)],
            **{"bits": (depth,), "photometric": photometric, "order": order},  # type: ignore[arg-type]
            compression=compression,
            size=(8, width),
        )
        unread = {(12, "<", 0), (12, ">", 0), (12, ">", 1), (16, ">", 0)}  # by Pillow
        if (depth, order, photometric) in unread:
            refused(content, rf"not read \(bits \({depth},\), photometric {photometric}, ")
            return
        grey = values * 255 / (2**depth - 1)
        grey = 255 - grey if photometric == WHITE_IS_ZERO else grey
        assert_right(content, grey[..., None])

    @ORDERS
    @pytest.mark.parametrize("depth", [8, 16, 32])
    @pytest.mark.parametrize("kind", [2, 3, 4])
    def test_samples_of_no_known_range(self, depth, kind, order):
        content = tiff(
            [packed(samples(depth, 8, 8), depth, order)],
            bits=(depth,),
            order=order,
            more={339: (kind,)},
        )
        refused(content, "no known range; convert it to 8 or 16 bits|sample format")

    def test_thirty_two_bits(self):
        refused(tiff([packed(samples(32, 8, 8), 32)], bits=(32,)), "32-bit grey")

    @pytest.mark.parametrize("depth", [4, 16])
    def test_bits_from_the_other_end(self, depth):
        values = samples(depth, 8, 8)
        data = packed(values, depth).translate(REVERSED)
        expected = values[..., None] * 255 / (2**depth - 1)
        assert_right(tiff([data], bits=(depth,), more={266: (2,)}), expected)

    def test_what_black_is_has_to_be_said(self):
        refused(tiff([bytes(64)], photometric=None), "does not say what its samples mean")


class TestColour:
    @COMPRESSIONS
    @ORDERS
    @pytest.mark.parametrize("depth", [8, 16])
    @pytest.mark.parametrize("planar", [1, 2])
    @pytest.mark.parametrize(
        ("name", "extra"),
        [
            *(("opaque", None), ("unspecified", 0), ("multiplied", 1), ("opacity", 2)),
            *(("missing", None), ("cmyk", None)),
        ],
    )
    def test_four_bands_and_what_the_last_one_is(
        self, name, extra, planar, depth, order, compression
    ):
        limit = 2**depth - 1
        values = samples(depth, 8, 8, 3 if name == "opaque" else 4)
        if name == "multiplied":
            values[..., :3] = values[..., :3] * values[..., 3:] // limit
        bands = values * 255 / limit
        colours, last = bands[..., :3], bands[..., -1:] / 255
        expected = {
            "opaque": colours,
            "unspecified": colours,
            "multiplied": colours + 255 * (1 - last),
            "opacity": colours * last + 255 * (1 - last),
            "cmyk": (255 - colours) * (1 - last),
        }
        parts = [values] if planar == 1 else [values[..., band] for band in range(values.shape[2])]
        more: dict[int, tuple[int, ...]] = {284: (planar,)}
        content = tiff(
            [packed(np.ascontiguousarray(part), depth, order) for part in parts],
            bits=values.shape[2] * (depth,),
            photometric=SEPARATED if name == "cmyk" else RGB,
            order=order,
            compression=compression,
            more=more if extra is None else more | {338: (extra,)},
        )
        apart = compression == RAW and name in ("unspecified", "multiplied")
        if name == "missing" or (planar == 2 and (depth == 16 or apart)):
            refused(content, "fourth band|lie apart|not read|unknown raw mode")
        else:
            assert_right(content, expected[name])

    def test_a_fourth_band_of_unknown_meaning(self):
        values = samples(8, 8, 8, 4)
        for extra in ({}, {338: (999,)}):
            content: dict[str, Any] = {"bits": 4 * (8,), "photometric": RGB, "more": extra}
            refused(tiff([packed(values, 8)], **content), "does not say what its fourth band is")
            values[..., 3] = 255
            assert_right(tiff([packed(values, 8)], **content), values[..., :3])
            values[..., 3] = 0
            refused(tiff([packed(values, 8)], **content), "does not say what its fourth band is")

    @pytest.mark.parametrize("depth", [1, 2, 4, 8])
    @pytest.mark.parametrize("scale", [257, 1])
    def test_palettes_of_sixteen_bits_and_of_eight(self, depth, scale):
        colours = np.random.default_rng(0).integers(0, 256, (3, 2**depth))
        values = samples(depth, 8, 8)
        more = {320: tuple((colours * scale).ravel().tolist())}
        content = tiff([packed(values, depth)], bits=(depth,), photometric=PALETTE, more=more)
        assert_right(content, colours.T[values])

    def test_other_colours_are_refused(self):
        data, bits = [bytes(range(192))], 3 * (8,)
        refused(tiff(data, bits=bits, photometric=LAB), "CIELab")
        refused(tiff(data, bits=bits, photometric=YCBCR), "subsampled or scaled")
        inks = {332: (2,)}
        refused(tiff([bytes(256)], bits=4 * (8,), photometric=SEPARATED, more=inks), "inks are not")

    def test_ycbcr_of_full_size(self):
        grey = np.repeat(samples(8, 8, 8)[..., None], 3, axis=2)
        grey[..., 1:] = 128
        content = tiff([packed(grey, 8)], bits=3 * (8,), photometric=YCBCR, more={530: (1, 1)})
        assert_right(content, grey[..., :1])

    @pytest.mark.parametrize("turn", [1, 3, 6, 8])
    @pytest.mark.parametrize("bits", [(16,), (16, 16, 16)])
    def test_deep_images_turn_once(self, bits, turn):
        values = samples(16, 4, 6, len(bits))
        content = tiff(
            [packed(values, 16)],
            bits=bits,
            photometric=RGB if len(bits) == 3 else BLACK_IS_ZERO,
            size=(4, 6),
            more={274: (turn,)},
        )
        times = {1: 0, 3: 2, 6: -1, 8: 1}[turn]
        assert_right(content, np.rot90(values * 255 / 65535, times))


class TestStrips:
    @COMPRESSIONS
    def test_missing_ones_are_not_black(self, compression):
        values = samples(8, 8, 8)
        strips = [packed(values[:4], 8), packed(values[4:], 8)]
        assert_right(tiff(strips, rows=4, compression=compression), values[..., None])
        refused(tiff(strips[:1], rows=4, compression=compression), "strips|cannot be decoded")

    def test_nor_is_a_missing_band(self):
        strips = 2 * [packed(samples(8, 8, 8), 8)]
        content = tiff(strips, bits=3 * (8,), photometric=RGB, more={284: (2,)})
        refused(content, "strips or tiles are missing")

    def test_more_than_any_image_has_are_not_listed(self):
        content = bytearray(tiff([bytes(32), bytes(32)], rows=4))
        at = content.index(struct.pack("<HHI", 273, 4, 2))
        content[at : at + 8] = struct.pack("<HHI", 273, 4, 2**28)
        refused(bytes(content), "268435456 values in tag 273 are more than any image has")


@pytest.mark.parametrize("length", [0, 3, 8, 20, 60])
def test_tags_of_a_file_that_is_cut_short(length):
    content = tiff([bytes(64)])
    assert describe_tiff(content) == "bits (8,), photometric 1, compression 1"
    assert describe_tiff(content[:length]) == ""
