"""One image file to RGB pixels, safely: the same rules for extract and predict.

- Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, told by content, not by name.
- EXIF orientation is applied. Of an animation, the first frame counts.
- Transparent images are laid over white. Grey, palette and CMYK images become RGB.
- 16-bit grey is scaled to 8 bits. 32-bit integer and float images are refused: their range is
  not known.
- A JPEG is decoded at a half, a quarter or an eighth of its size where the preprocessing spec says
  "scaled" and both sides stay at least twice as long as what they are resized to.
- Refused as well: truncated or damaged files, more than ``max_pixels`` pixels (told by the header,
  before any is decoded) or ``MAX_FILE_BYTES``, and anything that is not a regular file.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from featx.errors import ConfigError, ImageError
from featx.images.preprocess import PreprocessSpec, check_aspect_ratio, draft_size

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


# What a file that may hold several frames starts with. A JPEG's second picture is never a frame.
_GIF, _PNG, _RIFF = (b"GIF87a", b"GIF89a"), b"\x89PNG\r\n\x1a\n", b"RIFF"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WEBP_FLAGS, _WEBP_ANIMATED = 20, 2


def check_max_pixels(max_pixels: int) -> None:
    """Refuse a limit that cannot be: it may only be lowered.

    Raises:
        ConfigError: It is below 1, or above ``MAX_PIXELS``, where Pillow itself refuses an image.
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int):
        raise ConfigError(f"max pixels must be a whole number; got {max_pixels!r}.")
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ConfigError(
            f"max pixels must be 1 to {MAX_PIXELS}, Pillow's own limit for decompression bombs; "
            f"got {max_pixels}."
        )


def content_digest(content: bytes | np.ndarray) -> bytes:
    """Return the first 16 bytes of an image file's sha256, or of its pixels' where it has none."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def pixels_of(
    content: bytes | np.ndarray,
    *,
    sample_id: str,
    max_pixels: int = MAX_PIXELS,
    preprocess: PreprocessSpec | None = None,
) -> np.ndarray:
    """Return what a source reads as pixels, ``(height, width, 3)`` uint8, RGB.

    Args:
        content: An encoded image, or its pixels, which are taken as they are.
        sample_id: Names the image in errors.
        max_pixels: Height times width allowed, of the whole image.
        preprocess: What the pixels are for; None decodes in full.

    Raises:
        ImageError: It is an encoded image that cannot be used, or has more than ``max_pixels``.
        ConfigError: ``max_pixels`` is out of range.
    """
    return np.asarray(
        decoded(content, sample_id=sample_id, max_pixels=max_pixels, preprocess=preprocess)
    )


def decoded(
    content: bytes | np.ndarray,
    *,
    sample_id: str,
    max_pixels: int = MAX_PIXELS,
    preprocess: PreprocessSpec | None = None,
) -> Image.Image | np.ndarray:
    """Return the same pixels as they are at hand, which saves ``preprocess`` a copy or two.

    Raises:
        ImageError: As ``pixels_of``.
        ConfigError: As ``pixels_of``.
    """
    check_max_pixels(max_pixels)
    if isinstance(content, bytes):
        return _decoded(content, sample_id, max_pixels, preprocess)
    _check_size(content.shape[0], content.shape[1], sample_id, max_pixels)
    return content


def read_image_file(path: str | Path, *, sample_id: str) -> bytes:
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


def is_animated(content: bytes) -> bool:
    """Return whether an encoded image has frames or pages beyond the first; never raises.

    Costs next to nothing for what cannot have any: JPEG, BMP, and a PNG or WebP whose header says
    nothing of an animation.
    """
    if not _may_be_animated(content):
        return False
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # decoding it will say what is wrong
        return False


def _may_be_animated(content: bytes) -> bool:
    if content.startswith(_PNG):  # the chunk that announces frames comes before the pixels
        return content.find(b"acTL", 0, content.find(b"IDAT")) >= 0
    if content.startswith(_RIFF):
        flags = content[_WEBP_FLAGS : _WEBP_FLAGS + 1]
        return content[12:16] == b"VP8X" and bool(flags) and bool(flags[0] & _WEBP_ANIMATED)
    return content.startswith(_GIF + _TIFF)


def decode_image(
    content: bytes,
    *,
    sample_id: str,
    max_pixels: int = MAX_PIXELS,
    preprocess: PreprocessSpec | None = None,
) -> np.ndarray:
    """Return an encoded image's pixels, shape ``(height, width, 3)``, uint8, RGB.

    Args:
        content: The whole file.
        sample_id: Names the image in errors.
        max_pixels: Height times width allowed, ``1 <= max_pixels <= MAX_PIXELS``.
        preprocess: What the pixels are for; None decodes in full.

    Raises:
        ImageError: The content is damaged, of an unknown format, too large or too narrow.
        ConfigError: ``max_pixels`` is out of range.
    """
    check_max_pixels(max_pixels)
    return np.asarray(_decoded(content, sample_id, max_pixels, preprocess))


def _decoded(
    content: bytes, sample_id: str, max_pixels: int, preprocess: PreprocessSpec | None
) -> Image.Image:
    if not content:
        raise ImageError(sample_id, "the file is empty.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _rgb(image, sample_id, max_pixels, preprocess)
    except ImageError:
        raise
    except UnidentifiedImageError as err:
        raise ImageError(
            sample_id, f"not an image of a known format ({', '.join(FORMATS)})."
        ) from err
    except Exception as err:  # a damaged file makes Pillow's plug-ins raise nearly anything
        raise ImageError(sample_id, f"cannot be decoded: {_reason(err)}.") from err


def rgb_image(image: Image.Image, *, sample_id: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an open PIL image by the same rules: upright, of mode RGB.

    They are taken as they are: to scale a JPEG while it is decoded would change the caller's image.

    Raises:
        ImageError: It is damaged, too large, too narrow, or of a mode that is refused.
        ConfigError: ``max_pixels`` is out of range.
    """
    check_max_pixels(max_pixels)
    try:
        return _rgb(image, sample_id, max_pixels)
    except ImageError:
        raise
    except Exception as err:  # as above: decoding happens here, when Pillow loads the pixels
        raise ImageError(sample_id, f"cannot be decoded: {_reason(err)}.") from err


