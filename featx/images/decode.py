"""One image file to RGB pixels, safely: the same rules for extract and predict.

- Formats: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF where Pillow has it, and HEIC where pillow-heif is
  installed, recognised by content, not by name.
- EXIF orientation is applied. An animation counts by its first frame.
- Transparent images are laid over white. Grey, palette and CMYK images become RGB.
- More than 8 bits are scaled to 8. Images whose range is not known are refused.
- A JPEG is decoded at a half, a quarter or an eighth of its size where the preprocessing spec says
  "scaled" and both sides stay at least twice as long as what they are resized to.
- Damaged metadata of a PNG or JPEG does not cost the image.
- Refused as well: truncated or damaged files, more than ``max_pixels`` pixels (known from the
  header, before any is decoded) or ``MAX_FILE_BYTES``, files built to keep a decoder busy, and
  anything that is not a regular file.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import stat
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from featx import system
from featx.errors import ImageError, ImageTooLarge, lies_in_machine, require_number
from featx.images.containers import (
    TooCostly,
    check_cost,
    check_png,
    check_scans,
    format_of,
    without_metadata,
)
from featx.images.preprocess import PreprocessSpec, check_aspect_ratio, draft_size
from featx.images.rgb import describe_tiff, to_rgb
from featx.packages import install_command, needed

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are always read."""
MAX_PIXELS = 178_956_970
"""Twice Pillow's own warning limit, where Pillow takes an image for a decompression bomb."""
MAX_FILE_BYTES = 2**30
"""The size of ``MAX_PIXELS`` uncompressed, at 16 bits a channel."""
DIGEST_BYTES = 16
NO_DIGEST = bytes(DIGEST_BYTES)
"""The content digest of an image that could not be read."""
_DECODING_BYTES = 20
"""For each pixel, more than any decoder and the steps after it need: 6 for a progressive JPEG's
coefficients, and a few layers of 4."""

_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
"""Pillow's own limits; the second is raised only where warnings are errors."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The method that makes an image of each EXIF orientation upright."""


_WEBP_FLAGS, _WEBP_ANIMATED = 20, 2
_PLUGINS = {"WEBP": "WebP", "TIFF": "Tiff", "AVIF": "Avif"}


def check_max_pixels(max_pixels: int) -> None:
    """Refuse a limit that is none, or above ``MAX_PIXELS``: it may only be lowered."""
    limit = ", Pillow's own limit for decompression bombs"
    require_number("max_pixels", max_pixels, 1, MAX_PIXELS, whole=True, unit=limit)


def content_digest(content: bytes | np.ndarray) -> bytes:
    """Return the first 16 bytes of an image file's sha256, or of its pixels' where it has none."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]


def decoded(
    content: bytes | np.ndarray,
    *,
    sample_id: str,
    max_pixels: int = MAX_PIXELS,
    preprocess: PreprocessSpec | None = None,
) -> Image.Image | np.ndarray:
    """Return an image as ``preprocess`` takes it with the fewest copies.

    Args:
        content: An encoded image, or its pixels ``(height, width, 3)``, taken as they are.
        sample_id: Names the image in errors.
        max_pixels: Height times width allowed, of the whole image.
        preprocess: What the pixels are for; None decodes in full.

    Raises:
        ImageError: It cannot be used, or has more than ``max_pixels``.
        ConfigError: ``max_pixels`` is out of range.
    """
    check_max_pixels(max_pixels)
    if isinstance(content, bytes):
        return _decoded(content, sample_id, max_pixels, preprocess)
    _check_size(content.shape[0], content.shape[1], sample_id, max_pixels)
    return content


def _is_short_of_memory(content: bytes) -> bool:
    """Return whether there is too little memory to decode an image for certain.

    Several decoders call a file damaged where they run out of memory.
    """
    try:
        try:
            with _open(content) as image:
                pixels = image.width * image.height
        except (OSError, ValueError, SyntaxError):  # a WebP takes its memory when it is opened
            pixels = MAX_PIXELS if content[8:12] == b"WEBP" else 0
        np.empty(_DECODING_BYTES * pixels, np.uint8)  # never touched, so that it costs nothing
    except MemoryError:
        return True
    except Exception:  # its header is damaged in a way of its own
        return False
    return False


def read_image_file(path: str | Path, *, sample_id: str) -> bytes:
    """Return the content of a regular file; a pipe or device is refused instead of waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | system.NO_WAIT)
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
    except (OSError, ValueError, MemoryError) as err:  # ValueError: a NUL in the name
        reason = err.strerror if isinstance(err, OSError) else None
        raise ImageError(sample_id, f"cannot be read: {reason or _reason(err)}.") from err


def is_animated(content: bytes) -> bool:
    """Return whether an encoded image has frames or pages beyond the first; never raises.

    Costs next to nothing for what cannot have any: JPEG, BMP, and a PNG or WebP whose header says
    nothing of an animation.
    """
    if not _may_be_animated(content):
        return False
    try:
        with _open(content) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # decoding it will say what is wrong
        return False


