"""One image file to RGB pixels, safely: the same rules for extract and predict.

- Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, told by content, not by name.
- EXIF orientation is applied. Of an animation, the first frame counts.
- Transparent images are laid over white. Grey, palette and CMYK images become RGB.
- 16-bit grey is scaled to 8 bits. 32-bit integer and float images are refused: their range is
  not known.
- Refused as well: truncated or damaged files, more than ``MAX_PIXELS`` pixels or
  ``MAX_FILE_BYTES``, and anything that is not a regular file.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from featx.errors import ImageError
from featx.images.preprocess import check_aspect_ratio

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 178_956_970
"""Twice Pillow's own warning limit, where Pillow takes an image for a decompression bomb."""
MAX_FILE_BYTES = 2**30
"""What ``MAX_PIXELS`` take uncompressed, at 16 bits a channel."""
DIGEST_BYTES = 16

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""


def content_digest(content: bytes | np.ndarray) -> bytes:
    """Return the first 16 bytes of an image file's sha256, or of its pixels' where it has none."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def pixels_of(content: bytes | np.ndarray, *, sample_id: str) -> np.ndarray:
    """Return what a source reads as pixels, ``(height, width, 3)`` uint8, RGB.

    Raises:
        ImageError: It is an encoded image that cannot be used.
    """
    if isinstance(content, bytes):
        return decode_image(content, sample_id=sample_id)
    return content


def read_image_file(path: Path, *, sample_id: str) -> bytes:
    """Return the content of a regular file; a pipe or device is refused instead of waited for.

    Raises:
        ImageError: It is missing, unreadable, too large or not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(sample_id, "not a regular file.")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(
                    sample_id, f"{status.st_size} bytes is more than the {MAX_FILE_BYTES} allowed."
                )
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as err:  # ValueError: a NUL in the name
        reason = err.strerror if isinstance(err, OSError) else None
        raise ImageError(sample_id, f"cannot be read: {reason or err}.") from err


def decode_image(content: bytes, *, sample_id: str) -> np.ndarray:
    """Return an encoded image's pixels, shape ``(height, width, 3)``, uint8, RGB.

    Raises:
        ImageError: The content is damaged, of an unknown format, too large or too narrow.
    """
    if not content:
        raise ImageError(sample_id, "the file is empty.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _rgb_pixels(image, sample_id)
    except ImageError:
        raise
    except UnidentifiedImageError as err:
        raise ImageError(
            sample_id, f"not an image of a known format ({', '.join(FORMATS)})."
        ) from err
    except Exception as err:  # a damaged file makes Pillow's plug-ins raise nearly anything
        raise ImageError(sample_id, f"cannot be decoded: {_reason(err)}.") from err


def rgb_pixels(image: Image.Image, *, sample_id: str) -> np.ndarray:
    """Return an open PIL image's pixels by the same rules, ``(height, width, 3)``, uint8, RGB.

    Raises:
        ImageError: It is damaged, too large, too narrow, or of a mode that is refused.
    """
    try:
        return _rgb_pixels(image, sample_id)
    except ImageError:
        raise
    except Exception as err:  # as above: decoding happens here, when Pillow loads the pixels
        raise ImageError(sample_id, f"cannot be decoded: {_reason(err)}.") from err


def _reason(err: Exception) -> str:
    return str(err).rstrip(". ") or type(err).__name__


def _rgb_pixels(image: Image.Image, sample_id: str) -> np.ndarray:
    width, height = image.size
    if not width * height:
        raise ImageError(sample_id, f"{width}×{height} pixels is no image.")
    if width * height > MAX_PIXELS:
        raise ImageError(
            sample_id, f"{width}×{height} pixels is more than the {MAX_PIXELS} allowed."
        )
    check_aspect_ratio(height, width, sample_id=sample_id)
    if image.mode in ("I", "F"):
        raise ImageError(
            sample_id,
            f"mode '{image.mode}' (32-bit grey) has no known range; convert it to 8 or 16 bits.",
        )
    upright = _upright(image)
    if upright.mode.startswith("I;16"):
        grey = np.asarray(upright).astype(np.uint32)
        if upright.has_transparency_data:  # one grey value stands for transparent
            grey[grey == upright.info["transparency"]] = 65535
        return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        layers = upright.convert("RGBA")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, layers)
    return np.asarray(upright.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation wants it seen."""
    image.load()
    try:
        method = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF says nothing, and the pixels are whole
        return image
    return image if method is None else image.transpose(method)
