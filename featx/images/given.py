"""Images as a caller of the library gives them: paths, bytes, PIL images, arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from featx.errors import ConfigError
from featx.images.decode import MAX_PIXELS, decoded, read_image_file, rgb_image
from featx.images.preprocess import PreprocessSpec

ImageLike = str | Path | bytes | Image.Image | np.ndarray
"""A path, an encoded image, a PIL image, or pixels ``(height, width, 3)`` uint8 RGB."""


def name_of(image: ImageLike, position: int) -> str:
    """Return an image's path, or ``"image 3"`` for the one at position 3 that has none."""
    return str(image) if isinstance(image, (str, Path)) else f"image {position}"


def is_image(image: object) -> bool:
    """Return whether something is a PIL image."""
    return isinstance(image, Image.Image)


def encoded(image: Image.Image | np.ndarray) -> bytes:
    """Return a PIL image or pixels ``(height, width, 3)`` uint8 as a PNG file."""
    buffer = io.BytesIO()
    pixels = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pixels.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_given(
    name: str, image: ImageLike, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> Image.Image | np.ndarray:
    """Return an upright RGB image, as ``preprocess`` takes it.

    Args:
        name: Of the image, for errors.
        image: What was given.
        spec: That it will be preprocessed by.
        max_pixels: Height times width that it may have.

    Raises:
        ImageError: It cannot be used.
        ConfigError: It is no image.
    """
    if isinstance(image, (str, Path)):
        image = read_image_file(image, sample_id=name)
    if isinstance(image, Image.Image):
        return rgb_image(image, sample_id=name, max_pixels=max_pixels)
    if not isinstance(image, (bytes, np.ndarray)):
        raise ConfigError(f"{name}: expected a path, bytes, PIL image or array; got {type(image)}.")
    if isinstance(image, np.ndarray) and (
        image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size
    ):
        raise ConfigError(
            f"{name}: expected pixels (height, width, 3) uint8; got {image.shape} {image.dtype}."
        )
    return decoded(image, sample_id=name, max_pixels=max_pixels, preprocess=spec)
