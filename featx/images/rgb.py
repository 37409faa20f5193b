"""The pixels of an open image as RGB, whatever its mode, depth and transparency.

Transparent pixels are laid over white. More than 8 bits are scaled, not cut. A value is right to
one grey level, or the image is refused, such as a TIFF with tags that Pillow ignores: a missing
strip would be black, signed samples would be taken for unsigned ones, a fourth band for opacity.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin

_WHITE = 65535
_BLOCK = 2**20
"""Pixels of deep images that are calculated at once."""
# TIFF: photometric interpretations, tags, and values of the latter.
_WHITE_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 2, 3, 5, 6, 8
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 259, 262, 277, 284
_COLOR_MAP, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 320, 332, 338, 339
_SUBSAMPLING, _REFERENCE = 530, 532
_ASSOCIATED, _COREL = 1, 999
_BIG = (b"+\0", b"\0+")


def to_rgb(image: Image.Image, content: bytes | None = None) -> Image.Image:
    """Return an image's pixels, mode RGB, as they are stored; loads the image."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _rawmode(image):
        _check_tiff(image)
    if content is not None and (rawmode := _deep_rawmode(image)):
        return _deep(image, content, rawmode)
    key = _scaled_key(image)
    image.load()
    if key is not None:
        image.info["transparency"] = key
    if image.mode.startswith("I;16"):
        return _grey(image)
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    return _over_white(image)


