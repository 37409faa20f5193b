"""Images as users give them, and those of a path or folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from featx.errors import ConfigError
from featx.images.decode import decoded, read_image_file, rgb_image
from featx.images.preprocess import PreprocessSpec
from featx.images.sources.folder import list_images

ImageLike = str | Path | bytes | Image.Image | np.ndarray
"""A path, an encoded image, a PIL image, or pixels ``(height, width, 3)`` uint8 RGB."""


def name_of(image: ImageLike, position: int) -> str:
    """Return an image's path, or ``"image 3"`` for the one at position 3 that has none."""
    return str(image) if isinstance(image, (str, Path)) else f"image {position}"


def num_bytes_of(image: ImageLike) -> int:
    """Return how much memory an image takes as it is given; nothing where it is a path."""
    if isinstance(image, Image.Image):
        return 4 * image.width * image.height
    if isinstance(image, np.ndarray):
        return image.nbytes
    return len(image) if isinstance(image, bytes) else 0


def upright_image(
    image: ImageLike, *, name: str, max_pixels: int, spec: PreprocessSpec
) -> Image.Image | np.ndarray:
    """Return an image as ``preprocess`` takes it with a spec, by the rules of ``images.decode``."""
    if isinstance(image, (str, Path)):
        image = read_image_file(image, sample_id=name)
    if isinstance(image, Image.Image):
        return rgb_image(image, sample_id=name, max_pixels=max_pixels)
    if not isinstance(image, (bytes, np.ndarray)):
        raise ConfigError(f"{name}: expected a path, bytes, PIL image or array; got {type(image)}.")
    if isinstance(image, np.ndarray):
        _require_pixels(image, name)
    return decoded(image, sample_id=name, max_pixels=max_pixels, preprocess=spec)


def _require_pixels(image: np.ndarray, name: str) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ConfigError(
            f"{name}: expected pixels (height, width, 3) uint8; got {image.shape} {image.dtype}."
        )


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image files that ``paths`` name; a folder means all images below it.

    Raises:
        SourceError: A folder holds no images, cannot be listed, or holds a broken link.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # noqa: PTH112 never raises; a name too long is a bad image's
            found += [path / name for name in list_images(path)]
        else:
            found.append(path)
    return found