def _reason(err: Exception) -> str:
    return str(err).rstrip(". ") or type(err).__name__


def _check_size(height: int, width: int, sample_id: str, max_pixels: int) -> None:
    if not width * height:
        raise ImageError(sample_id, f"{width}×{height} pixels is no image.")
    if width * height > max_pixels:
        raise ImageError(
            sample_id, f"{width}×{height} pixels is more than the {max_pixels} allowed."
        )
    check_aspect_ratio(height, width, sample_id=sample_id)


def _rgb(
    image: Image.Image, sample_id: str, max_pixels: int, preprocess: PreprocessSpec | None = None
) -> Image.Image:
    width, height = image.size
    _check_size(height, width, sample_id, max_pixels)  # the header's word, before any decoding
    if image.mode in ("I", "F"):
        raise ImageError(
            sample_id,
            f"mode '{image.mode}' (32-bit grey) has no known range; convert it to 8 or 16 bits.",
        )
    if preprocess:
        _scale(image, preprocess)
    upright = _upright(image)
    if upright.mode.startswith("I;16"):
        grey = np.asarray(upright).astype(np.uint32)
        if upright.has_transparency_data:  # one grey value stands for transparent
            grey[grey == upright.info["transparency"]] = 65535
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        layers = upright.convert("RGBA")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, layers)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _scale(image: Image.Image, preprocess: PreprocessSpec) -> None:
    """Have a JPEG decoded at part of its size, where the spec wants that and the size allows it.

    An image that lies on its side is resized lying, so its EXIF orientation makes no difference.
    """
    smallest = draft_size(image.height, image.width, preprocess)
    if smallest and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, smallest[::-1])


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation wants it seen."""
    image.load()
    try:
        method = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF says nothing, and the pixels are whole
        return image
    return image if method is None else image.transpose(method)