def _over_white(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        raise ValueError("a transparent colour of 16 bits cannot be told once the image is open")
    layers = image.convert("RGBA")
    alpha = np.asarray(layers.getchannel("A"))
    low, high = int(alpha.min()), int(alpha.max())
    if low == 255:
        return layers.convert("RGB")
    if _has_unknown_band(image):
        raise ValueError("it does not say what its fourth band is; save it with three, or as RGBA")
    if high == 0 and image.format == "BMP":  # programs that know no opacity leave it empty
        return layers.convert("RGB")
    white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layers).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    maximum, is_inverted = _grey_range(image)
    grey = np.asarray(image)
    pixels = np.empty(grey.shape, np.uint8)
    for rows in _blocks(*grey.shape):
        block = grey[rows].astype(np.uint32)
        if is_inverted:
            block = maximum - block
        if image.has_transparency_data:  # one grey value stands for transparent
            block[block == image.info["transparency"]] = maximum
        pixels[rows] = (block * 255 + maximum // 2) // maximum
    return Image.fromarray(pixels).convert("RGB")


def _scaled_key(image: Image.Image) -> int | None:
    """Return the transparent grey of a PNG of 2 or 4 bits as Pillow scales its pixels."""
    key = image.info.get("transparency")
    if image.mode != "L" or not isinstance(key, int):
        return None
    scale = {"L;2": 85, "L;4": 17}.get(_rawmode(image))
    return scale and scale * (key & (255 // scale))


def _rawmode(image: Image.Image) -> str:
    """Return how the samples of an image lie in its file; empty where it is loaded."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) and args else args)


def _deep_rawmode(image: Image.Image) -> str | None:
    """Return how the samples lie in a file of several bands of 16 bits, None for any other."""
    rawmode = _rawmode(image)
    is_deep = rawmode.endswith((";16B", ";16L", ";16N"))
    return rawmode if is_deep and image.mode in ("RGB", "RGBA", "CMYK") else None


def _deep(image: Image.Image, content: bytes, rawmode: str) -> Image.Image:
    """Return the pixels of a file of 16 bits a band, of which Pillow gives a byte at a time."""
    bands, _, order = rawmode.partition(";")
    if bands == "LA":
        planes = _load(image, content, "RGBA")  # each byte as a band
        high, low = planes[:, :, 0::2], planes[:, :, 1::2]
    else:
        first, last = ("16B", "16L") if order == "16B" else ("16L", "16B")
        if order == "16N" and sys.byteorder == "big":
            first, last = last, first
        plain = bands.replace("RGBa", "RGBA")
        high = _load(image, content, f"{plain};{first}")
        low = _load(image, content, f"{plain};{last}")
    image.load()  # for its EXIF
    pixels = np.empty((*high.shape[:2], 3), np.uint8)
    for rows in _blocks(*high.shape[:2]):
        values = (high[rows].astype(np.uint32) << 8) | low[rows]
        colours, opacity = _separated(image, values)
        if _is_premultiplied(image):
            laid = np.minimum(colours + (_WHITE - opacity), _WHITE)
        else:
            laid = (colours * opacity + _WHITE // 2) // _WHITE + (_WHITE - opacity)
        pixels[rows] = (laid * 255 + _WHITE // 2) // _WHITE
    return Image.fromarray(pixels)


def _separated(image: Image.Image, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return colours, ``(n, width, 3 or 1)``, and opacity, ``(n, width, 1)``, of 16-bit samples."""
    if image.mode == "CMYK":
        ink = _WHITE - values
        colours = (ink[:, :, :3] * ink[:, :, 3:] + _WHITE // 2) // _WHITE
        return colours, np.full_like(values[:, :, :1], _WHITE)
    if values.shape[2] % 2:
        opacity = np.full_like(values[:, :, :1], _WHITE)
        if key := image.info.get("transparency"):
            opacity[(values == np.array(key, np.uint32)).all(axis=2)] = 0
        return values, opacity
    opacity = values[:, :, -1:]
    if _has_unknown_band(image) and (opacity < _WHITE).any():
        raise ValueError("it does not say what its fourth band is; save it with three, or as RGBA")
    return values[:, :, :-1], opacity


def _load(image: Image.Image, content: bytes, rawmode: str) -> np.ndarray:
    """Return the bands of a file, unpacked in another way, ``(height, width, bands)`` uint8."""
    assert isinstance(image.format, str)
    with Image.open(io.BytesIO(content), formats=(image.format,)) as again:
        again.tile = [
            tile._replace(
                args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode
            )
            for tile in again.tile
        ]
        return np.asarray(again)


def _blocks(height: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // width)
    return (slice(row, row + step) for row in range(0, height, step))


# --- TIFF ---------------------------------------------------------------------------------------


def _check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a TIFF that Pillow would misread; set right what can be, before it is loaded."""
    tags = image.tag_v2
    photometric = tags.get(_PHOTOMETRIC)
    if photometric is None:
        raise ValueError("it does not say what its samples mean (PhotometricInterpretation)")
    if photometric == _LAB:
        raise ValueError("CIELab is not read; convert it to RGB")
    if any(kind != 1 for kind in _tuple(tags.get(_SAMPLE_FORMAT, 1))):
        raise ValueError(
            "signed and floating-point samples have no known range; convert it to 8 or 16 bits, "
            "unsigned"
        )
    if photometric == _SEPARATED and tags.get(_INK_SET, 1) != 1:
        raise ValueError("its inks are not cyan, magenta, yellow and black")
    planar, is_raw = tags.get(_PLANAR, 1) == 2, image.info.get("compression") == "raw"
    if planar and max(_tuple(tags.get(_BITS, 1))) > 8 and len(image.getbands()) > 1:
        raise ValueError("bands of 16 bits that lie apart are not read; save them pixel by pixel")
    if photometric == _YCBCR:
        _check_ycbcr(tags, is_raw=is_raw)
    if is_raw:
        _check_coverage(image, layers=len(image.getbands()) if planar else 1)
    if photometric == _PALETTE and max(colors := tags[_COLOR_MAP]) < 256:
        # Of 16 bits, as written by programs that mean 8; all libtiff does likewise.
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _grey_range(image: Image.Image) -> tuple[int, bool]:
    """Return the largest value of 16-bit grey, and whether it is black; of any open image."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 65535, False
    bits = _tuple(image.tag_v2.get(_BITS, 16))[0]
    return 2**bits - 1, image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _is_premultiplied(image: Image.Image) -> bool:
    """Return whether the colours of an open image are multiplied by its opacity."""
    return _extra_samples(image) == (_ASSOCIATED,)


def _has_unknown_band(image: Image.Image) -> bool:
    """Return whether an open image has a fourth band that may be opacity, or anything else."""
    return image.mode == "RGBA" and _extra_samples(image) in ((), (_COREL,))


def _extra_samples(image: Image.Image) -> tuple[int, ...] | None:
    """Return the meaning that a TIFF gives to its first band beside the colours."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    return _tuple(image.tag_v2.get(_EXTRA_SAMPLES, ()))[:1]


def describe_tiff(content: bytes) -> str:
    """Return the tags of a TIFF that describe its samples; empty where they cannot be read."""
    names = {_BITS: "bits", _PHOTOMETRIC: "photometric", _SAMPLE_FORMAT: "sample format"}
    names |= {_EXTRA_SAMPLES: "extra samples", _PLANAR: "planar", _COMPRESSION: "compression"}
    try:
        file = io.BytesIO(content)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if content[2:4] in _BIG else 8))
        file.seek(tags.next)
        tags.load(file)
        found = {name: tags[tag] for tag, name in names.items() if tag in tags}
    except Exception:  # a damaged file makes Pillow raise nearly anything
        return ""
    return ", ".join(f"{name} {value}" for name, value in found.items())


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_ycbcr(tags: TiffImagePlugin.ImageFileDirectory_v2, *, is_raw: bool) -> None:
    if tags.get(_SAMPLES, 1) != 3:
        raise ValueError("YCbCr without its three bands is not read")
    if not is_raw:
        return  # libtiff converts it
    full = (0, 255, 128, 255, 128, 255)
    if tags.get(_SUBSAMPLING, (2, 2)) != (1, 1) or tuple(tags.get(_REFERENCE, full)) != full:
        raise ValueError("uncompressed YCbCr that is subsampled or scaled is not read")


def _check_coverage(image: TiffImagePlugin.TiffImageFile, *, layers: int) -> None:
    """Check that the strips or tiles cover the image; Pillow leaves the rest black."""
    covered = 0
    for tile in image.tile:
        x0, y0, x1, y1 = tile.extents or (0, 0, 0, 0)
        covered += (x1 - x0) * (y1 - y0)
    if covered != image.width * image.height * layers:
        raise ValueError("strips or tiles are missing")
