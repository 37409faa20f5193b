"""The pictures of a feature file as the audit sees them: small, grey, measured, and compared."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from featx.errors import ImageError, SourceError
from featx.features.file import FeatureFile
from featx.heads.samples.data import Step
from featx.images.alike import (
    DETAIL,
    SIDE,
    Alike,
    compare_details,
    compare_outlines,
    compare_pictures,
    outlines,
    small_grey,
)
from featx.images.decode import DIGEST_BYTES
from featx.images.preprocess import PreprocessSpec
from featx.images.quality import Quality, measure
from featx.images.reading import map_ahead, num_cores, read_images, reader, readers_of
from featx.images.sources import ImageSource, open_source
from featx.isolation.processes import Processes

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
        places = {each.sample_id: index for index, each in enumerate(opened.samples)}
        indices = np.array([places.get(name, -1) for name in cache.sample_ids], np.int64)
        rows = np.flatnonzero(indices >= 0)
        done = 0
        with closing(_measured(opened, indices[rows])) as parts:
            for part in parts:
                step(f"Pictures, {done:,} of {len(rows):,}")
                here = rows[done : done + len(part)]
                done += len(part)
                known = cache.digests[here]
                is_same = ~known.any(axis=1) | (known == part["digest"]).all(axis=1)
                right = part["made"] & is_same
                small[here[right]], quality[here[right]] = (
                    part["small"][right],
                    part["quality"][right],
                )
                read[here] = right
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


_PART = np.dtype(
    [
        ("digest", np.uint8, (DIGEST_BYTES,)),
        ("made", bool),
        ("small", np.uint8, (SIDE, SIDE)),
        ("quality", np.float64, (len(Quality._fields),)),
    ]
)
_AT_ONCE = 64
_PROCESSES_FROM = 5_000
"""Images above which small ones are worth processes: half of their time is Python's own."""