def _may_be_animated(content: bytes) -> bool:
    kind = format_of(content)
    if kind == "PNG":  # the chunk that announces frames comes before the pixels
        return content.find(b"acTL", 0, content.find(b"IDAT")) >= 0
    if kind == "WEBP":
        flags = content[_WEBP_FLAGS : _WEBP_FLAGS + 1]
        return content[12:16] == b"VP8X" and bool(flags) and bool(flags[0] & _WEBP_ANIMATED)
    if kind == "AVIF":
        return b"avis" in content[8:64]
    return kind in ("GIF", "TIFF")


def decode_image(
    content: bytes,
    *,
    sample_id: str,
    max_pixels: int = MAX_PIXELS,
    preprocess: PreprocessSpec | None = None,
) -> np.ndarray:
    """Return an encoded image's pixels, shape ``(height, width, 3)``, uint8, RGB."""
    image = decoded(content, sample_id=sample_id, max_pixels=max_pixels, preprocess=preprocess)
    return np.asarray(image)


def _decoded(
    content: bytes, sample_id: str, max_pixels: int, preprocess: PreprocessSpec | None
) -> Image.Image:
    if not content:
        raise ImageError(sample_id, "the file is empty.")
    try:
        return _attempt(content, sample_id, max_pixels, preprocess)
    except ImageError:
        raise
    except Exception as err:  # a damaged file makes Pillow's plug-ins raise nearly anything
        kind = format_of(content)
        if isinstance(err, _TOO_LARGE):
            raise ImageTooLarge(sample_id, _why(err, kind, content)) from err
        if lies_in_machine(err):
            raise ImageError(sample_id, _why(err, kind, content)) from err
        if _is_short_of_memory(content):
            reason = f"{_why(err, kind, content)} There may be too little memory for it."
            raise ImageError(sample_id, reason, is_permanent=False) from err
        plain = None if isinstance(err, TooCostly) else without_metadata(content, kind)
        if plain is not None:  # what is damaged may have nothing to do with the pixels
            try:
                return _attempt(plain, sample_id, max_pixels, preprocess)
            except ImageError:
                raise
            except Exception as again:
                raise ImageError(sample_id, _why(again, kind, plain)) from again
        raise ImageError(sample_id, _why(err, kind, content)) from err


def _attempt(
    content: bytes, sample_id: str, max_pixels: int, preprocess: PreprocessSpec | None
) -> Image.Image:
    with _open(content) as image:
        width, height = image.size
        _check_size(height, width, sample_id, max_pixels)  # the header's word, before any decoding
        if image.format in ("JPEG", "MPO"):
            check_scans(content, width * height)
        elif image.format == "PNG":
            check_png(content)
        return _rgb(image, sample_id, max_pixels, preprocess, content)


def _open(content: bytes) -> Image.Image:
    """Return an image that is open but not decoded."""
    kind = format_of(content)
    if kind is None:
        raise UnidentifiedImageError
    check_cost(content, kind)
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif kind in _PLUGINS:  # or Pillow loads those of all formats
        importlib.import_module(f"PIL.{_PLUGINS[kind]}ImagePlugin")
    return Image.open(io.BytesIO(content), formats=(kind,))


def _why(err: Exception, kind: str | None, content: bytes) -> str:
    if isinstance(err, ImportError) and kind == "HEIF":
        why = needed(err, "pillow-heif", install_command("heif"))
        return f"HEIC needs {why}"
    if not isinstance(err, UnidentifiedImageError):
        return f"cannot be decoded: {_reason(err)}."
    if kind is None:
        return f"not an image of a known format ({', '.join((*FORMATS, 'AVIF', 'HEIF'))})."
    tags = describe_tiff(content) if kind == "TIFF" else ""
    return f"a damaged {kind} file, or a variant that is not read{tags and f' ({tags})'}."


def rgb_image(image: Image.Image, *, sample_id: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an open PIL image by the same rules: upright, of mode RGB.

    They are taken as they are: to scale a JPEG while it is decoded would change the caller's image.
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
        raise ImageError(sample_id, f"{width}×{height} pixels is not an image.")
    if width * height > max_pixels:
        raise ImageTooLarge(
            sample_id, f"{width}×{height} pixels is more than the {max_pixels} allowed."
        )
    check_aspect_ratio(height, width, sample_id=sample_id)


def _rgb(
    image: Image.Image,
    sample_id: str,
    max_pixels: int,
    preprocess: PreprocessSpec | None = None,
    content: bytes | None = None,
) -> Image.Image:
    width, height = image.size
    _check_size(height, width, sample_id, max_pixels)
    if image.mode in ("I", "F"):
        raise ImageError(
            sample_id,
            f"mode '{image.mode}' (signed, floating-point or 32-bit grey) has no known range; "
            "convert it to 8 or 16 bits.",
        )
    # One that lies on its side is resized lying, so its EXIF orientation makes no difference.
    smallest = draft_size(height, width, preprocess) if preprocess else None
    if smallest and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, smallest[::-1])
    return _upright(image, content)


def _upright(image: Image.Image, content: bytes | None) -> Image.Image:
    """Return the image's pixels as its EXIF orientation wants them seen."""
    pixels = to_rgb(image, content)
    try:
        method = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF says nothing, and the pixels are whole
        return pixels
    return pixels if method is None else pixels.transpose(method)
