"""Edge cases of preprocessing, made from ordinary images, for a proof."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image

from featx.images.decode import decode_image

_ROTATED_LEFT = 6
"""EXIF: the image has to be turned right by 90 degrees to be upright."""
_MAX_ASPECT = 50


def edge_cases(pixels: np.ndarray, *, image_size: int) -> dict[str, np.ndarray]:
    """Return a grey, a rotated, a tiny, a large and a panoramic version of an image, by kind.

    The first two go through an encoded file: the grey one has a single channel there, the rotated
    one lies on its side, and its EXIF orientation says so. The tiny image is a third of the
    backbone's, the large one more than twice. All are RGB, ``(height, width, 3)`` uint8.
    """
    image = Image.fromarray(pixels)
    short, panorama = min(image.size), 4 * image.width
    tiny = max(1, image_size // 3) / short
    large = max(2.0, 2.5 * image_size / short)
    found = {
        "greyscale": _through_file(image.convert("L")),
        "EXIF-rotated": rotated_by_exif(pixels),
        "tiny": np.asarray(_scaled(image, tiny)),
        "large": np.asarray(_scaled(image, large)),
    }
    if panorama / image.height <= _MAX_ASPECT:
        found["panoramic"] = np.concatenate([pixels] * 4, 1)
    return found


def in_shape(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return an image ``(height, width, 3)`` uint8 resized to a height and width."""
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BICUBIC))


def rotated_by_exif(pixels: np.ndarray) -> np.ndarray:
    """Return an image read from a file in which it lies on its side, marked so by EXIF."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = _ROTATED_LEFT
    return _through_file(Image.fromarray(np.ascontiguousarray(np.rot90(pixels))), exif=exif)


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _through_file(image: Image.Image, exif: Image.Exif | None = None) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1, **({} if exif is None else {"exif": exif}))
    return decode_image(file.getvalue(), sample_id="edge case")
