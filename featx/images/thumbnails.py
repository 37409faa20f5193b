"""Small pictures of images, for pages and notebooks."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from featx.errors import FeatxError
from featx.images.decode import content_digest, read_image_file
from featx.images.given import ImageLike, decode_given
from featx.images.preprocess import PreprocessSpec

_SIDE = 160
_SMALL = 96
_SECONDS = 1.0
_SPEC = PreprocessSpec(_SMALL, _SMALL, (0.0,) * 3, (1.0,) * 3, decode="scaled")


def thumbnail(pixels: Image.Image | np.ndarray, side: int = _SIDE) -> bytes:
    """Return an image as a JPEG file that fits into a square of 160×160 pixels, or of ``side``.

    Smaller images are enlarged to half of that, so that the pixels of tiny ones can be seen. Pixels
    are ``(height, width, 3)`` uint8.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    longest = max(image.size)
    scale = min(side / longest, max(1.0, side / 2 / longest))
    width, height = (max(1, round(length * scale)) for length in image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    file = io.BytesIO()
    image.resize((width, height), resample).save(file, "JPEG", quality=85)
    return file.getvalue()


def small_pictures(
    images: Iterable[tuple[ImageLike | None, bytes | None]],
) -> Iterator[bytes | None]:
    """Yield thumbnails of 96×96 pixels; None where an image cannot be shown, or is another.

    Each image comes with the hash of its content where that is known, None stands for one that
    cannot be found. After a second the rest are None, so that nothing waits for them.
    """
    end = time.monotonic() + _SECONDS
    for image, digest in images:
        if image is None or time.monotonic() > end:
            yield None
            continue
        try:
            content = image
            if isinstance(image, (str, Path)):
                content = read_image_file(image, sample_id=str(image))
            if digest and isinstance(content, bytes) and content_digest(content) != digest:
                yield None
                continue
            yield thumbnail(decode_given("image", content, _SPEC), _SMALL)
        except (FeatxError, OSError):
            yield None
