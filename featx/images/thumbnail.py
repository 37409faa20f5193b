"""Small pictures of images, for pages that people look at."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def thumbnail(pixels: np.ndarray, *, size: int = 160) -> bytes:
    """Return an image as a JPEG file that fits into a square.

    Args:
        pixels: ``(height, width, 3)`` uint8, RGB.
        size: Side of the square, pixels; smaller images are enlarged to half of it, so that the
            pixels of tiny ones can be seen.
    """
    image = Image.fromarray(pixels)
    longest = max(image.size)
    scale = min(size / longest, max(1.0, size / 2 / longest))
    width, height = (max(1, round(side * scale)) for side in image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    file = io.BytesIO()
    image.resize((width, height), resample).save(file, "JPEG", quality=85)
    return file.getvalue()
