"""Images as a caller of the library gives them: paths, bytes, PIL images, arrays, sources."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featx.errors import ConfigError, ImageError
from featx.images.decode import MAX_PIXELS, decoded, read_image_file, rgb_image
from featx.images.preprocess import PreprocessSpec
from featx.images.reading import map_ahead
from featx.images.sources import ImageSource, is_source, open_source
from featx.images.sources.folder import find_images


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image of a source, read when it is its turn; it is called by its sample id."""

    source: ImageSource
    index: int

    @property
    def name(self) -> str:
        return self.source.samples[self.index].sample_id

    @property
    def parallel_reads(self) -> int:
        return getattr(self.source, "parallel_reads", None) or 0


ImageLike = str | Path | bytes | Image.Image | np.ndarray | SourceImage
"""A path, an encoded image, a PIL image, pixels ``(height, width, 3)`` uint8 RGB, or a source's."""


def find_given(names: Iterable[str]) -> list[Path | SourceImage]:
    """Return the images that names stand for: files, all below folders, and those of sources.

    Raises:
        SourceError: A folder holds no images or cannot be listed, or a source cannot be used.
    """
    found: list[Path | SourceImage] = []
    for name in names:
        if is_source(name):
            source = open_source(name, labelled=False)
            found += [SourceImage(source, index) for index in range(len(source.samples))]
        else:
            found += find_images([name])
    return found


def read_ahead(
    images: Iterable[tuple[str, ImageLike]], among: Iterable[ImageLike]
) -> Iterator[tuple[str, ImageLike | ImageError]]:
    """Yield named images; where some ``among`` them are of a store, these are read many at a time.

    One that cannot be read comes as its error.
    """
    workers = max(
        (each.parallel_reads for each in among if isinstance(each, SourceImage)), default=0
    )

    def read(image: tuple[str, ImageLike]) -> tuple[str, ImageLike | ImageError]:
        name, content = image
        if not isinstance(content, SourceImage):
            return image
        try:
            return name, content.source.read(content.index)
        except ImageError as err:
            return name, err

    yield from map_ahead(read, images, workers=workers) if workers else images


def name_of(image: ImageLike, position: int) -> str:
    """Return an image's path, or ``"image 3"`` for the one at position 3 that has none."""
    if isinstance(image, SourceImage):
        return image.name
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
    name: str, image: ImageLike | ImageError, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> Image.Image | np.ndarray:
    """Return an upright RGB image, as ``preprocess`` takes it.

    Args:
        name: Of the image, for errors.
        image: What was given; an error is raised.
        spec: That it will be preprocessed by.
        max_pixels: Height times width that it may have.

    Raises:
        ImageError: It cannot be used.
        ConfigError: It is not an image.
    """
    if isinstance(image, ImageError):
        raise image
    if isinstance(image, SourceImage):
        image = image.source.read(image.index)
    elif isinstance(image, (str, Path)):
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
