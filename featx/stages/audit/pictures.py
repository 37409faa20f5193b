"""The pictures of a feature file as the audit sees them: small, grey, and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from featx.errors import ImageError, SourceError
from featx.features.file import FeatureFile
from featx.heads.samples.data import Step
from featx.images.alike import DETAIL, SIDE, outlines, small_grey
from featx.images.preprocess import PreprocessSpec
from featx.images.quality import Quality, measure
from featx.images.reading import read_images
from featx.images.sources import ImageSource, open_source

_SPEC = PreprocessSpec(256, 256, (0, 0, 0), (1, 1, 1), crop="none", decode="scaled")
"""Large JPEGs are decoded at a part of their size: nothing here looks closer than 256 pixels."""
_TELL_EVERY = 500
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is known of the images of a feature file by their pixels.

    Attributes:
        small: Grey pictures, zeros where an image could not be used, ``(N, SIDE, SIDE)`` uint8.
        quality: ``Quality`` of each, NaN where it could not be used, ``(N, 4)``.
        read: Whether an image is there with the content that the file has of it, ``(N,)`` bool.
    """

    cache: FeatureFile
    source: ImageSource
    small: np.ndarray
    quality: np.ndarray
    read: np.ndarray

    @classmethod
    def of(cls, cache: FeatureFile, source: str | None, step: Step) -> Pictures:
        """Read all images once.

        Raises:
            SourceError: The source is not there, or none of the images is in it.
        """
        opened = open_source(source or str(cache.header.details["source"]))
        count = len(cache)
        small = np.zeros((count, SIDE, SIDE), np.uint8)
        quality = np.full((count, len(Quality._fields)), np.nan)
        read = np.zeros(count, bool)
        for row, (picture, measures) in _read(
            cache, opened, np.arange(count), lambda image: (small_grey(image), measure(image)), step
        ):
            small[row], quality[row], read[row] = picture, measures, True
        if count and not read.any():
            raise SourceError(f"None of the images of '{cache.path}' is in '{opened.uri}'.")
        return cls(cache, opened, small, quality, read)

    @cached_property
    def outlines(self) -> np.ndarray:
        """Coarse slopes of the small pictures, ``(N, 512)`` float16."""
        return outlines(self.small)

    def details(self, rows: np.ndarray, step: Step) -> dict[int, np.ndarray]:
        """Return larger grey pictures ``(DETAIL, DETAIL)`` uint8 of some rows, by row."""
        return dict(
            _read(self.cache, self.source, rows, lambda image: small_grey(image, DETAIL), step)
        )


def _read(
    cache: FeatureFile,
    source: ImageSource,
    rows: np.ndarray,
    make: Callable[[Any], T],
    step: Step,
) -> Iterator[tuple[int, T]]:
    """Yield row and what ``make`` made of its image; images that are others now are left out."""
    places = {each.sample_id: index for index, each in enumerate(source.samples)}
    found = [row for row in rows.tolist() if cache.sample_ids[row] in places]
    indices = [places[cache.sample_ids[row]] for row in found]
    images = read_images(source, indices, make, preprocess=_SPEC)
    with closing(images):
        for done, (row, (_, digest, made)) in enumerate(zip(found, images, strict=True)):
            if done % _TELL_EVERY == 0:
                step(f"Pictures, {done:,} of {len(found):,}")
            known = cache.digests[row]
            if isinstance(made, ImageError) or (known.any() and known.tobytes() != digest):
                continue
            yield row, made
