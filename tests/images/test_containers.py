"""What files are, told by their first bytes; their metadata; and what may keep a decoder busy."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

import featx
from featx.errors import ImageError
from featx.images.containers import check_scans, format_of, without_metadata
from featx.images.decode import decode_image, is_animated

WITH_HEIF = Path(sys.prefix) / "heif"
READS_HEIC = """
import pathlib, sys, warnings
import numpy as np, pillow_heif
from PIL import Image
import featx
from featx.images.decode import decode_image
warnings.simplefilter("error")
pillow_heif.register_heif_opener()
folder = pathlib.Path(sys.argv[1]) / "photos"
for number in range(8):
    path = folder / "ab"[number % 2] / f"IMG_{number}.HEIC"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (200, 30, 20 * number)).save(path, "HEIF", quality=95)
content = path.read_bytes()
found = decode_image(content, sample_id="x").astype(int)
assert found.shape == (48, 64, 3) and np.abs(found - (200, 30, 140)).max() <= 4, found
report = featx.extract(folder, folder.parent / "f.h5", featx.ExtractOptions(backbone="tiny"))
assert report.num_extracted == 8 and not report.ignored, report
try:
    decode_image(content[: len(content) // 2], sample_id="x")
except featx.errors.ImageError as err:
    assert "damaged HEIF" in str(err), err
else:
    raise AssertionError("half a file was read")
"""


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunk(name: bytes, content: bytes, *, wrong: bool = False) -> bytes:
    crc = zlib.crc32(name + content) ^ wrong
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def pixels(content: bytes) -> np.ndarray:
    return decode_image(content, sample_id="x")


def refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        pixels(content)


PNG = encode(Image.fromarray(picture()), "PNG")
PIXELS = PNG.index(b"IDAT") - 4
END = len(PNG) - 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "MPO"])
def test_formats_are_told_by_their_first_bytes(kind):
    content = encode(Image.fromarray(picture()), kind)
    assert format_of(content) == ("JPEG" if kind == "MPO" else kind)
    assert format_of(content[:12]) is not None
    assert format_of(b"x" + content) is None


class TestPngMetadata:
    """None of it decides a pixel, so none of it costs the image."""

    @pytest.mark.parametrize("place", [PIXELS, END])
    @pytest.mark.parametrize(
        "extra",
        [
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * 3_000_000)),
            chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000))),
            chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
            b"".join(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000))) for _ in range(80)),
            chunk(b"tEXt", b"a\0b", wrong=True),
            chunk(b"tIME", b"123", wrong=True),
            chunk(b"eXIf", b"II*\0", wrong=True),
            chunk(b"gAMA", b"\0"),
            chunk(b"cHRM", b""),
            chunk(b"sRGB", b""),
            chunk(b"pHYs", b"\1"),
            chunk(b"iCCP", b"x"),
            chunk(b"iTXt", b"x"),
            chunk(b"acTL", b"x"),
            chunk(b"fcTL", b"x"),
            chunk(b"abCd", b"anything", wrong=True),
        ],
        ids=lambda value: value[4:8].decode() if isinstance(value, bytes) else str(value),
    )
    def test_it_may_be_damaged_or_huge(self, extra, place):
        np.testing.assert_array_equal(pixels(PNG[:place] + extra + PNG[place:]), picture())

    def test_the_orientation_stays(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        damaged = chunk(b"gAMA", b"\0") + chunk(b"eXIf", exif.tobytes()[6:])
        found = pixels(PNG[:PIXELS] + damaged + PNG[PIXELS:])
        np.testing.assert_array_equal(found, np.rot90(picture(), -1))

    @pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
    def test_a_wrong_sum_over_what_decides_pixels_is_refused(self, name):
        at = PNG.index(name)
        end = at + 4 + struct.unpack(">I", PNG[at - 4 : at])[0]
        refused(PNG[:end] + bytes([PNG[end] ^ 1]) + PNG[end + 1 :], "damaged PNG|wrong checksum")

    @pytest.mark.parametrize("name", [b"PLTE", b"tRNS"])
    def test_so_is_one_over_colours(self, name):
        image = Image.fromarray(picture()).convert("P")
        content = encode(image, "PNG", transparency=3)
        end = (
            content.index(name) + 4 + struct.unpack_from(">I", content, content.index(name) - 4)[0]
        )
        refused(content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :], "PNG|checksum")

    def test_an_unknown_chunk_that_may_decide_pixels_is_refused(self):
        refused(PNG[:PIXELS] + chunk(b"CgBI", b"1234") + PNG[PIXELS:], "unknown chunk CgBI")

    @pytest.mark.parametrize("length", range(0, len(PNG), 50))
    def test_a_png_that_is_cut_short_is_none_the_better_for_it(self, length):
        extra = chunk(b"gAMA", b"\0")
        cut = (PNG[:PIXELS] + extra + PNG[PIXELS:])[:length]
        if length < END:
            refused(cut, "x")


class TestJpegMetadata:
    def test_what_is_no_pixel_is_left_out(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        content = encode(
            Image.fromarray(picture()),
            "JPEG",
            exif=exif.tobytes(),
            icc_profile=bytes(9),
            comment="x",
        )
        plain = without_metadata(content, "JPEG")
        assert plain is not None
        assert len(plain) < len(content)
        np.testing.assert_array_equal(pixels(plain), pixels(content))
        assert without_metadata(plain, "JPEG") is None

    def test_a_cmyk_jpeg_keeps_its_polarity(self):
        content = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", comment="x")
        plain = without_metadata(content, "JPEG")
        assert plain is not None
        np.testing.assert_array_equal(pixels(plain), pixels(content))

    def test_segments_without_end_are_refused(self):
        content = encode(Image.fromarray(picture()), "JPEG")
        segment = b"\xff\xe1\0\x0cExif\0\0abcd"
        for filling in (segment, b"\xff", b"\xff\xd0", b"\xff\0"):
            refused(content[:2] + filling * 300_000 + content[2:], "more than 4096 segments or")
        for filling in (b"\xff", b"\xff\xd0", b"\xff\0"):
            got = pixels(content[:2] + filling * 4000 + content[2:])
            np.testing.assert_array_equal(got, pixels(content))
        pixels(content[:2] + segment * 4000 + content[2:])


def progressive(side: int = 64) -> tuple[bytes, bytes]:
    """Return a progressive JPEG without its end, and its last scan."""
    content = encode(Image.new("RGB", (side, side), (90, 120, 30)), "JPEG", progressive=True)[:-2]
    return content, content[content.rindex(b"\xff\xda") :]


class TestScans:
    def test_more_than_any_encoder_writes_are_refused(self):
        content, scan = progressive()
        assert pixels(content + scan * 80 + b"\xff\xd9").shape == (64, 64, 3)
        refused(content + scan * 91 + b"\xff\xd9", "101 scans of 4096 pixels are more than the 100")
        refused(content + scan * 200_000, "200010 scans")  # not ended, and 10 MB

    @pytest.mark.parametrize("bare", [b"\xff\xd0", b"\xff\x01", b"\xff\0"])
    def test_markers_without_a_segment_hide_none(self, bare):
        content, scan = progressive()
        refused(content[:2] + bare + content[2:] + scan * 91, "101 scans")
        refused(content + bare + scan * 91, "101 scans")

    def test_large_images_may_have_fewer(self):
        content, scan = progressive()
        check_scans(content + scan * 4 + b"\xff\xd9", 150_000_000)
        with pytest.raises(ValueError, match="15 scans of 150000000 pixels are more than the 14"):
            check_scans(content + scan * 5 + b"\xff\xd9", 150_000_000)
        check_scans(content + b"\xff\xd9", 178_956_970)

    def test_what_comes_behind_the_image_does_not_count(self):
        content, scan = progressive()
        expected = pixels(content + b"\xff\xd9")
        film = b"\0\xff\xda\xff\xda\0" * 1000
        np.testing.assert_array_equal(pixels(content + b"\xff\xd9" + film), expected)
        np.testing.assert_array_equal(pixels(content + b"\xff\xd9" + scan * 200), expected)

    def test_nor_do_thumbnails_before_it(self):
        content, _ = progressive()
        exif = b"Exif\0\0" + b"\xff\xda\0\x0c" * 1000
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        assert pixels(content[:2] + segment + content[2:] + b"\xff\xd9").shape == (64, 64, 3)

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 1}])
    def test_a_single_scan_is_not_counted(self, mode, options):
        content = encode(Image.new(mode, (64, 64)), "JPEG", **options)
        check_scans(content + b"\xff\xda\0\x0c" * 1000, 4096)


class TestModernFormats:
    @pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
    def test_avif(self):
        image = Image.new("RGB", (32, 24), (200, 30, 90))
        content = encode(image, "AVIF", quality=95)
        assert format_of(content) == "AVIF"
        assert np.abs(pixels(content).astype(int) - (200, 30, 90)).max() <= 4
        assert not is_animated(content)
        film = encode(image, "AVIF", save_all=True, append_images=[Image.new("RGB", (32, 24))])
        assert is_animated(film)
        for length in range(12, len(content), 40):
            refused(content[:length], "x")

    def test_heic_says_what_reads_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
        assert format_of(content) == "HEIF"
        refused(
            content, r"HEIC needs pillow-heif, which is not installed: pip install 'featx\[heif\]'"
        )
        assert not is_animated(content)

    def test_heic_where_it_is_read(self, tmp_path):
        """From the folder to the features, in a process that has pillow-heif."""
        if not (WITH_HEIF / "pillow_heif").is_dir():
            pytest.skip(f"no pillow-heif in '{WITH_HEIF}', where make test puts it")
        search = f"{WITH_HEIF}{os.pathsep}{Path(featx.__file__).parents[1]}"
        subprocess.run(
            [sys.executable, "-c", READS_HEIC, tmp_path],
            env={**os.environ, "PYTHONPATH": search},
            check=True,
            timeout=120,
        )