def _measured(source: ImageSource, indices: np.ndarray) -> Generator[np.ndarray, None, None]:
    """Yield digest, picture and measures of some images, ``(n,)`` of ``_PART``, in their order."""
    workers = readers_of(source) or num_cores()
    size = max(1, min(_AT_ONCE, len(indices) // (4 * workers)))
    parts = [indices[start : start + size] for start in range(0, len(indices), size)]
    few = len(indices) < _PROCESSES_FROM
    if readers_of(source) or workers == 1 or few or os.name == "nt":
        yield from map_ahead(lambda part: _measure(source, part), parts, workers=workers)
        return
    processes = Processes(
        f"{__name__}:measure_in_process",
        [[source.uri.encode()]] * workers,
        names=["that reads images"] * workers,
        error=SourceError,
        advice="an image may need more memory than there is",
    )

    def ask(part: np.ndarray) -> np.ndarray:
        return np.frombuffer(processes.ask(part.tobytes()), _PART)

    try:
        with closing(map_ahead(ask, parts, workers=workers)) as found:
            yield from found
    finally:
        processes.close()


def measure_in_process(receive: Callable[[], bytes]) -> Callable[[bytes], bytes]:
    """Return what measures images of a source: from indices, int64, to records of ``_PART``."""
    logging.disable(logging.WARNING)  # the caller has said it
    source = open_source(receive().decode())
    return lambda message: _measure(source, np.frombuffer(message, np.int64)).tobytes()


def _measure(source: ImageSource, indices: np.ndarray) -> np.ndarray:
    read = reader(source, lambda image: (small_grey(image), measure(image)), preprocess=_SPEC)
    part = np.zeros(len(indices), _PART)
    for own, index in zip(part, indices.tolist(), strict=True):
        _, digest, made = read(index)
        own["digest"] = np.frombuffer(digest, np.uint8)
        if not isinstance(made, ImageError):
            own["made"], own["small"], own["quality"] = True, *made
    return part


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


ALIKE = 0.94
"""Correlation of small pictures from which they are one, where there is no more to see.

What is missing to 1 is the share of structure that is not common to both. Photos of 64 pixels that
are saved again at quality 60, resized, mirrored, cropped by 5 %, brightened or captioned keep 0.94
in more than nine of ten cases; below it come other photos of the same aircraft or car on a plain
ground. Of 116,333 pairs of neighbours among CIFAR-10's training images that have different labels
none reaches 0.88.
"""
ALIKE_IF_DETAILS = 0.75
DETAILS_ALIKE = 0.65
"""Share of structure in common from which larger pictures are one, too."""
_ALMOST_EQUAL, _DETAILS_IF_EQUAL = 0.98, 0.5
"""Of pictures that are almost equal when they are small, compression may have taken details."""
DETAILS_FROM = 128
"""Shorter side in pixels from which an image has details."""
LEAST_COSINE = 0.1
"""Of whitened features, below which images are not candidates."""
_CHUNK = 4096
_DETAILS_AT_ONCE = 2048
_EXACTLY = 0.9999  # of pictures that are not the same file


class Link(NamedTuple):
    """Two images of one picture."""

    score: float
    flipped: bool


@dataclass(frozen=True, eq=False)
class Links:
    """Pairs of images whose pixels were compared and found the same.

    Attributes:
        pairs: Lower row first, each pair once, ascending, ``(M, 2)``.
        scores: Of each pair, below 1, ``(M,)``.
        flipped: Whether the one mirrors the other, ``(M,)``.
    """

    pairs: np.ndarray
    scores: np.ndarray
    flipped: np.ndarray

    @classmethod
    def none(cls) -> Links:
        return cls(np.empty((0, 2), np.int64), np.empty(0), np.empty(0, bool))

    def where(self, kept: np.ndarray) -> Links:
        """Return some of the links; ``kept`` is ``(M,)`` bool."""
        return Links(self.pairs[kept], self.scores[kept], self.flipped[kept])

    def by_pair(self) -> dict[tuple[int, int], Link]:
        """Return the links by their rows, in either order."""
        links = {}
        for (a, b), score, flipped in zip(
            self.pairs.tolist(), self.scores.tolist(), self.flipped.tolist(), strict=True
        ):
            links[a, b] = links[b, a] = Link(score, flipped)
        return links


def near_links(pictures: Pictures, candidates: np.ndarray, step: Step) -> Links:
    """Return those candidates, ``(M, 2)`` rows, that show the same picture."""
    pairs = candidates[pictures.read[candidates].all(axis=1)]
    found = compare_rows(pictures, pairs, step)
    sides = pictures.quality[:, -1]
    detailed = (sides[pairs] >= DETAILS_FROM).all(axis=1)
    sure = found.scores >= np.where(detailed, ALIKE_IF_DETAILS, ALIKE)
    pairs, detailed, found = pairs[sure], detailed[sure], Alike(*(each[sure] for each in found))
    sure = ~detailed
    numbers = np.flatnonzero(detailed)
    for start in range(0, len(numbers), _DETAILS_AT_ONCE):
        some = numbers[start : start + _DETAILS_AT_ONCE]
        sure[some] = _details_alike(
            pictures, pairs[some], Alike(*(each[some] for each in found)), step
        )
    scores = np.minimum(found.scores, _EXACTLY)
    return Links(pairs[sure], scores[sure], found.flipped[sure])


def compare_rows(pictures: Pictures, pairs: np.ndarray, step: Step) -> Alike:
    """Return how alike the small pictures of pairs of rows ``(M, 2)`` are."""
    outlines = pictures.outlines

    def compare(start: int) -> Alike:
        first, second = pairs[start : start + _CHUNK].T
        screened = compare_outlines(outlines[first], outlines[second])
        return compare_pictures(pictures.small[first], pictures.small[second], screened)

    parts = []
    with closing(map_ahead(compare, range(0, max(len(pairs), 1), _CHUNK))) as compared:
        for done, part in enumerate(compared):
            step(f"Comparing pictures, {done * _CHUNK:,} of {len(pairs):,} pairs")
            parts.append(part)
    return Alike(*map(np.concatenate, zip(*parts, strict=True)))


def _details_alike(pictures: Pictures, pairs: np.ndarray, found: Alike, step: Step) -> np.ndarray:
    larger = pictures.details(np.unique(pairs), step)
    there = np.array([a in larger and b in larger for a, b in pairs.tolist()], bool)
    alike = np.zeros(len(pairs), bool)
    if there.any():
        first, second = (
            np.stack([larger[row] for row in pairs[there, end].tolist()]) for end in (0, 1)
        )
        shares = compare_details(first, second, Alike(*(each[there] for each in found)))
        sure = np.where(found.scores[there] >= _ALMOST_EQUAL, _DETAILS_IF_EQUAL, DETAILS_ALIKE)
        alike[there] = shares >= sure
    return alike
