"""TIFFs whose tags Pillow ignores: set right, or refused.

A layout that is not known to be read correctly is refused by name. A missing strip would be black,
signed samples would be taken for unsigned ones, a fourth band for opacity.
"""

from __future__ import annotations

import io

from PIL import Image, ImagePalette, TiffImagePlugin

_WHITE_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR, _LAB = 0, 2, 3, 5, 6, 8
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR = 258, 259, 262, 277, 284
_COLOR_MAP, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 320, 332, 338, 339
_SUBSAMPLING, _REFERENCE = 530, 532
_ASSOCIATED, _COREL = 1, 999
_BIG = (b"+\0", b"\0+")


def is_tiff(image: Image.Image) -> bool:
    """Return whether an open image has the tags of a TIFF."""
    return isinstance(image, TiffImagePlugin.TiffImageFile)


def check_tiff(image: Image.Image) -> None:
    """Refuse a TIFF that Pillow would misread; set right what can be, before it is loaded."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
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


def grey_range(image: Image.Image) -> tuple[int, bool]:
    """Return the largest value of 16-bit grey, and whether it is black; of any open image."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 65535, False
    bits = _tuple(image.tag_v2.get(_BITS, 16))[0]
    return 2**bits - 1, image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def is_premultiplied(image: Image.Image) -> bool:
    """Return whether the colours of an open image are multiplied by its opacity."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return _tuple(image.tag_v2.get(_EXTRA_SAMPLES, ()))[:1] == (_ASSOCIATED,)


def has_unknown_band(image: Image.Image) -> bool:
    """Return whether an open image has a fourth band that may be opacity, or anything else."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode != "RGBA":
        return False
    return _tuple(image.tag_v2.get(_EXTRA_SAMPLES, ()))[:1] in ((), (_COREL,))


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
